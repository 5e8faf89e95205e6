import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax import losses
from lcgcn_jax.errors import InputError
from lcgcn_jax.fields import constraints_of
from lcgcn_jax.heatmaps import DECODERS
from lcgcn_jax.models import registry
from lcgcn_jax.models.config import GraphConfig
from lcgcn_jax.models.graph_head import GraphHead
from lcgcn_jax.models.interfaces import GraphFeatures
from lcgcn_jax.models.lcgcn import LCGCNOutput, normalize_images
from lcgcn_jax.models.registry import create_model, register_heatmap_model
from lcgcn_jax.models.weights import batch_stats_of, merge_weights, split_weights

B, K, SIZE = 2, 5, 32
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(B, SIZE, SIZE, 3)), jnp.float32)
NARROW = {"embedding_widths": [7, 3], "class_widths": [4, 2], "gcn_widths": [6, 2]}
CHOICES = {
    name: field.choices for name, field in constraints_of(GraphConfig).items() if field.choices
}
VISIBILITY_FIELDS = {"edge_inputs", "gate"}  # tests/models/test_visibility.py


def config_of(decode="argmax", **graph):
    return {
        "heatmap": {"name": "toy"},
        "decode": decode,
        "graph": NARROW | graph,
        "bn_momentum": 0.9,
    }


def make(config):
    return create_model(config, K, rngs=nnx.Rngs(0))


def run(model, **train):
    return nnx.jit(lambda model: model(IMAGES, **train))(model)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("connectivity", GraphConfig.connectivity),  # all defaults
        ("refinements", 2),
        ("shape_refiner", True),
        ("authors_conventions", True),
    ]
    + [
        (field, value)
        for field in sorted(CHOICES.keys() - VISIBILITY_FIELDS)
        for value in CHOICES[field]
        if value != getattr(GraphConfig, field)
    ],
)
def test_every_option_outputs_landmarks_and_edges(toy, field, value):
    def create_and_run():
        model = create_model(config_of("soft", **{field: value}), K, rngs=nnx.Rngs(0))
        return model(IMAGES, train_graph=True)

    output = nnx.eval_shape(create_and_run)
    fields = [f.name for f in dataclasses.fields(LCGCNOutput)]
    fields = [name for name in fields if not name.startswith("visibility")]
    shapes = {name: getattr(output, name).shape for name in fields}
    assert shapes == {
        "heatmap_logits": (B, SIZE // 4, SIZE // 4, K),
        "heatmap_landmarks": (B, K, 2),
        "confidence": (B, K),
        "edges": (B, K, K),
        "landmarks": (B, K, 2),
        "stages": (B, {"refinements": 3, "shape_refiner": 2}.get(field, 1), K, 2),
        "heatmap_std": (B, K),
    }


def test_graph_has_a_name_whose_default_is_lcgcn(toy):
    sizes = {"width": 8, "blocks": 1, "fine_steps": 2}
    dag = make(config_of() | {"graph": {"name": "dag", **sizes}})
    assert run(dag).stages.shape == (B, 3, K, 2)
    assert isinstance(make(config_of()).graph, GraphHead)
    assert isinstance(make(config_of(name="lcgcn")).graph, GraphHead)
    with pytest.raises(InputError, match=r"no graph 'cascade'; available: lcgcn, dag"):
        make(config_of(name="cascade"))
    with pytest.raises(InputError, match=r"model\.graph: unknown field 'message'"):
        make(config_of() | {"graph": {"name": "dag", "message": "paper"}})


@pytest.mark.parametrize("field", CHOICES)
def test_unknown_choices_are_an_error(toy, field):
    with pytest.raises(InputError, match=rf"model\.graph\.{field}: got 'other'; expected"):
        create_model(config_of(**{field: "other"}), K, rngs=nnx.Rngs(0))


def test_named_graph_configs():
    assert GraphConfig.authors().authors_conventions
    assert GraphConfig.best().uses_offset_votes


def test_last_gcn_width_other_than_2_is_an_error():
    with pytest.raises(ValueError, match="gcn_widths"):
        GraphConfig(gcn_widths=(8, 3))


@pytest.mark.parametrize("decode", DECODERS)
def test_initial_output_of_residual_graph_is_the_heatmap_landmarks(toy, decode):
    output = run(make(config_of(decode, output="residual")))
    np.testing.assert_allclose(output.landmarks, output.heatmap_landmarks, atol=1e-5)
    assert np.ptp(output.landmarks) > 1


@pytest.mark.parametrize("graph_output", CHOICES["output"])
def test_graph_coordinates_are_fractions_of_the_crop(toy, graph_output):
    model = make(config_of(output=graph_output))
    last = model.graph.blocks[-1]
    for param in (last.node, last.neighbor, last.shape):
        param.set_value(jnp.zeros_like(param[...]))
    last.bias.set_value(jnp.array([0.25, 0.5]))
    output = run(model)
    # Relative to the edge of the crop, at -0.5, or to the heatmap landmarks.
    start = -0.5 if graph_output == "absolute" else np.asarray(output.heatmap_landmarks)
    expected = np.broadcast_to(start + np.array([0.25, 0.5]) * SIZE, (B, K, 2))
    np.testing.assert_allclose(output.landmarks, expected, atol=1e-4)


def test_heatmap_landmarks_are_the_peaks_in_crop_pixels(toy):
    output = run(make(config_of()))
    flat = np.asarray(output.heatmap_logits).reshape(B, -1, K)
    y, x = np.divmod(flat.argmax(axis=1), SIZE // 4)
    np.testing.assert_array_equal(output.heatmap_landmarks, np.stack([x, y], -1) * 4 + 1.5)
    np.testing.assert_allclose(output.confidence, jax.nn.sigmoid(flat.max(axis=1)), rtol=1e-6)


def test_heatmap_offset_translates_landmarks_only(toy):
    offset = 2.5
    config = config_of("dark", output="residual", sampling="bilinear")
    model, translated = make(config), make(config | {"heatmap_offset": offset})
    assert (model.heatmap_offset, translated.heatmap_offset) == (1.5, offset)
    plain, other = run(model), run(translated)
    np.testing.assert_allclose(
        other.heatmap_landmarks, plain.heatmap_landmarks + (offset - 1.5), atol=1e-5
    )
    np.testing.assert_allclose(other.landmarks, plain.landmarks + (offset - 1.5), atol=1e-5)
    np.testing.assert_array_equal(other.edges, plain.edges)


@pytest.mark.parametrize("offset", ["corner", True, float("nan"), [1.5, 1.5]])
def test_heatmap_offset_other_than_a_number_is_an_error(toy, offset):
    with pytest.raises(InputError, match=r"model\.heatmap_offset: got .*; expected"):
        create_model(config_of() | {"heatmap_offset": offset}, K, rngs=nnx.Rngs(0))


@pytest.mark.slow
@pytest.mark.parametrize("offset", [None, 2.0])
def test_coordinates_in_the_authors_conventions(toy, monkeypatch, offset):
    """Inputs are heatmap pixels over the side of the heatmap, outputs pixels over the side of the crop."""
    model = make(config_of(authors_conventions=True) | {"heatmap_offset": offset})
    inputs = []

    def half(self, positions, *_, **__):
        inputs.append(positions)
        return positions[:, None] / 2, None

    monkeypatch.setattr(GraphHead, "__call__", half)
    output = model(IMAGES)
    pixels = (output.heatmap_landmarks - model.heatmap_offset) / 4
    np.testing.assert_allclose(inputs[0], pixels / (SIZE // 4), atol=1e-6)
    np.testing.assert_allclose(output.landmarks, 4 * pixels / 2, atol=1e-5)


def test_authors_conventions_with_residual_output_are_an_error():
    with pytest.raises(ValueError, match="needs absolute coordinates"):
        GraphConfig(authors_conventions=True, output="residual")


def test_landmarks_without_graph_are_the_heatmap_landmarks(toy):
    output = run(make(config_of() | {"graph": None}))
    assert output.edges is None
    np.testing.assert_array_equal(output.landmarks, output.heatmap_landmarks)


def test_images_do_not_depend_on_each_other_in_evaluation(toy):
    model = make(config_of("dark"))
    single = nnx.jit(lambda model: model(IMAGES[1:]))(model)
    np.testing.assert_allclose(run(model).landmarks[1:], single.landmarks, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CHOICES["connectivity"])
def test_order_of_landmarks_matters_only_with_learned_edges(kind):
    config = GraphConfig(connectivity=kind, norm="none")
    head = GraphHead(config, K, 6, bn_momentum=0.9, rngs=nnx.Rngs(0))
    if kind == "learned_static":  # the initial edges are uniform
        head.connectivity.logits.set_value(jnp.eye(K) + jnp.arange(K, dtype=jnp.float32)[None])
    rng, order = np.random.default_rng(1), np.array([3, 0, 4, 1, 2])
    inputs = [rng.uniform(size=(B, K, *rest)).astype(np.float32) for rest in ((2,), (), (6,))]

    @nnx.jit
    def predict(head, positions, confidence, points):
        return head(positions, confidence, GraphFeatures(points=points), train=False)[0]

    def run_head(order):
        positions, confidence, points = (jnp.asarray(x[:, order]) for x in inputs)
        return predict(head, positions, confidence, points)

    is_equal = np.allclose(run_head(np.arange(K))[:, :, order], run_head(order), atol=1e-5)
    assert is_equal == (kind in ("uniform", "self_only"))


def coordinate_gradients(model, **train):
    """Names of trained parameters, updated statistics, all parameters and all statistics."""
    graphdef, params, batch_stats = split_weights(model)

    @jax.jit
    def gradients_of(params):
        def loss(params):
            model = merge_weights(graphdef, params, batch_stats)
            output = model(IMAGES, **train)
            true = jnp.full((B, K, 2), 11.0)
            visible = jnp.ones((B, K), bool)
            return losses.l1(output.landmarks, true, visible), batch_stats_of(model)

        return jax.grad(loss, has_aux=True)(params)

    gradients, new_stats = gradients_of(params)
    trained = {name for name, gradient in gradients.items() if np.any(gradient)}
    updated = {name for name in new_stats if not np.array_equal(new_stats[name], batch_stats[name])}
    return trained, updated, gradients.keys(), new_stats.keys()


def part(names, prefix):
    return {name for name in names if name.startswith(f"{prefix}.")}


def test_frozen_heatmap_model_has_no_gradient_and_keeps_its_statistics(toy):
    model = make(config_of("soft"))
    trained, updated, _, stats = coordinate_gradients(model, train_graph=True)
    assert not part(trained, "heatmap_model")
    assert part(trained, "graph")
    assert updated == part(stats, "graph")


def test_joint_training_trains_the_heatmap_model_by_coordinates(toy):
    model = make(config_of("soft"))
    trained, updated, params, stats = coordinate_gradients(
        model, train_heatmap=True, train_graph=True
    )
    assert part(params, "heatmap_model.first") <= trained
    assert updated == stats


@pytest.mark.parametrize("level", [0, 100, 255])
def test_images_are_normalized_by_imagenet_mean_and_std(level):
    pixel = normalize_images(jnp.full((1, 1, 1, 3), level, jnp.uint8))[0, 0, 0]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(pixel, (level / 255 - mean) / std, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": "dark"}, r"model: unknown field 'decoder'; did you mean 'decode'"),
        ({"decode": "mean"}, r"model\.decode: got 'mean'; expected one of argmax"),
        (
            {"heatmap": {"name": "resnet"}},
            r"model\.heatmap\.name: no heatmap model 'resnet'.*hrnet",
        ),
        ({"heatmap": {"name": "toy", "widths": 4}}, r"model\.heatmap: .*'widths'.*'width'"),
        ({"heatmap": {"name": "hrnet", "archs": "w18"}}, r"model\.heatmap: .*'archs'.*'arch'"),
        (
            {"heatmap": {"name": "hrnet", "arch": "w19"}},
            r"arch: got 'w19'; expected one of w18",
        ),
        ({"graph": {"conectivity": "uniform"}}, r"model\.graph: .*did you mean 'connectivity'"),
    ],
)
def test_invalid_configuration_is_an_error(toy, change, message):
    with pytest.raises(InputError, match=message):
        create_model(config_of() | change, K, rngs=nnx.Rngs(0))


def test_registered_model_receives_its_options(toy):
    model = make(config_of() | {"heatmap": {"name": "toy", "width": 12}})
    assert isinstance(model.heatmap_model, toy)
    assert model.heatmap_model.first.conv.kernel.shape == (3, 3, 3, 12)


def test_unknown_activation_of_a_registered_model_is_an_error(toy, monkeypatch):
    class Tanh(toy):
        activation = "tanh"

    monkeypatch.setitem(registry._HEATMAP_MODELS, "tanh", Tanh)
    with pytest.raises(InputError, match="has the activation 'tanh'; use one of sigmoid, linear"):
        make(config_of() | {"heatmap": {"name": "tanh"}})


def test_function_can_be_registered(toy):
    def wide_toy(num_landmarks, *, factor=2, bn_momentum, dtype, rngs):
        return toy(num_landmarks, width=8 * factor, bn_momentum=bn_momentum, dtype=dtype, rngs=rngs)

    register_heatmap_model("wide_toy", wide_toy)
    model = make(config_of() | {"heatmap": {"name": "wide_toy", "factor": 3}})
    assert model.heatmap_model.first.conv.kernel.shape == (3, 3, 3, 24)


def test_name_of_another_model_cannot_be_registered(toy):
    def other(**options):
        return toy(**options)

    for factory in (other, lambda **options: toy(**options)):
        with pytest.raises(ValueError, match="'toy'"):
            register_heatmap_model("toy", factory)
        with pytest.raises(ValueError, match="'hrnet'"):
            register_heatmap_model("hrnet", factory)
    assert registry._HEATMAP_MODELS["toy"] is toy


@pytest.mark.usefixtures("toy")
def test_definition_that_is_executed_again_replaces_the_former():
    classes = []
    for _ in range(2):
        exec("class Mine: pass", scope := {"__name__": "notebook"})
        register_heatmap_model("mine", scope["Mine"])
        classes.append(scope["Mine"])
    assert registry._HEATMAP_MODELS["mine"] is classes[1] is not classes[0]


def test_selected_landmarks_have_the_edges_between_them():
    rng = np.random.default_rng(0)
    shapes = {
        "heatmap_logits": (B, 4, 4, K), "heatmap_landmarks": (B, K, 2), "confidence": (B, K),
        "edges": (B, K, K), "landmarks": (B, K, 2), "stages": (B, 3, K, 2), "heatmap_std": (B, K),
        "visibility": (B, K), "visibility_logits": (B, K, 2),
    }  # fmt: skip
    output = LCGCNOutput(**{name: rng.normal(size=shape) for name, shape in shapes.items()})
    rows = (4, 0, 1)
    selected = output.take(rows)
    assert selected.heatmap_logits.shape == (B, 4, 4, 3)
    for name in ("confidence", "heatmap_std", "visibility"):
        np.testing.assert_array_equal(getattr(selected, name), getattr(output, name)[:, rows])
    for name in ("landmarks", "heatmap_landmarks", "visibility_logits"):
        np.testing.assert_array_equal(getattr(selected, name), getattr(output, name)[:, rows])
    np.testing.assert_array_equal(selected.stages, output.stages[:, :, rows])
    np.testing.assert_array_equal(selected.edges[:, 1, 2], output.edges[:, 0, 1])
    assert dataclasses.replace(output, edges=None, stages=None).take(rows).edges is None
    assert output.take(None) is output

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax import losses
from lcgcn_jax.errors import InputError
from lcgcn_jax.heatmaps import DECODERS
from lcgcn_jax.models import connectivity, lcgcn, registry
from lcgcn_jax.models.layers import NORMS
from lcgcn_jax.models.lcgcn import GraphConfig, GraphHead, LCGCNOutput, normalize_images
from lcgcn_jax.models.registry import create_model, register_heatmap_model
from lcgcn_jax.models.weights import batch_stats_of, merge_weights, split_weights

B, K, SIZE = 2, 5, 32
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(B, SIZE, SIZE, 3)), jnp.float32)
NARROW = {"embedding_widths": [7, 3], "class_widths": [4, 2], "gcn_widths": [6, 2]}
CHOICES = {
    "connectivity": connectivity.KINDS,
    "diagonal": connectivity.DIAGONALS,
    "message": lcgcn.MESSAGES,
    "output": lcgcn.OUTPUTS,
    "sampling": lcgcn.SAMPLINGS,
    "positions": lcgcn.POSITIONS,
    "shape_features": lcgcn.SHAPE_FEATURES,
    "activation": lcgcn.ACTIVATIONS,
    "norm": NORMS,
    "mlp_output": lcgcn.MLP_OUTPUTS,
}


def config_of(decode="argmax", **graph):
    return {
        "heatmap": {"name": "toy"},
        "decode": decode,
        "graph": NARROW | graph,
        "bn_momentum": 0.9,
    }


def make(config):
    return nnx.jit(lambda: create_model(config, K, rngs=nnx.Rngs(0)))()


def run(model, **train):
    return nnx.jit(lambda model: model(IMAGES, **train))(model)


@pytest.mark.parametrize(
    ("field", "value"),
    # The first: all defaults.
    [("connectivity", GraphConfig.connectivity), ("refinements", 2), ("shape_refiner", True)]
    + [(f, v) for f, values in CHOICES.items() for v in values if v != getattr(GraphConfig, f)],
)
def test_every_option_gives_landmarks_and_edges(toy, field, value):
    @nnx.jit
    def create_and_run():
        model = create_model(config_of("soft", **{field: value}), K, rngs=nnx.Rngs(0))
        return model(IMAGES, train_graph=True)

    output = create_and_run()
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
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(output))


def test_a_graph_is_chosen_by_name_and_an_older_config_without_one_is_the_papers(toy):
    sizes = {"width": 8, "blocks": 1, "fine_steps": 2}
    dag = make(config_of() | {"graph": {"name": "dag", **sizes}})
    assert run(dag).stages.shape == (B, 3, K, 2)
    assert isinstance(make(config_of()).graph, GraphHead)
    assert isinstance(make(config_of(name="lcgcn")).graph, GraphHead)
    with pytest.raises(InputError, match=r"no graph 'cascade'; there are lcgcn, dag"):
        make(config_of(name="cascade"))
    with pytest.raises(InputError, match=r"model\.graph: unknown field 'message'"):
        make(config_of() | {"graph": {"name": "dag", "message": "paper"}})


def test_the_options_tested_are_all_there_are():
    free = {"embedding_widths", "class_widths", "edge_widths", "gcn_widths", "pair_width"}
    free |= {"refinements", "shape_refiner"}
    free |= {"edge_inputs", "gate", "visibility_gradient"}  # tests/models/test_visibility.py
    assert {f.name for f in dataclasses.fields(GraphConfig)} - free == set(CHOICES)


@pytest.mark.parametrize("field", CHOICES)
def test_values_that_are_not_there_are_refused_by_name(toy, field):
    with pytest.raises(InputError, match=rf"model\.graph\.{field}: 'other' is not available"):
        create_model(config_of(**{field: "other"}), K, rngs=nnx.Rngs(0))


def test_the_last_block_must_give_coordinates():
    with pytest.raises(ValueError, match="gcn_widths"):
        GraphConfig(gcn_widths=(8, 3))


@pytest.mark.parametrize("decode", DECODERS)
def test_a_residual_graph_starts_at_the_heatmap_landmarks(toy, decode):
    output = run(make(config_of(decode, output="residual")))
    np.testing.assert_allclose(output.landmarks, output.heatmap_landmarks, atol=1e-5)
    assert np.ptp(output.landmarks) > 1


@pytest.mark.parametrize("output", lcgcn.OUTPUTS)
def test_coordinates_are_parts_of_the_crop_from_its_edge(toy, output):
    model = make(config_of(output=output))
    last = model.graph.blocks[-1]
    for param in (last.own, last.neighbor, last.shape):
        param.set_value(jnp.zeros_like(param[...]))
    last.bias.set_value(jnp.array([0.25, 0.5]))
    said = run(model)
    # From the edge of the crop, at -0.5, or from the heatmap's landmarks.
    start = -0.5 if output == "absolute" else np.asarray(said.heatmap_landmarks)
    expected = np.broadcast_to(start + np.array([0.25, 0.5]) * SIZE, (B, K, 2))
    np.testing.assert_allclose(said.landmarks, expected, atol=1e-4)


def test_heatmap_landmarks_are_the_peaks_in_crop_pixels(toy):
    output = run(make(config_of()))
    flat = np.asarray(output.heatmap_logits).reshape(B, -1, K)
    y, x = np.divmod(flat.argmax(axis=1), SIZE // 4)
    np.testing.assert_array_equal(output.heatmap_landmarks, np.stack([x, y], -1) * 4 + 1.5)
    np.testing.assert_allclose(output.confidence, jax.nn.sigmoid(flat.max(axis=1)), rtol=1e-6)


@pytest.mark.parametrize("origin", [0, 2.5])
def test_the_origin_moves_the_peaks_and_not_what_lies_at_them(toy, origin):
    config = config_of("dark", output="residual", sampling="bilinear")
    model, moved = make(config), make(config | {"heatmap_offset": origin})
    assert (model.heatmap_offset, moved.heatmap_offset) == (1.5, origin)
    plain, other = run(model), run(moved)
    np.testing.assert_allclose(
        other.heatmap_landmarks, plain.heatmap_landmarks + (origin - 1.5), atol=1e-5
    )
    np.testing.assert_allclose(other.landmarks, plain.landmarks + (origin - 1.5), atol=1e-5)
    np.testing.assert_array_equal(other.edges, plain.edges)


@pytest.mark.parametrize("origin", ["corner", True, float("nan"), [1.5, 1.5]])
def test_an_origin_that_is_no_number_is_refused(toy, origin):
    with pytest.raises(InputError, match=r"model\.heatmap_offset: .* is no place in pixels"):
        create_model(config_of() | {"heatmap_offset": origin}, K, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("origin", [None, 2.0])
def test_corner_positions_are_cells_in_and_pixels_out(toy, monkeypatch, origin):
    """Over the side of the map and of the crop, wherever the cells lie."""
    model = make(config_of(positions="corner") | {"heatmap_offset": origin})
    seen = []
    monkeypatch.setattr(
        GraphHead,
        "__call__",
        lambda self, positions, *_, **__: (seen.append(positions), (positions[:, None] / 2, None))[
            1
        ],
    )
    output = model(IMAGES)
    cells = (output.heatmap_landmarks - model.heatmap_offset) / 4
    np.testing.assert_allclose(seen[0], cells / (SIZE // 4), atol=1e-6)
    np.testing.assert_allclose(output.landmarks, 4 * cells / 2, atol=1e-5)


def test_corner_positions_have_no_residual():
    with pytest.raises(ValueError, match="'corner' is for absolute coordinates"):
        GraphConfig(positions="corner", output="residual")


def test_without_a_graph_the_landmarks_are_the_heatmaps(toy):
    output = run(make(config_of() | {"graph": None}))
    assert output.edges is None
    np.testing.assert_array_equal(output.landmarks, output.heatmap_landmarks)


def test_images_are_judged_one_by_one_in_evaluation(toy):
    model = make(config_of("dark"))
    alone = nnx.jit(lambda model: model(IMAGES[1:]))(model)
    np.testing.assert_allclose(run(model).landmarks[1:], alone.landmarks, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", connectivity.KINDS)
def test_the_order_of_the_landmarks_matters_only_to_learned_edges(kind):
    config = GraphConfig(connectivity=kind, norm="none")
    head = nnx.jit(lambda: GraphHead(config, K, 6, bn_momentum=0.9, rngs=nnx.Rngs(0)))()
    if kind == "learned_static":  # they start uniform
        head.connectivity.logits.set_value(jnp.eye(K) + jnp.arange(K, dtype=jnp.float32)[None])
    rng, order = np.random.default_rng(1), np.array([3, 0, 4, 1, 2])
    inputs = [rng.uniform(size=(B, K, *rest)).astype(np.float32) for rest in ((2,), (), (6,))]
    plain, _ = head(*map(jnp.asarray, inputs), train=False)
    moved, _ = head(*(jnp.asarray(x[:, order]) for x in inputs), train=False)
    same = np.allclose(plain[:, :, order], moved, atol=1e-5)
    assert same == (kind in ("uniform", "self_only"))


def coordinate_gradients(model, **train):
    """Gradients of the coordinate loss by parameter, and the batch statistics after the step."""
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

    gradients, after = gradients_of(params)
    touched = {name for name, gradient in gradients.items() if np.any(gradient)}
    updated = {name for name in after if not np.array_equal(after[name], batch_stats[name])}
    return touched, updated, gradients.keys(), after.keys()


def part(names, of):
    return {name for name in names if name.startswith(f"{of}.")}


def test_a_frozen_heatmap_model_gets_no_gradient_and_keeps_its_statistics(toy):
    model = make(config_of("soft"))
    touched, updated, _, stats = coordinate_gradients(model, train_graph=True)
    assert not part(touched, "heatmap_model")
    assert part(touched, "graph")
    assert updated == part(stats, "graph")


def test_trained_jointly_the_coordinates_reach_the_heatmap_model(toy):
    model = make(config_of("soft"))
    touched, updated, params, stats = coordinate_gradients(
        model, train_heatmap=True, train_graph=True
    )
    assert part(params, "heatmap_model.first") <= touched
    assert updated == stats


@pytest.mark.parametrize("level", [0, 100, 255])
def test_images_are_normalized_by_imagenet_mean_and_deviation(level):
    pixel = normalize_images(jnp.full((1, 1, 1, 3), level, jnp.uint8))[0, 0, 0]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(pixel, (level / 255 - mean) / std, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": "dark"}, r"model: unknown field 'decoder'; did you mean 'decode'"),
        ({"decode": "mean"}, r"model\.decode: 'mean' is not available; use one of argmax"),
        (
            {"heatmap": {"name": "resnet"}},
            r"model\.heatmap\.name: no heatmap model 'resnet'.*hrnet",
        ),
        ({"heatmap": {"name": "toy", "widths": 4}}, r"model\.heatmap: .*'widths'.*'width'"),
        ({"heatmap": {"name": "hrnet", "archs": "w18"}}, r"model\.heatmap: .*'archs'.*'arch'"),
        ({"heatmap": {"name": "hrnet", "arch": "w19"}}, r"unknown HRNet 'w19'; use one of w18"),
        ({"graph": {"conectivity": "uniform"}}, r"model\.graph: .*did you mean 'connectivity'"),
    ],
)
def test_mistakes_in_a_configuration_are_named(toy, change, message):
    with pytest.raises(InputError, match=message):
        create_model(config_of() | change, K, rngs=nnx.Rngs(0))


def test_a_registered_model_gets_its_options(toy):
    model = make(config_of() | {"heatmap": {"name": "toy", "width": 12}})
    assert isinstance(model.heatmap_model, toy)
    assert model.heatmap_model.first.conv.kernel.shape == (3, 3, 3, 12)


def test_a_function_can_be_registered(toy):
    def wide_toy(num_landmarks, *, factor=2, bn_momentum, dtype, rngs):
        return toy(num_landmarks, width=8 * factor, bn_momentum=bn_momentum, dtype=dtype, rngs=rngs)

    register_heatmap_model("wide_toy", wide_toy)
    model = make(config_of() | {"heatmap": {"name": "wide_toy", "factor": 3}})
    assert model.heatmap_model.first.conv.kernel.shape == (3, 3, 3, 24)


def test_a_name_is_registered_once(toy):
    with pytest.raises(ValueError, match="'toy'"):
        register_heatmap_model("toy", toy)
    assert registry._HEATMAP_MODELS["toy"] is toy

"""Visibility head: with every graph, in edge weights and gates, and off by default."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax import losses
from lcgcn_jax.errors import InputError
from lcgcn_jax.fields import constraints_of
from lcgcn_jax.interop.torch_weights import export_weights
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models import connectivity
from lcgcn_jax.models.config import GraphConfig, VisibilityConfig
from lcgcn_jax.models.registry import create_model
from lcgcn_jax.models.visibility import log_probabilities
from lcgcn_jax.models.weights import merge_weights, split_weights

B, K, SIZE = 2, 5, 32
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(B, SIZE, SIZE, 3)), jnp.float32)
CONFIDENCE = jnp.asarray(RNG.uniform(0.1, 0.9, (B, K)), jnp.float32)
LOGIT = jnp.asarray(3 * RNG.normal(size=(B, K)), jnp.float32)
NARROW = {"embedding_widths": [7, 3], "class_widths": [4, 2], "gcn_widths": [6, 2]}
GRAPHS = {
    "paper": {},
    "refinements": {"refinements": 1, "message": "offset_votes"},
    "static": {"connectivity": "learned_static", "gate": "visibility"},
    "uniform": {"connectivity": "uniform", "gate": "visibility"},
    "self_only": {"connectivity": "self_only", "gate": "visibility"},
    "edges": {"edge_inputs": "visibility"},
    "edges and gate": {"edge_inputs": "both", "gate": "visibility", "message": "offset_votes"},
    "cascade": {"name": "dag", "width": 8, "blocks": 1, "fine_steps": 2},
}


def config_of(head="attention", **graph):
    narrow = {} if graph.get("name") == "dag" else NARROW
    return {
        "heatmap": {"name": "toy"},
        "decode": "soft",
        "graph": narrow | graph,
        "visibility": {"head": head, "width": 8},
        "bn_momentum": 0.9,
    }


def make(config):
    return create_model(config, K, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("head", constraints_of(VisibilityConfig)["head"].choices[1:])
@pytest.mark.parametrize(
    "graph",
    [
        graph if graph == "paper" else pytest.param(graph, marks=pytest.mark.slow)
        for graph in GRAPHS
    ],
)
def test_every_graph_outputs_probabilities(toy, graph, head):
    if head == "local" and graph not in ("paper", "cascade"):
        pytest.skip("the graph does not depend on the kind of head")
    model = make(config_of(head, **GRAPHS[graph]))

    @nnx.jit
    def run(model):
        output = model(IMAGES, train_graph=True)
        _, graph_inputs = model.detect(IMAGES)
        return model(IMAGES), model.refine(graph_inputs, SIZE), output

    whole, refined, training = run(model)
    for output in (whole, refined, training):
        assert output.visibility.shape == (B, K)
        assert output.visibility_logits.shape == (B, K, 2)
        assert ((output.visibility > 0) & (output.visibility < 1)).all()
        assert np.isfinite(output.landmarks).all()
        np.testing.assert_allclose(output.edges.sum(axis=-1), 1.0, rtol=1e-4)
    for name in ("visibility", "landmarks", "edges", "heatmap_std"):
        np.testing.assert_allclose(getattr(whole, name), getattr(refined, name), atol=1e-4)
    # Initial probabilities are near the prior.
    np.testing.assert_allclose(whole.visibility, 0.88, atol=0.03)


def test_class_probabilities_match_the_binary_decisions():
    logits = jnp.asarray(RNG.normal(size=(B, K, 2)), jnp.float32)
    p = np.exp(log_probabilities(logits))
    np.testing.assert_allclose(p.sum(axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(p[..., 0], jax.nn.sigmoid(logits[..., 0]), rtol=1e-5)
    np.testing.assert_allclose(
        p[..., 1] / (p[..., 1] + p[..., 2]), jax.nn.sigmoid(logits[..., 1]), rtol=1e-4
    )


def test_head_is_off_by_default_and_does_not_change_other_outputs(toy):
    config = config_of()
    no_field = {name: value for name, value in config.items() if name != "visibility"}
    plain, off, on = (make(c) for c in (no_field, config_of("none"), config))
    weights = [split_weights(model)[1] for model in (plain, off, on)]
    assert weights[0].keys() == weights[1].keys()
    assert not any(name.startswith("visibility") for name in weights[0])
    assert {n for n in weights[2] if n not in weights[0]} == {
        n for n in weights[2] if n.startswith("visibility.")
    }
    for name, value in weights[0].items():
        for other in weights[1:]:
            np.testing.assert_array_equal(value, other[name])

    @nnx.jit
    def run(model):
        return model(IMAGES)

    outputs = [run(model) for model in (plain, on)]
    assert outputs[0].visibility is outputs[0].visibility_logits is None
    for name in ("landmarks", "edges", "confidence", "heatmap_std"):
        np.testing.assert_allclose(*(getattr(o, name) for o in outputs), atol=1e-5)


@pytest.mark.parametrize("inputs", constraints_of(GraphConfig)["edge_inputs"].choices)
def test_edges_depend_only_on_their_inputs(inputs):
    edges = connectivity.PerImageEdges(
        K, class_widths=(4, 2), edge_widths=(6,), diagonal="learned", norm="none", inputs=inputs,
        bn_momentum=0.9, rngs=nnx.Rngs(0),
    )  # fmt: skip

    def changes(confidence, logit):
        edge = edges(CONFIDENCE, LOGIT, train=False)
        return not np.allclose(edge, edges(confidence, logit, train=False), atol=1e-4)

    assert changes(CONFIDENCE * 0.1, LOGIT) == (inputs != "visibility")
    assert changes(CONFIDENCE, -LOGIT) == (inputs != "confidence")


def test_gate_scales_messages_by_the_visibility_of_the_source():
    edges = jax.nn.softmax(jnp.asarray(RNG.normal(size=(B, K, K)), jnp.float32))
    gated = np.asarray(connectivity.VisibilityGate()(edges, LOGIT))
    weights = np.asarray(edges, np.float64) * (1 / (1 + np.exp(-np.asarray(LOGIT))))[:, None, :]
    np.testing.assert_allclose(gated, weights / weights.sum(axis=-1, keepdims=True), rtol=1e-3)
    hidden = np.asarray(connectivity.VisibilityGate()(edges, jnp.full((B, K), -1e4)))
    np.testing.assert_allclose(hidden, edges, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("visibility_gradient", [False, True])
def test_coordinate_loss_trains_the_head_only_with_visibility_gradient(toy, visibility_gradient):
    config = config_of(
        edge_inputs="both", gate="visibility", norm="none", visibility_gradient=visibility_gradient
    )
    graphdef, params, stats = split_weights(make(config))

    @jax.jit
    def gradient(params):
        def loss(params):
            output = merge_weights(graphdef, params, stats)(IMAGES)
            return losses.l1(output.stages[:, -1], jnp.zeros((B, K, 2)), jnp.ones((B, K), bool))

        return jax.grad(loss)(params)

    gradients = gradient(params)
    has_gradient = any(np.any(g) for name, g in gradients.items() if name.startswith("visibility."))
    assert has_gradient == visibility_gradient
    assert np.any(gradients["graph.gate.exponent"])


def test_visibility_loss_trains_features_but_not_heatmaps(toy):
    graphdef, params, stats = split_weights(make(config_of()))

    @jax.jit
    def gradient(params):
        def loss(params):
            output = merge_weights(graphdef, params, stats)(IMAGES)
            labels = jnp.zeros((B, K), jnp.int8)
            return losses.masked_cross_entropy(
                log_probabilities(output.visibility_logits), labels, (1.0, 1.0, 1.0)
            )

        return jax.grad(loss)(params)

    params = params | {
        "visibility.output.kernel": jnp.asarray(RNG.normal(size=(8, 2)), jnp.float32)
    }
    gradients = gradient(params)
    assert np.any(gradients["visibility.visual.kernel"])
    # In the last convolution of the toy model, the first 6 channels are features, the others logits.
    last = np.asarray(gradients["heatmap_model.second.bn.bias"])
    assert last[:6].any()
    assert not last[6:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph": None}, r"model\.visibility\.head: 'attention' needs a graph"),
        ({"visibility": {"head": "deep"}}, r"model\.visibility\.head: got 'deep'; expected"),
        ({"visibility": {"heads": 4}}, r"model\.visibility: unknown field 'heads'"),
        (
            {"visibility": {"head": "none"}, "graph": NARROW | {"gate": "visibility"}},
            r"needs a visibility head; set model\.visibility\.head",
        ),
        (
            {"graph": NARROW | {"edge_inputs": "both", "connectivity": "learned_static"}},
            r"edge_inputs: 'both' needs the connectivity 'learned_per_image'",
        ),
        ({"graph": NARROW | {"gate": "both"}}, r"model\.graph\.gate: got 'both'; expected"),
        (
            {"graph": {"name": "dag", "gate": "visibility"}},
            r"model\.graph: unknown field 'gate'",
        ),
    ],
)
def test_incompatible_options_are_a_one_line_error(toy, change, message):
    with pytest.raises(InputError, match=message) as error:
        create_model(config_of() | change, K, rngs=nnx.Rngs(0))
    assert "\n" not in str(error.value)


def test_bundle_without_graph_has_no_visibility_head(toy, random_bundle):
    scheme = LandmarkScheme.from_dict({"name": "five", "num_landmarks": K})
    bundle = random_bundle(config_of(), scheme, SIZE)
    assert bundle.has_visibility
    heatmap_only = bundle.without_graph()
    assert not heatmap_only.has_visibility
    params = bundle.create().params
    assert set(heatmap_only.create().params) == {n for n in heatmap_only.weights if n in params}
    assert not dataclasses.replace(bundle, model=heatmap_only.model).has_visibility


def test_visibility_head_cannot_be_exported_to_the_authors_code(random_bundle):
    scheme = LandmarkScheme.from_dict({"name": "five", "num_landmarks": K})
    model = config_of() | {
        "heatmap": {"name": "hrnet", "arch": "tiny"},
        "graph": dataclasses.asdict(GraphConfig.authors()),
    }
    bundle = random_bundle(model, scheme, SIZE)
    with pytest.raises(InputError, match=r"a visibility head.*--heatmap-only"):
        export_weights(bundle, graph=True, source="m")
    assert export_weights(bundle.without_graph(), graph=False, source="m")

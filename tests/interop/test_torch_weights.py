"""Parity of imported and exported weights with the public PyTorch code (../shared/parity)."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax.errors import InputError
from lcgcn_jax.interop import torch_weights
from lcgcn_jax.interop.torch_weights import export_weights, import_weights
from lcgcn_jax.landmarks import IBUG68, WFLW98
from lcgcn_jax.models.interfaces import GraphFeatures
from lcgcn_jax.models.weights import merge_weights


def imported(state, arch="w18", scheme=WFLW98, **graph):
    bundle, mapped = import_weights(state, arch, scheme, source="weights.pth", **graph)
    fields = {"code": mapped.code, "initialized": mapped.initialized, "unused": mapped.unused}
    return types.SimpleNamespace(bundle=bundle, **fields)


def relative_error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.fixture(scope="module")
def face(hrnet98):
    return imported(hrnet98)


@pytest.fixture(scope="module")
def lcgcn(hrnet98, graph98):
    return imported(hrnet98, graph_state=graph98, graph_source="graph.pth")


@pytest.mark.slow
def test_hrnet_has_the_outputs_of_the_public_code(face, parity):
    graphdef, params, batch_stats = face.bundle.create()

    @jax.jit
    def forward(images):
        hrnet = merge_weights(graphdef, params, batch_stats).heatmap_model
        logits, concat = hrnet(images, train=False)
        head = jax.nn.relu(hrnet.head_bn(hrnet.head_conv(concat), train=False))
        return logits[0, ::2, ::2], concat[0, ::8, ::8], head[0, ::8, ::8]

    image = parity.normal("image", (1, 3, 256, 256)).transpose(0, 2, 3, 1)
    theirs = parity.outputs("hrnet_face_98")
    names = ("heatmap_logits", "concat_features", "head_features")
    errors = {
        name: relative_error(np.asarray(ours), np.reshape(theirs[name], ours.shape))
        for name, ours in zip(names, forward(jnp.asarray(image)), strict=True)
    }
    assert max(errors.values()) < 1e-5, errors


def head_inputs(parity):
    """Positions, confidences and visual features of 98 landmarks."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    return (
        sigmoid(parity.normal("positions", (98, 2))),
        sigmoid(parity.normal("confidences", (98, 1)))[:, 0],
        parity.normal("visual_features", (98, 270)),
    )


def our_head(result, inputs):
    graphdef, params, batch_stats = result.bundle.create()
    head = merge_weights(graphdef, params, batch_stats).graph
    positions, confidence, features = (jnp.asarray(x)[None] for x in inputs)
    coordinates, edges = head(positions, confidence, GraphFeatures(points=features), train=False)
    return np.asarray(edges[0]), np.asarray(coordinates[0, 0])


def their_head(state, positions, confidences, features):
    """Authors' head in float64, pair by pair, from the description in the README of the parity folder."""
    state = {key: np.float64(value) for key, value in state.items()}
    k = len(positions)

    def layer(name, x, norm=True):
        x = np.maximum(x @ state[f"{name}.linear.weight"].T + state[f"{name}.linear.bias"], 0)
        if not norm:
            return x
        mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        scaled = (x - mean) / np.sqrt(var + 1e-5)
        return scaled * state[f"{name}.bn.weight"] + state[f"{name}.bn.bias"]

    logits = np.zeros((k, k))
    for i, j in np.ndindex(k, k):
        if i != j:
            pair = np.zeros(2 * k)
            pair[[i, k + j]] = 1
            classes = layer("class_embedding.hidden_layers.0", pair)
            classes = layer("class_embedding.out", classes, norm=False)
            edge = layer("edges.linear", np.array([confidences[i], confidences[j], *classes]))
            logits[i, j] = layer("edges.out", edge)[0]
    edges = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for i in range(3):
        features = layer(f"visual_feature_embedding.hidden_layers.{i}", features)
    features = layer("visual_feature_embedding.out", features, norm=False)
    nodes = np.concatenate([positions, features], axis=1)
    for block, shaped in enumerate((True, False, True)):
        w1, w2 = (state[f"gcn_layers.{block}.{w}"] for w in ("w1", "w2"))
        out = nodes @ w2.T
        for i in range(k):
            messages = [nodes, positions[i] - positions] if shaped else [nodes]
            out[i] += edges[i] @ (np.concatenate(messages, axis=1) @ w1.T)
        nodes = out
    return edges, nodes


@pytest.mark.slow
def test_graph_head_has_the_outputs_of_the_authors_code(lcgcn, parity):
    edges, coordinates = our_head(lcgcn, head_inputs(parity))
    theirs = parity.outputs("lcgcn_head_98")
    assert relative_error(edges, theirs["edges"]) < 1e-5
    assert relative_error(coordinates, theirs["coordinates"]) < 1e-5


@pytest.mark.slow
def test_graph_head_with_unequal_edges_agrees_with_its_description(hrnet98, graph98, parity):
    """In the stored outputs, the last ReLU of the edges is 0 for every pair, so all edges are equal."""
    inputs, theirs = head_inputs(parity), parity.outputs("lcgcn_head_98")
    plain, _ = their_head(graph98, *inputs)
    assert relative_error(plain, theirs["edges"]) < 1e-5

    rng = np.random.default_rng(2)
    graph = graph98 | {
        key: rng.normal(size=value.shape).astype(np.float32)
        for key, value in graph98.items()
        if key.startswith(("edges.", "class_embedding.")) and "running" not in key
    }
    expected_edges, expected_coordinates = their_head(graph, *inputs)
    assert np.ptp(expected_edges[~np.eye(98, dtype=bool)]) > 0.01
    # Not symmetric, so that the order of a pair matters.
    assert relative_error(expected_edges, expected_edges.T) > 0.1
    result = imported(hrnet98, graph_state=graph, graph_source="graph.pth")
    edges, coordinates = our_head(result, inputs)
    assert relative_error(edges, expected_edges) < 1e-5
    assert relative_error(coordinates, expected_coordinates) < 1e-5


@pytest.mark.slow
def test_configuration_of_imported_bundles(face, lcgcn):
    assert face.code == "HRNet-Facial-Landmark-Detection"
    assert (face.bundle.model["decode"], face.bundle.model["graph"]) == ("quarter", None)
    assert (face.bundle.scheme, face.bundle.image_size) == (WFLW98, 256)
    assert lcgcn.bundle.model["decode"] == "argmax"
    assert lcgcn.bundle.model["graph"]["authors_conventions"]
    assert face.bundle.model["heatmap_offset"] == 2.5
    assert lcgcn.bundle.model["heatmap_offset"] == 2.0
    for result in (face, lcgcn):
        assert not result.initialized
        assert not result.unused


# Prefixes of the keys, by those of HRNet-Facial-Landmark-Detection.
MMPOSE_0 = {"head.": "keypoint_head.final_layer."}
MMPOSE_1 = {"head.3.": "head.final_layer.", "head.": "head.conv_layers."}


def renamed(state, starts, backbone):
    names = {}
    for key in state:
        start = next((s for s in starts if key.startswith(s)), None)
        names[key] = backbone + key if start is None else starts[start] + key.removeprefix(start)
    return {names[key]: value for key, value in state.items()}


def assert_same_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(("starts", "code"), [(MMPOSE_0, "mmpose 0.x"), (MMPOSE_1, "mmpose 1.x")])
def test_import_of_mmpose_layouts(face, hrnet98, starts, code, prefix):
    state = {prefix + k: v for k, v in renamed(hrnet98, starts, "backbone.").items()}
    keys = {key.removeprefix(prefix) for key in state}
    assert "backbone.stage4.2.fuse_layers.3.2.0.1.running_var" in keys
    last = {"mmpose 0.x": "keypoint_head.final_layer.3.bias", "mmpose 1.x": "head.final_layer.bias"}
    assert last[code] in keys
    result = imported(state)
    assert result.code == code
    assert result.bundle.model["heatmap_offset"] == 0.0
    assert_same_weights(result.bundle.weights, face.bundle.weights)


@pytest.mark.parametrize("prefixes", [("hm_model.", "gcn_model."), ("", ""), ("backbone.", "")])
def test_import_of_graph_and_heatmap_model_in_one_file(lcgcn, hrnet98, graph98, prefixes):
    state = {prefixes[0] + key: value for key, value in hrnet98.items()}
    state |= {prefixes[1] + key: value for key, value in graph98.items()}
    result = imported(state)
    assert result.bundle.model == lcgcn.bundle.model
    assert_same_weights(result.bundle.weights, lcgcn.bundle.weights)


def classifier():
    ones = np.ones(3, np.float32)
    keys = (
        "incre_modules.0.0.conv1.weight",
        "downsamp_modules.0.0.bias",
        "final_layer.0.weight",
        "classifier.weight",
    )
    return dict.fromkeys(keys, ones)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [{}, classifier()])
def test_import_of_an_imagenet_backbone_has_a_fresh_head(face, hrnet98, extra):
    backbone = {key: value for key, value in hrnet98.items() if not key.startswith("head.")}
    result = imported(backbone | extra)
    assert result.code == "HRNet for ImageNet"
    assert result.bundle.model["heatmap_offset"] is None
    assert set(result.unused) == set(extra)
    head = {name for name in face.bundle.weights if name.startswith("heatmap_model.head_")}
    assert set(result.initialized) == head
    assert result.bundle.weights.keys() == face.bundle.weights.keys()
    for name in face.bundle.weights.keys() - head:
        np.testing.assert_array_equal(result.bundle.weights[name], face.bundle.weights[name])
    assert 0 < np.std(result.bundle.weights["heatmap_model.head_out.kernel"]) < 0.01
    assert (result.bundle.weights["heatmap_model.head_bn.var"] == 1).all()


def rejection(state, **graph):
    with pytest.raises(InputError) as error:
        imported(state, **graph)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unknown_missing_and_misshapen_keys_are_listed(hrnet98):
    state = dict(hrnet98)
    missing = [key for key in state if key.startswith("stage3.1.branches.2.0.")]
    for key in missing:
        del state[key]
    state["bn1.weight"] = np.ones(63, np.float32)
    state |= {"extra.a": np.ones(1, np.float32), "incre_modules.b": np.ones(1, np.float32)}
    message = rejection(state)
    assert message.startswith(f"weights.pth: {len(missing) + 3} keys do not fit the model")
    assert "2 unknown: extra.a, incre_modules.b;" in message
    assert f"{len(missing)} missing: {', '.join(sorted(missing))};" in message
    assert message.endswith("1 of the wrong shape: bn1.weight (63,) instead of (64,)")


@pytest.mark.parametrize("key", ["conv1.weight", "head.0.weight", "transition3.3.0.1.bias"])
def test_one_missing_key_is_rejected(hrnet98, key):
    state = {k: v for k, v in hrnet98.items() if k != key}
    assert f"1 keys do not fit the model; 1 missing: {key}" in rejection(state)


@pytest.mark.slow
def test_incomplete_head_is_rejected(hrnet98):
    state = {key: value for key, value in hrnet98.items() if not key.startswith("head.3")}
    assert "6 unknown: head.0.bias, head.0.weight" in rejection(state)


def test_graph_head_that_does_not_fit_is_rejected(hrnet98, graph98):
    where = {"graph_source": "graph.pth"}
    incomplete = {k: v for k, v in graph98.items() if k != "gcn_layers.1.w2"}
    assert "graph.pth: " in rejection(hrnet98, graph_state=incomplete, **where)
    assert "gcn_layers.1.w2" in rejection(hrnet98, graph_state=incomplete, **where)
    extended = graph98 | {"gcn_layers.3.w1": np.ones((2, 2), np.float32)}
    assert "1 unknown: gcn_layers.3.w1" in rejection(hrnet98, graph_state=extended, **where)
    other = graph98 | {"optimizer": np.ones(1, np.float32)}
    assert "1 not of the graph head: optimizer" in rejection(hrnet98, graph_state=other, **where)
    assert "graph.pth: no LCGCN graph head" in rejection(hrnet98, graph_state=hrnet98, **where)


def test_other_hrnet_size_is_rejected(hrnet98):
    with pytest.raises(InputError, match=r"weights\.pth: \d+ keys do not fit the model"):
        imported(hrnet98, arch="w18-small-v2")


def test_other_number_of_landmarks_is_rejected(hrnet98):
    with pytest.raises(InputError, match=r"weights\.pth: .* 98 landmarks, and ibug68 has 68"):
        imported(hrnet98, scheme=IBUG68)


def test_file_without_hrnet_is_rejected(graph98):
    message = rejection({"fc.weight": np.ones((2, 2), np.float32)})
    assert message == "weights.pth: no HRNet in it; among its 1 keys: fc.weight"
    assert "no HRNet in it" in rejection(graph98)


def test_graph_head_on_a_backbone_without_head_is_rejected(hrnet98, graph98):
    backbone = {key: value for key, value in hrnet98.items() if not key.startswith("head.")}
    assert "its HRNet has no head" in rejection(backbone | graph98)


def test_two_models_in_one_file_are_rejected(hrnet98):
    twice = {prefix + key: value for key, value in hrnet98.items() for prefix in ("a.", "b.")}
    assert "occurs more than once, under 'a.', 'b.'" in rejection(twice)


class ConstantHeatmapModel(nnx.Module):
    """Heatmap model that returns constant logits and features."""

    stride, feature_channels = 4, 270

    def __init__(self, logits, features):
        self.logits, self.features = nnx.Variable(logits), nnx.Variable(features)

    def __call__(self, images, *, train):
        return self.logits[...], self.features[...]


@pytest.mark.slow
def test_prediction_from_heatmaps_agrees_with_the_authors_code(lcgcn, graph98, parity):
    """Their `LandmarkModel` maps peaks / 64 to landmarks / 256."""
    logits = parity.normal("logits", (1, 64, 64, 98))
    features = parity.normal("features", (1, 64, 64, 270))
    y, x = np.divmod(logits[0].reshape(-1, 98).argmax(axis=0), 64)
    confidence = 1 / (1 + np.exp(-logits[0, y, x, np.arange(98)]))
    peaks = np.stack([x, y], axis=-1)
    edges, coordinates = their_head(graph98, peaks / 64, confidence, features[0, y, x])

    model = merge_weights(*lcgcn.bundle.create())
    model.heatmap_model = ConstantHeatmapModel(jnp.asarray(logits), jnp.asarray(features))
    output = nnx.jit(lambda model: model(jnp.zeros((1, 256, 256, 3))))(model)
    np.testing.assert_array_equal(output.heatmap_landmarks[0], 4 * peaks + 2)
    assert relative_error(np.asarray(output.edges[0]), edges) < 1e-5
    assert relative_error(np.asarray(output.landmarks[0]), 256 * coordinates) < 1e-5


@pytest.mark.parametrize("graph", [False, True])
def test_export_inverts_import(lcgcn, parity, hrnet98, graph98, graph):
    state = export_weights(lcgcn.bundle, graph=graph, source="bundle")
    keys = parity.keys("hrnet_face_98") | (parity.keys("lcgcn_head_98") if graph else {})
    assert {key: list(value.shape) for key, value in state.items()} == keys
    assert_same_weights(
        {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
        hrnet98 | (graph98 if graph else {}),
    )
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if graph:
        assert_same_weights(imported(state).bundle.weights, lcgcn.bundle.weights)


@pytest.mark.parametrize(
    ("field", "value"),
    [("authors_conventions", False), ("norm", "layer")],
)
def test_graph_unlike_the_authors_is_not_exported(lcgcn, field, value):
    model = dict(lcgcn.bundle.model)
    model["graph"] = model["graph"] | {field: value, "gcn_widths": [64, 16, 2]}
    bundle = dataclasses.replace(lcgcn.bundle, model=model)
    message = rf"bundle: PyTorch code .* this one has {field}={value!r}; --heatmap-only"
    with pytest.raises(InputError, match=message):
        export_weights(bundle, graph=True, source="bundle")
    assert export_weights(bundle, graph=False, source="bundle")


def test_graph_with_bias_is_not_exported(lcgcn):
    weights = dict(lcgcn.bundle.weights) | {"graph.blocks.1.bias": np.ones(16, np.float32)}
    bundle = dataclasses.replace(lcgcn.bundle, weights=weights)
    with pytest.raises(InputError, match="a bias in its blocks"):
        export_weights(bundle, graph=True, source="bundle")


def test_other_heatmap_model_is_not_exported(face):
    model = dict(face.bundle.model) | {"heatmap": {"name": "toy"}}
    with pytest.raises(InputError, match="bundle: only HRNet"):
        export_weights(dataclasses.replace(face.bundle, model=model), graph=False, source="bundle")


def test_torch_archs():
    assert set(torch_weights.TORCH_ARCHS) == {
        "hrnet_w18",
        "hrnet_w32",
        "hrnet_w48",
        "hrnet_w18_small_v1",
        "hrnet_w18_small_v2",
        "hrnet_tiny",
    }

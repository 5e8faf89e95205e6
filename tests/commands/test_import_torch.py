import hashlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lcgcn_jax.commands.main import main
from lcgcn_jax.interop.torch_weights import AUTHORS_GRAPH, export_weights
from lcgcn_jax.landmarks import WFLW98
from lcgcn_jax.models.bundles import (
    CARD,
    CONFIG,
    Bundle,
    abstract_weights,
    load_bundle,
    save_bundle,
)

ARCH = "tiny"


@pytest.fixture(scope="module")
def bundle():
    """Tiny HRNet with the authors' graph head and random weights."""
    fields = {"diagonal", "authors_conventions"}
    model = {
        "heatmap": {"name": "hrnet", "arch": ARCH, "features": "concat"},
        "decode": "argmax",
        "graph": {name: getattr(AUTHORS_GRAPH, name) for name in fields},
        "bn_momentum": 0.99,
    }
    _, params, batch_stats = abstract_weights(model, 98)
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=w.shape).astype(np.float32)
        for name, w in (params | batch_stats).items()
    }
    weights |= {
        name: 0 * w
        for name, w in weights.items()
        if name.startswith("graph.blocks") and w.ndim == 1
    }
    return Bundle(model, WFLW98, 256, weights)


@pytest.fixture(scope="module")
def state(bundle):
    return export_weights(bundle, graph=True, source="bundle")


@pytest.fixture
def file(state, tmp_path):
    save_file(state, tmp_path / "theirs.safetensors")
    return tmp_path / "theirs.safetensors"


def line(file, out, *more):
    arch = "hrnet_" + ARCH.replace("-", "_")
    return [
        "import-torch",
        "--arch",
        arch,
        "--scheme",
        "wflw98",
        str(file),
        "--out",
        str(out),
        *more,
    ]


def test_import_and_export_are_inverse(bundle, state, file, tmp_path, capsys):
    assert main(line(file, tmp_path / "bundle")) == 0
    output = capsys.readouterr().out
    assert "in the layout of HRNet-Facial-Landmark-Detection" in output
    assert "NOT TRAINED" not in output
    imported = load_bundle(tmp_path / "bundle")
    assert imported.weights.keys() == bundle.weights.keys()
    for name, value in bundle.weights.items():
        np.testing.assert_array_equal(imported.weights[name], value)
    card = (tmp_path / "bundle" / CARD).read_text()
    assert file.name in card
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card

    back = tmp_path / "back.safetensors"
    assert (
        main(
            ["export", "--model", str(tmp_path / "bundle"), "--format", "torch", "--out", str(back)]
        )
        == 0
    )
    assert "with a graph head" in capsys.readouterr().out
    exported = load_file(back)
    assert exported.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(exported[key], value)


def test_pickled_weights_in_two_files(bundle, state, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    parts = ("class_embedding", "edges", "visual_feature_embedding", "gcn_layers")
    graph = {key: value for key, value in tensors.items() if key.startswith(parts)}
    heatmap = {key: value for key, value in tensors.items() if key not in graph}
    torch.save({"state_dict": heatmap, "epoch": 1}, tmp_path / "hrnet.pth")
    torch.save(graph, tmp_path / "graph.pth")
    out = tmp_path / "bundle"
    assert main(line(tmp_path / "hrnet.pth", out, "--graph", str(tmp_path / "graph.pth"))) == 0
    imported = load_bundle(out)
    for name, value in bundle.weights.items():
        np.testing.assert_array_equal(imported.weights[name], value)
    card = (out / CARD).read_text()
    assert "hrnet.pth" in card
    assert "graph.pth" in card
    back = tmp_path / "back.pth"
    main(["export", "--model", str(out), "--format", "torch", "--out", str(back), "--heatmap-only"])
    exported = torch.load(back, weights_only=True)
    assert exported.keys() == heatmap.keys()
    assert all(torch.equal(exported[key], value) for key, value in heatmap.items())


def test_random_head_and_unused_classifier_are_reported(state, tmp_path, capsys):
    backbone = {
        key: value
        for key, value in state.items()
        if key.startswith(("conv", "bn", "layer1", "transition", "stage"))
    }
    classifier = {"classifier.weight": np.ones((3, 2), np.float32)}
    save_file(backbone | classifier, tmp_path / "imagenet.safetensors")
    assert main(line(tmp_path / "imagenet.safetensors", tmp_path / "bundle")) == 0
    for output in (capsys.readouterr().out, (tmp_path / "bundle" / CARD).read_text()):
        assert "THE HEAD IS NOT TRAINED" in output
        assert "Left out: 1 weight of the classifier (classifier)" in output
    assert load_bundle(tmp_path / "bundle").model["graph"] is None


def test_invalid_file_writes_nothing(error_line, state, tmp_path):
    bad = tmp_path / "bad.safetensors"
    save_file({key: value for key, value in state.items() if key != "conv1.weight"}, bad)
    error = error_line(*line(bad, tmp_path / "bundle"))
    assert f"{bad}: 1 keys do not fit the model; 1 missing: conv1.weight" in error
    bad.write_bytes(bad.read_bytes()[:1000])
    assert f"{bad}: not a safetensors file, or damaged" in error_line(
        *line(bad, tmp_path / "bundle")
    )
    wrong = line(bad, tmp_path / "bundle")
    wrong[wrong.index("wflw98")] = "wflw99"
    assert "unknown landmark scheme 'wflw99'" in error_line(*wrong)
    assert not (tmp_path / "bundle").exists()


def test_existing_bundle_is_only_replaced_with_overwrite(error_line, file, tmp_path):
    out = tmp_path / "bundle"
    out.mkdir()
    assert f"{out}: already exists" in error_line(*line(file, out))
    assert not list(out.iterdir())
    assert main(line(file, out, "--overwrite")) == 0
    assert (out / CONFIG).exists()


def test_export_errors(error_line, bundle, tmp_path):
    save_bundle(tmp_path / "bundle", bundle, "")
    existing = tmp_path / "existing.safetensors"
    existing.write_bytes(b"")
    start = ["export", "--model", tmp_path / "bundle", "--format", "torch", "--out"]
    assert f"{existing}: already exists" in error_line(*start, existing)
    assert "unknown kind of file" in error_line(*start, tmp_path / "model.onnx")
    assert existing.read_bytes() == b""
    biased = dict(bundle.weights) | {"graph.blocks.0.bias": np.ones(64, np.float32)}
    save_bundle(tmp_path / "bundle", Bundle(bundle.model, WFLW98, 256, biased), "")
    assert "--heatmap-only" in error_line(*start, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()

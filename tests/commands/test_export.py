"""`export` to StableHLO and ONNX; to PyTorch: see `test_import_torch`."""

import sys

import numpy as np
import pytest
from jax import export

from lcgcn_jax.commands.main import main
from lcgcn_jax.errors import install_command
from lcgcn_jax.interop.serving import OUTPUTS, description_file
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.bundles import save_bundle

MODEL = {
    "heatmap": {"name": "toy"},
    "decode": "soft",
    "graph": {"embedding_widths": [5, 2], "gcn_widths": [4, 2]},
    "bn_momentum": 0.9,
}


@pytest.fixture
def model(toy, random_bundle, tmp_path):
    scheme = LandmarkScheme.from_dict({"name": "three", "num_landmarks": 3})
    save_bundle(tmp_path / "model", random_bundle(MODEL, scheme, 32), "")
    return tmp_path / "model"


def line(model, kind, out, *more):
    return ["export", "--model", str(model), "--format", kind, "--out", str(out), *more]


def test_stablehlo_with_and_without_the_graph(model, tmp_path, capsys):
    out = tmp_path / "new" / "face.stablehlo"
    crops = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    outputs = []
    for more in ([], ["--heatmap-only", "--overwrite"]):
        assert main(line(model, "stablehlo", out, *more)) == 0
        outputs.append(export.deserialize(bytearray(out.read_bytes())).call(crops))
        output = capsys.readouterr().out
        assert f"{out}: crops [b, 32, 32, 3] to {', '.join(OUTPUTS)}" in output
        assert f"{'without' if more else 'with'} a graph head" in output
    graph, heatmap = outputs
    assert np.abs(graph["landmarks"] - graph["heatmap_landmarks"]).max() > 1
    np.testing.assert_allclose(heatmap["landmarks"], graph["heatmap_landmarks"], atol=1e-3)
    assert {path.name for path in out.parent.iterdir()} == {out.name, description_file(out).name}


@pytest.mark.slow
def test_onnx_by_command(model, tmp_path):
    pytest.importorskip("jax2onnx")
    assert main(line(model, "onnx", tmp_path / "face.onnx")) == 0
    assert (tmp_path / "face.onnx").stat().st_size > 1000


def test_missing_jax2onnx_is_an_error_with_install_command(
    error_line, model, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    error = error_line(*line(model, "onnx", tmp_path / "face.onnx"))
    assert install_command("onnx") in error
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_unknown_formats_and_suffixes_are_errors(error_line, model, tmp_path):
    error = error_line(*line(model, "tflite", tmp_path / "face.tflite"))
    assert "invalid choice: 'tflite'" in error
    error = error_line(*line(model, "onnx", tmp_path / "face.pth"))
    assert "face.pth: the file name has to end in .onnx" in error


@pytest.mark.parametrize("name", ["face.stablehlo", "face.stablehlo.json"])
def test_existing_files_are_not_overwritten(error_line, model, tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    error = error_line(*line(model, "stablehlo", tmp_path / "face.stablehlo"))
    assert f"{tmp_path / name}: already exists" in error
    assert (tmp_path / name).read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_unwritable_output_is_an_error(error_line, model, tmp_path, kind):
    (tmp_path / "file").write_bytes(b"")
    out = tmp_path / "file" / f"face.{kind}"
    assert f"{out}: cannot be written" in error_line(*line(model, kind, out))
    (tmp_path / f"folder.{kind}").mkdir()
    error = error_line(*line(model, kind, tmp_path / f"folder.{kind}", "--overwrite"))
    assert f"folder.{kind}: is a folder" in error

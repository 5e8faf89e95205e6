"""Exported StableHLO and ONNX graphs agree with the model and carry their metadata."""

import contextlib
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from jax import export

from lcgcn_jax import geometry
from lcgcn_jax.commands.main import main
from lcgcn_jax.errors import InputError, install_command
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.interop.serving import (
    OUTPUTS,
    PLATFORMS,
    describe,
    description_file,
    export_model,
    output_names,
    write_onnx,
    write_stablehlo,
)
from lcgcn_jax.landmarks import IBUG68, WFLW98, LandmarkScheme
from lcgcn_jax.models.bundles import CONFIG, find_bundle, load_bundle
from lcgcn_jax.models.lcgcn import normalize_images
from lcgcn_jax.models.weights import merge_weights
from lcgcn_jax.synthetic import draw_face

SHIPPED = "w300-lcgcn-small"
SIZE = json.loads((find_bundle(SHIPPED) / CONFIG).read_text())["image_size"]
NARROW = {
    "lcgcn": {"embedding_widths": [7, 3], "class_widths": [4, 2], "gcn_widths": [6, 2]},
    "dag": {"width": 6, "blocks": 1, "fine_steps": 2},
}
FIVE = LandmarkScheme.from_dict({"name": "five", "num_landmarks": 5})
PAGE = (Path(__file__).parents[2] / "docs/how-to/serving.md").read_text(encoding="utf-8")
TOLERANCE = 1e-3  # pixels
MARGIN = 1e-4  # of the standard deviation of the logits: smaller margins make the peak ambiguous


def serve_stablehlo(path):
    return export.deserialize(bytearray(path.read_bytes())).call


def serve_onnx(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return lambda crops: dict(zip(names, session.run(None, {"crops": crops}), strict=True))


WRITE = {"stablehlo": write_stablehlo, "onnx": write_onnx}
SERVE = {"stablehlo": serve_stablehlo, "onnx": serve_onnx}


def require_converter(kind):
    if kind == "onnx":
        pytest.importorskip("jax2onnx")


def write(kind, folder, bundle):
    require_converter(kind)
    path = folder / f"face.{kind}"
    WRITE[kind](path, bundle)
    return path


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, batch_stats, crops):
    return merge_weights(graphdef, params, batch_stats)(normalize_images(crops))


def assert_agree(serve, bundle, crops, batches):
    """Compare the graph with the model, whose BatchNorms are not folded, in several batch sizes."""
    model = forward(*bundle.create(), crops)
    logits = np.asarray(model.heatmap_logits).reshape(len(crops), -1, bundle.scheme.num_landmarks)
    peaks = np.sort(logits, axis=1)
    has_clear_peaks = (peaks[:, -1] - peaks[:, -2] > MARGIN * logits.std()).all(axis=1)
    assert has_clear_peaks.mean() > 0.8
    assert np.ptp(model.landmarks) > 5
    for size in batches:
        outputs = serve(crops[:size])
        rows = has_clear_peaks[:size]
        names = output_names(bundle)
        assert set(outputs) == set(names)
        for name in names:
            expected = np.asarray(getattr(model, name))[:size]
            assert outputs[name].shape == expected.shape
            assert outputs[name].dtype == np.float32
            np.testing.assert_allclose(
                np.asarray(outputs[name])[rows],
                expected[rows],
                rtol=0,
                atol=TOLERANCE,
                err_msg=name,
            )


@pytest.mark.parametrize("kind", ["stablehlo", pytest.param("onnx", marks=pytest.mark.slow)])
def test_exported_graph_agrees_with_the_model(toy, random_bundle, tmp_path, kind):
    assert_served(
        random_bundle, tmp_path, "dark", {"message": "offset_votes", "output": "residual"}, kind
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITE)
@pytest.mark.parametrize(
    ("decode", "graph"),
    [
        ("argmax", {"message": "paper"}),
        ("argmax", {"diagonal": "zero", "authors_conventions": True}),
        ("quarter", {"message": "pair_vector", "sampling": "bilinear", "norm": "layer"}),
        ("dark", {"message": "offset_votes", "output": "residual", "sampling": "bilinear"}),
        ("soft", {"connectivity": "learned_static", "message": "offset_votes"}),
        ("soft", {"connectivity": "uniform", "norm": "none"}),
        (
            "dark",
            {"connectivity": "self_only", "authors_conventions": True},
        ),
        ("dark", {"name": "dag"}),
        ("quarter", None),
    ],
    ids=str,
)
def test_every_kind_of_model_can_be_exported(toy, random_bundle, tmp_path, decode, graph, kind):
    assert_served(random_bundle, tmp_path, decode, graph, kind)


def assert_served(random_bundle, folder, decode, graph, kind):
    config = {
        "heatmap": {"name": "toy"},
        "decode": decode,
        "graph": graph if graph is None else NARROW[graph.get("name", "lcgcn")] | graph,
        "bn_momentum": 0.9,
    }
    bundle = random_bundle(config, FIVE, 32)
    crops = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    assert_agree(SERVE[kind](write(kind, folder, bundle)), bundle, crops, (1, 20))


@pytest.mark.parametrize("kind", ["stablehlo", pytest.param("onnx", marks=pytest.mark.slow)])
def test_model_loaded_with_another_scheme_is_exported_in_this_scheme(
    toy, random_bundle, tmp_path, kind
):
    require_converter(kind)
    config = {"heatmap": {"name": "toy"}, "decode": "dark", "graph": None, "bn_momentum": 0.9}
    model = LandmarkModel(random_bundle(config, WFLW98, 32), scheme="ibug68")
    path = export_model(model, tmp_path / f"face.{kind}")
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    expected = model.predict_crops(crops)
    for name, values in SERVE[kind](path)(crops).items():
        np.testing.assert_allclose(values, getattr(expected, name), rtol=0, atol=TOLERANCE)
    assert describe(model.bundle, "ibug68")["scheme"] == IBUG68.to_dict()
    if kind == "stablehlo":
        assert json.loads(description_file(path).read_text())["scheme"] == IBUG68.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITE)
def test_hourglass_can_be_exported(random_bundle, tmp_path, kind):
    config = {
        "heatmap": {"name": "hourglass", "stacks": 1, "width": 4},
        "decode": "argmax",
        "graph": None,
        "bn_momentum": 0.9,
    }
    bundle = random_bundle(config, FIVE, 64)
    crops = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    assert_agree(SERVE[kind](write(kind, tmp_path, bundle)), bundle, crops, (1, 20))


@pytest.fixture(scope="module")
def shipped():
    return load_bundle(SHIPPED)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Exported file of the shipped model per format, written once by the command in the documentation."""
    folder = tmp_path_factory.mktemp("served")

    @functools.cache
    def run(kind):
        require_converter(kind)
        (line,) = re.findall(rf"^lcgcn (export .*--format {kind} .*)$", PAGE, re.MULTILINE)
        with contextlib.chdir(folder):
            assert main(shlex.split(line)) == 0
        return folder / f"face.{kind}"

    return run


@pytest.fixture(scope="module")
def faces():
    """Crops of 100 synthetic faces."""
    crops = []
    for seed in range(100):
        face = draw_face(seed, IBUG68)
        box = geometry.box_of_landmarks(face.landmarks, np.ones(68, bool))
        crops.append(geometry.warp(face.image, geometry.crop_transform(box, SIZE), SIZE))
    return np.stack(crops)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITE)
def test_shipped_model_on_a_hundred_faces(shipped, faces, written, kind):
    assert_agree(SERVE[kind](written(kind)), shipped, faces, (3, 100))


@pytest.mark.slow
def test_stablehlo_platforms_and_metadata(shipped, written):
    path = written("stablehlo")
    graph = export.deserialize(bytearray(path.read_bytes()))
    assert graph.platforms == PLATFORMS
    (crops,) = graph.in_avals
    assert crops.dtype == np.uint8
    assert str(crops.shape) == f"(b, {SIZE}, {SIZE}, 3)"
    assert_metadata(json.loads(description_file(path).read_text()), shipped)


@pytest.mark.slow
def test_onnx_metadata(shipped, written):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(written("onnx"))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    for name in ("image_size", "crop_scale", "scheme"):
        metadata[name] = json.loads(metadata[name])
    assert_metadata(metadata, shipped)
    (crops,) = model.graph.input
    first, *others = crops.type.tensor_type.shape.dim
    assert first.dim_param
    assert [dim.dim_value for dim in others] == [SIZE, SIZE, 3]
    assert not [node.op_type for node in model.graph.node if "Normalization" in node.op_type]


def assert_metadata(metadata, bundle):
    assert metadata["image_size"] == SIZE
    assert metadata["crop_scale"] == geometry.CROP_SCALE
    assert LandmarkScheme.from_dict(metadata["scheme"]) == bundle.scheme
    assert metadata["producer"].startswith("lcgcn-jax ")


def page_code(containing):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (code,) = [block for block in blocks if containing in block]
    return code


def run_without_packages(code, folder, blocked):
    """Run code in a new process in which some packages cannot be imported."""
    start = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-c", start + code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert not process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("zoom", [1, 4])
def test_onnx_example_in_the_documentation_runs_without_jax(written, tmp_path, zoom):
    (tmp_path / "face.onnx").symlink_to(written("onnx"))
    photo = tmp_path / "photo.jpg"
    cv2.imwrite(str(photo), draw_face(3, IBUG68, size=320 * zoom).image[..., ::-1])
    code = page_code("InferenceSession")
    (numbers,) = re.findall(r"boxes = \[\((.*?)\)\]", code)
    box = [zoom * float(number) for number in numbers.split(", ")]
    if zoom != 1:
        code = code.replace(numbers, ", ".join(map(str, box)))
    blocked = ["jax", "jaxlib", "flax", "lcgcn_jax"]
    run_without_packages(code + '\nnp.save("points.npy", points)', tmp_path, blocked)
    affine = geometry.crop_transform(np.array(box), SIZE)
    crop = geometry.warp(read_image(photo), affine, SIZE)
    (expected,) = serve_onnx(tmp_path / "face.onnx")(crop[None])["landmarks"]
    expected = geometry.transform_points(geometry.invert(affine), expected)
    np.testing.assert_allclose(
        np.load(tmp_path / "points.npy"), [expected], rtol=0, atol=zoom * TOLERANCE
    )


@pytest.mark.slow
def test_stablehlo_example_in_the_documentation_runs_without_this_package(faces, written, tmp_path):
    path = written("stablehlo")
    for file in (path, description_file(path)):
        (tmp_path / file.name).symlink_to(file)
    np.save(tmp_path / "crops.npy", faces[:3])
    code = page_code("deserialize") + '\nnp.save("points.npy", output["landmarks"])'
    run_without_packages(code, tmp_path, ["flax", "lcgcn_jax"])
    expected = serve_stablehlo(path)(faces[:3])["landmarks"]
    np.testing.assert_allclose(np.load(tmp_path / "points.npy"), expected, rtol=0, atol=TOLERANCE)


def test_missing_jax2onnx_raises_with_the_install_command(shipped, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(InputError, match=rf"a\.onnx: .*{re.escape(install_command('onnx'))}"):
        write_onnx(tmp_path / "a.onnx", shipped)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
@pytest.mark.parametrize("graph", [{"edge_inputs": "both", "gate": "visibility"}, {"name": "dag"}])
def test_visibility_is_the_last_output(toy, random_bundle, tmp_path, kind, graph):
    require_converter(kind)
    model = {
        "heatmap": {"name": "toy"},
        "decode": "dark",
        "graph": NARROW[graph.get("name", "lcgcn")] | graph,
        "visibility": {"head": "attention", "width": 8},
        "bn_momentum": 0.9,
    }
    bundle = random_bundle(model, FIVE, 32)
    names = output_names(bundle)
    assert names == (*OUTPUTS, "visibility")
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    path = write(kind, tmp_path, bundle)
    if kind == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(path)
        assert [output.name for output in session.get_outputs()] == list(names)
        outputs = dict(zip(names, session.run(None, {"crops": crops}), strict=True))
    else:
        outputs = serve_stablehlo(path)(crops)
        assert set(outputs) == set(names)
    expected = forward(*bundle.create(), crops).visibility
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(outputs["visibility"], expected, atol=1e-3)
    assert output_names(bundle.without_graph()) == OUTPUTS

"""Notebooks of colab/: imports, and execution with smaller settings."""

import ast
import json
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.face_detector import fetch_detector_model

nbclient = pytest.importorskip("nbclient", reason="notebooks need: pip install '.[colab]'")
pytest.importorskip("ipykernel", reason="notebooks need: pip install '.[colab]'")
nbformat = pytest.importorskip("nbformat")

COLAB = Path(__file__).parents[1] / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))
PARAMETERS = {
    "custom_landmarks": "FACES, TEST_FACES, SHOWN, STEPS, SIZE, BATCH = 24, 8, 2, 2, 64, 8",
    "lcgcn_demo": 'CONFIG, FACES, TEST_FACES, SHOWN, VALIDATIONS = "demo:small", 24, 8, 2, 1',
}
NUM_PLOTS = {"lcgcn_demo": 6, "custom_landmarks": 3}
MODULES = {
    "lcgcn_jax",
    "csv",
    "pathlib",
    "warnings",
    "IPython.display",
    "matplotlib.pyplot",
    "numpy",
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def python_of(cell):
    """Python code of a cell, without magics and shell commands."""
    if cell.source.startswith("%%"):
        return ""
    return re.sub(r"^(\s*)[%!].*", r"\1pass", cell.source, flags=re.MULTILINE)


@each_notebook
def test_only_the_public_api_is_imported(path):
    for cell in code_cells(nbformat.read(path, as_version=4)):
        if "install" in cell.metadata.get("tags", ()):
            continue  # runs before the package is installed; see test_notebook_install.py
        for node in ast.walk(ast.parse(python_of(cell))):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= MODULES
            elif isinstance(node, ast.ImportFrom):
                assert node.module in MODULES - {"lcgcn_jax"}


@each_notebook
def test_notebook_has_no_outputs(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.fixture
def detector_cache(tmp_path, monkeypatch):
    """Cache with the face detector, from ../shared or downloaded."""
    detector = Path(__file__).parents[2] / "shared/models/face_detection_yunet_2023mar.onnx"
    if detector.is_file():
        (tmp_path / "cache/lcgcn_jax/models").mkdir(parents=True)
        (tmp_path / "cache/lcgcn_jax/models" / detector.name).symlink_to(detector)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return
    try:
        fetch_detector_model()
    except InputError as error:
        pytest.skip(f"no face detector: {error}")


def test_badges_open_the_notebooks():
    """Without the URL of the repository in pyproject.toml, the badge leads to the upload dialog of Colab."""
    root, colab = COLAB.parent, "https://colab.research.google.com"
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    repository = project["urls"].get("Repository", "").removeprefix("https://github.com/")
    order = sorted(NOTEBOOKS, key=lambda path: path.stem != "lcgcn_demo")
    addresses = [f"{colab}/github/{repository}/blob/main/colab/{path.name}" for path in order]
    for page in ("README.md", "docs/index.md"):
        text = (root / page).read_text()
        badges = re.findall(r"\[!\[[^]]*\]\([\w/.]*colab\.svg\)\]\((.*?)\)", text)
        assert badges == (addresses if repository else [f"{colab}/#upload=true"])
        assert repository or all(f"colab/{path.name}" in text for path in order)


@each_notebook
def test_notebook_ends_with_the_image_of_the_user(path):
    last = code_cells(nbformat.read(path, as_version=4))[-1].source
    assert 'PHOTO = "upload"  # @param ["upload", "webcam", "sample"]' in last
    assert "lc.notebook_image(PHOTO)" in last
    assert ".predict(image)" in last


@pytest.mark.slow
@each_notebook
def test_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch, detector_cache):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, as on a machine of a user
    programs = Path(sys.executable).parent  # `!lcgcn` is the one of this environment
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    (index,) = (
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())
    )
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(PARAMETERS[path.stem]))
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=dict(os.environ))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    plots = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(plots) >= NUM_PLOTS[path.stem]
    assert not [output for output in outputs if output.output_type == "error"]

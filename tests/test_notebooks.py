"""The notebooks of colab/, executed from top to bottom with smaller settings."""

import ast
import json
import os
import re
import sys
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="notebooks need: pip install '.[colab]'")
pytest.importorskip("ipykernel", reason="notebooks need: pip install '.[colab]'")
nbformat = pytest.importorskip("nbformat")

COLAB = Path(__file__).parents[1] / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))
SMALL = {
    "custom_landmarks": "FACES, TEST_FACES, SHOWN, STEPS, SIZE, BATCH = 24, 8, 2, 2, 64, 8",
    "lcgcn_demo": 'CONFIG, FACES, TEST_FACES, SHOWN, VALIDATIONS = "demo:small", 24, 8, 2, 1',
}
SHOWN = {"lcgcn_demo": 5, "custom_landmarks": 2}
"""How many pictures there are, at least."""

in_each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def python_of(cell):
    """A cell without what is IPython's: magics, and lines for the shell."""
    if cell.source.startswith("%%"):
        return ""
    return re.sub(r"^(\s*)[%!].*", r"\1pass", cell.source, flags=re.MULTILINE)


@in_each
def test_nothing_but_the_package_is_imported(path):
    for cell in code_cells(nbformat.read(path, as_version=4)):
        if "install" in cell.metadata.get("tags", ()):
            continue  # it runs before the package is there; test_notebook_install.py
        for node in ast.walk(ast.parse(python_of(cell))):
            if isinstance(node, ast.Import):
                assert [alias.name for alias in node.names] == ["lcgcn_jax"]
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in ("lcgcn_jax", "pathlib")


@in_each
def test_no_outputs_are_kept(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@in_each
def test_it_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, as a newcomer has
    programs = Path(sys.executable).parent  # `!lcgcn` is that of this environment
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    (at,) = (i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", ()))
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(SMALL[path.stem]))
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=dict(os.environ))
    shown = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= SHOWN[path.stem]
    assert not [output for output in shown if output.output_type == "error"]

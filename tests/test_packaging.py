"""Installed package: files, version, requirements, and import."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import lcgcn_jax
import lcgcn_jax.configs
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.synthetic.dataset import prepare_synthetic

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize(
    ("source", "installed"), [("lcgcn_jax", lcgcn_jax), ("configs", lcgcn_jax.configs)]
)
def test_all_files_are_installed(source, installed):
    def files(folder):
        paths = (path for path in folder.rglob("*") if path.is_file())
        return {p.relative_to(folder) for p in paths if "__pycache__" not in p.parts}

    # An installed package also contains the configs, which are another folder of the repository.
    assert files(ROOT / source) <= files(Path(installed.__file__).parent)


def test_version_equals_the_metadata():
    assert lcgcn_jax.__version__ == metadata.version("lcgcn-jax") == PROJECT["version"]


def test_upper_version_caps_are_exceptions():
    """A cap without a known incompatibility keeps users from releases that work."""
    capped = {text.split(">")[0] for text in PROJECT["dependencies"] if "<" in text}
    assert capped <= {"jax"}
    for extra, requirements in PROJECT["optional-dependencies"].items():
        assert extra in ("docs", "lint") or not any("<" in text for text in requirements), extra


def test_import_loads_no_dependencies():
    code = "import sys, lcgcn_jax; print(*{'jax', 'numpy', 'cv2'} & set(sys.modules), lcgcn_jax.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [PROJECT["version"]]


def test_pyarrow_is_not_needed(tmp_path, monkeypatch):
    """TensorFlow Datasets requires it, for Parquet files only, so pyproject.toml lets uv leave it out."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    prepare_synthetic("ibug68", tmp_path / "data", num_train=3, num_test=1, seed=0)
    assert len(open_dataset(tmp_path / "data").source("train")) > 0

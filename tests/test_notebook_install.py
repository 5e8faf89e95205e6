"""Install cell of the notebooks on each kind of runtime, with simulated nvidia-smi and pip."""

import glob
import json
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

COLAB = Path(__file__).parents[1] / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))
JAX_REQUIRES = [
    "jaxlib<=0.12.0.1,>=0.11.2",
    'libtpu==0.0.50.*; extra == "tpu"',
    'jax-cuda12-plugin[with-cuda]<=0.12.0.1,>=0.12.0.1; extra == "cuda12"',
    'jax-cuda13-plugin[with-cuda]<=0.12.0.1,>=0.12.0.1; extra == "cuda13"',
]
INSTALLED = {"lcgcn-jax": "0.1.0", "jax": "0.12.0.1", "jaxlib": "0.12.0.1"}
COLAB_GPU = {"jax": "0.7.2", "jaxlib": "0.7.2", "jax-cuda12-plugin": "0.7.2"}


def install_cell(path):
    """Source of the cell with the tag `install`, which must be the first code cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    ((index, cell),) = (
        (i, c) for i, c in enumerate(cells) if "install" in c["metadata"].get("tags", ())
    )
    assert not any(c["cell_type"] == "code" for c in cells[:index])
    return "".join(cell["source"])


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def run_cell(request, monkeypatch, tmp_path):
    """Function that runs the cell on a simulated runtime and returns the requirements passed to pip."""
    source = install_cell(request.param)
    for name in ("JAX_PLATFORMS", "COLAB_TPU_1VM", "COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(request.param.parent)  # working directory of Jupyter

    def run(
        smi=None, env=(), files=(), versions=(), after=None, pip_code=0, project=None, loaded=()
    ):
        versions, requirements = dict(versions), []

        def run_program(command, **options):
            if command[1:4] == ["-m", "pip", "install"]:
                assert command[0] == sys.executable
                requirements.append(command[-1])
                versions.update(after or {})
                return subprocess.CompletedProcess(command, pip_code)
            assert command == ["nvidia-smi"]
            if smi is None:
                raise FileNotFoundError("nvidia-smi")
            if isinstance(smi, Exception):
                raise smi
            if smi and options.get("check"):
                raise subprocess.CalledProcessError(smi, command)
            return subprocess.CompletedProcess(command, smi)

        def version(package):
            if package not in versions:
                raise metadata.PackageNotFoundError(package)
            return versions[package]

        monkeypatch.setattr(subprocess, "run", run_program)
        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(metadata, "requires", lambda package: JAX_REQUIRES)
        monkeypatch.setattr(
            glob, "glob", lambda pattern: [f for f in files if Path(f).match(pattern)]
        )
        for name in ("numpy", "jax"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        for name, number in dict(loaded).items():
            module = types.SimpleNamespace(__version__=number)
            monkeypatch.setitem(sys.modules, name, module)
        for name, value in dict(env).items():
            monkeypatch.setenv(name, value)
        code = (
            source
            if project is None
            else source.replace('PROJECT = ".."', f"PROJECT = {project!r}")
        )
        exec(compile(code, "install cell", "exec"), {"__name__": "__main__"})
        return requirements

    return run


def test_both_notebooks_have_the_same_install_cell():
    assert len({install_cell(path) for path in NOTEBOOKS}) == 1


TPU = {"COLAB_TPU_1VM": "1", "TPU_ACCELERATOR_TYPE": "v5e-1"}


@pytest.mark.parametrize(
    ("runtime", "requirement"),
    [
        ({}, ".."),
        ({"versions": {"jax": "0.7.2", "jaxlib": "0.7.2"}}, ".."),
        ({"smi": 0}, "..[cuda12]"),
        # Colab sets the variable on all runtimes; it is empty if there is no TPU.
        ({"smi": 0, "versions": COLAB_GPU, "env": {"COLAB_TPU_1VM": ""}}, "..[cuda12]"),
        ({"env": TPU, "versions": {"jax": "0.7.2", "libtpu": "0.0.20"}}, "..[tpu]"),
        ({"env": {"COLAB_TPU_ADDR": "10.0.0.2:8470"}}, "..[tpu]"),
        ({"files": ["/dev/accel0"]}, "..[tpu]"),
        ({"files": ["/dev/vfio/0"]}, "..[tpu]"),
        ({"files": ["/dev/vfio/vfio"], "env": {"COLAB_TPU_1VM": ""}}, ".."),
        # nvidia-smi without a GPU or a working driver.
        ({"smi": 9}, ".."),
        ({"smi": subprocess.TimeoutExpired("nvidia-smi", 60)}, ".."),
        ({"smi": PermissionError("nvidia-smi")}, ".."),
        ({"smi": 9, "env": TPU}, "..[tpu]"),
        ({"smi": 0, "env": {"JAX_PLATFORMS": "cpu"}}, ".."),
        # The package is installed, but the packages for the accelerator are missing or do not match.
        ({"smi": 0, "versions": INSTALLED}, "..[cuda12]"),
        ({"smi": 0, "versions": INSTALLED | {"jax-cuda12-plugin": "0.7.2"}}, "..[cuda12]"),
        ({"env": TPU, "versions": INSTALLED | {"libtpu": "0.0.20"}}, "..[tpu]"),
        ({"versions": INSTALLED | {"jaxlib": "0.7.2"}}, ".."),
    ],
)
def test_pip_installs_the_extra_for_the_runtime(run_cell, runtime, requirement):
    assert run_cell(**runtime) == [requirement]


@pytest.mark.parametrize(
    "runtime",
    [
        {"versions": INSTALLED},
        {"smi": 0, "versions": INSTALLED | {"jax-cuda12-plugin": "0.12.0.1"}},
        {"smi": 0, "versions": INSTALLED | {"jax-cuda13-plugin": "0.12.0.1"}},
        {"env": TPU, "versions": INSTALLED | {"libtpu": "0.0.50"}},
        {"smi": 0, "versions": INSTALLED, "env": {"JAX_PLATFORMS": "cpu"}},
    ],
)
def test_matching_versions_are_not_reinstalled(run_cell, runtime):
    assert run_cell(**runtime) == []


@pytest.mark.parametrize(
    ("smi", "requirement"),
    [
        (None, "lcgcn-jax @ git+https://example.org/lcgcn_jax"),
        (0, "lcgcn-jax[cuda12] @ git+https://example.org/lcgcn_jax"),
    ],
)
def test_extras_precede_a_url(run_cell, smi, requirement):
    assert run_cell(smi, project="git+https://example.org/lcgcn_jax") == [requirement]


def test_folder_without_the_project_is_an_error(run_cell, tmp_path):
    with pytest.raises(SystemExit, match=r"set PROJECT to its folder or git\+URL"):
        run_cell(project=str(tmp_path))


def test_pip_failure_stops_the_notebook(run_cell):
    with pytest.raises(SystemExit, match=r"pip could not install \.\.\[cuda12\]"):
        run_cell(0, pip_code=1)


def test_update_of_a_loaded_module_requires_a_restart(run_cell):
    """Colab imports NumPy 2.1 before the first cell, and jax 0.12 requires 2.2."""
    after = {"numpy": "2.5.5", "jax": "0.12.0.1"}
    with pytest.raises(SystemExit, match="numpy was updated: restart the session"):
        run_cell(0, loaded={"numpy": "2.1.3"}, after=after)
    assert run_cell(0, loaded={"numpy": "2.5.5"}, after=after)


def test_extras_exist_in_pyproject():
    import tomllib

    project = tomllib.loads((COLAB.parent / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    assert {"cuda12", "cuda13", "cuda", "tpu"} <= set(extras)
    assert extras["cuda"] == extras["cuda13"]

"""Warning about a GPU that JAX does not use, with a replacement of nvidia-smi."""

import os
import subprocess
import sys
from importlib import metadata

import cv2
import jax
import numpy as np
import pytest

from lcgcn_jax import accelerators
from lcgcn_jax.commands.main import main
from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.errors import install_command
from lcgcn_jax.training.sharding import describe_devices

MODERN, OLD_DRIVER, OLD_GPU = "580.65.06, 9.0\n", "550.54.15, 8.0\n", "580.65.06, 7.0\n"


@pytest.fixture(autouse=True)
def repeated_warnings():
    accelerators.warn_if_gpu_is_unused.cache_clear()
    yield
    accelerators.warn_if_gpu_is_unused.cache_clear()


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Simulates a machine: output of nvidia-smi (None: not installed), device files, JAX plugins."""
    platforms = jax.config.jax_platforms
    devices, programs = tmp_path / "dev", tmp_path / "bin"
    devices.mkdir()
    programs.mkdir()

    def make(smi, code=0, files=(), plugins=(), platform_names=""):
        jax.config.update("jax_platforms", platform_names)
        monkeypatch.setattr(accelerators, "_DEVICE_FOLDER", devices)
        monkeypatch.setenv("PATH", str(programs))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name in files:
            (devices / name).touch()
        if smi is not None:
            program = programs / "nvidia-smi"
            program.write_text(
                f"#!{sys.executable}\nprint({smi!r}, end='')\nraise SystemExit({code})\n"
            )
            program.chmod(0o755)
        versions = {"jaxlib": "0.12.0"} | dict(plugins)

        def version(package):
            if package not in versions:
                raise metadata.PackageNotFoundError(package)
            return versions[package]

        monkeypatch.setattr(accelerators.metadata, "version", version)

    yield make
    jax.config.update("jax_platforms", platforms)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ({"smi": MODERN}, "cuda13"),
        ({"smi": OLD_DRIVER}, "cuda12"),
        ({"smi": OLD_GPU}, "cuda12"),
        ({"smi": MODERN + OLD_GPU}, "cuda12"),
        ({"smi": "[N/A], [N/A]\n"}, "cuda12"),
        ({"smi": "not a valid field\n", "code": 2, "files": ["nvidia0"]}, "cuda12"),
        ({"smi": None, "files": ["nvidia3", "nvidiactl"]}, "cuda12"),
        ({"smi": MODERN, "plugins": {"jax-cuda12-plugin": "0.7.2"}}, "cuda12"),  # Colab
        ({"smi": MODERN, "plugins": {"jax-cuda13-plugin": "0.11.0"}}, "cuda13"),
    ],
)
def test_one_warning_names_the_extra(machine, caplog, kind, extra):
    machine(**kind)
    accelerators.warn_if_gpu_is_unused()
    accelerators.warn_if_gpu_is_unused()
    (record,) = caplog.records
    assert install_command(extra) in record.getMessage()
    assert "\n" not in record.getMessage()


def test_plugin_that_fails_to_start_points_to_the_driver(machine, caplog):
    machine(MODERN, plugins={"jax-cuda13-plugin": "0.12.0"})
    accelerators.warn_if_gpu_is_unused()
    assert "nvidia-smi" in caplog.text
    assert "pip install" not in caplog.text


@pytest.mark.parametrize(
    "kind",
    [
        {"smi": None},
        {"smi": None, "files": ["nvidiactl", "nvidia-uvm"]},  # a driver without a GPU
        {"smi": ""},
        {"smi": "NVIDIA-SMI has failed\n", "code": 9},
        {"smi": MODERN, "platform_names": "cpu"},
        {"smi": MODERN, "files": ["nvidia0"], "platform_names": "cpu,tpu"},
    ],
)
def test_no_warning_without_a_gpu_or_on_a_selected_platform(machine, caplog, kind):
    machine(**kind)
    accelerators.warn_if_gpu_is_unused()
    assert not caplog.records


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_no_warning_with_hidden_cuda_devices(machine, caplog, monkeypatch, hidden):
    machine(MODERN)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    accelerators.warn_if_gpu_is_unused()
    assert not caplog.records


def test_no_warning_if_jax_uses_the_gpu(machine, caplog, monkeypatch):
    machine(MODERN)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    accelerators.warn_if_gpu_is_unused()
    assert not caplog.records


def test_commands_and_library_warn(machine, caplog, capsys):
    machine(MODERN)
    for call in (lambda: main(["models"]), compiler_options, describe_devices):
        accelerators.warn_if_gpu_is_unused.cache_clear()
        caplog.clear()
        call()
        assert len(caplog.records) == 1


def test_warning_is_one_line_on_standard_error(tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{OLD_DRIVER.strip()}'\n")
    program.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_PLATFORM")}
    env |= {"PATH": f"{tmp_path}{os.pathsep}{env['PATH']}"}
    code = "from lcgcn_jax.accelerators import warn_if_gpu_is_unused as w; w(); w()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    (line,) = (line for line in done.stderr.splitlines() if "lcgcn" in line)
    assert line.startswith("lcgcn: warning: an NVIDIA GPU is present")
    assert install_command("cuda12") in line
    assert done.stdout == ""


def test_platform_that_cannot_be_used_is_an_error(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((99, 99, 3), np.uint8))
    code = "import sys; from lcgcn_jax.commands.main import main; sys.exit(main(sys.argv[1:]))"
    for platform in ("cuda", "bogus"):
        done = subprocess.run(
            [sys.executable, "-c", code, "predict", tmp_path / "a.png", "--box", "1,1,90,90"],
            capture_output=True,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": platform},
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith(f"lcgcn: error: JAX_PLATFORMS={platform}: JAX cannot use it")
        assert len(done.stderr.splitlines()) == 1

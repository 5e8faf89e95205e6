"""Tests of `allocator`: a command starts again with tcmalloc where that is useful and possible."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from lcgcn_jax import allocator
from lcgcn_jax.commands import main as command


@pytest.fixture
def restarts(monkeypatch):
    """Arguments of the processes that replace this one, on a system with tcmalloc and without a GPU."""
    calls = []

    def replace_process(*process):
        calls.append(process)
        raise SystemExit

    monkeypatch.setattr(os, "execv", replace_process)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr(
        sys, "orig_argv", ["python", "-m", "lcgcn_jax", "train", "--workdir", "a b"]
    )
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("LD_PRELOAD", "")  # restored at the end
    monkeypatch.delenv("LD_PRELOAD")
    return calls


def test_command_starts_again_with_the_same_arguments(restarts):
    assert allocator.allocator_advice().endswith(
        "start Python with LD_PRELOAD=libtcmalloc_minimal.so.4"
    )
    with pytest.raises(SystemExit):
        allocator.restart_with_tcmalloc()
    words = [sys.executable, "-m", "lcgcn_jax", "train", "--workdir", "a b"]
    assert restarts == [(sys.executable, words)]
    assert os.environ["LD_PRELOAD"] == "libtcmalloc_minimal.so.4"


def test_library_of_the_user_takes_precedence(restarts, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "libjemalloc.so.2")
    allocator.restart_with_tcmalloc()
    assert restarts == []
    assert allocator.allocator_advice() == ""


def test_without_tcmalloc_the_command_continues(restarts, monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert "install libtcmalloc-minimal4" in allocator.allocator_advice()
    allocator.restart_with_tcmalloc()
    assert restarts == []
    assert "LD_PRELOAD" not in os.environ


def test_other_systems_are_not_changed(restarts, monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    allocator.restart_with_tcmalloc()
    assert restarts == []
    assert allocator.allocator_advice() == ""


@pytest.mark.parametrize("name", ["nvidia0", "accel1", "vfio/2"])
def test_machines_with_an_accelerator_are_not_changed(restarts, monkeypatch, tmp_path, name):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(allocator, "_DEVICE_FOLDER", tmp_path)
    assert allocator.allocator_advice()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert allocator.allocator_advice() == ""


@pytest.mark.parametrize(
    ("name", "count"),
    [("train", 1), ("demo", 1), ("bench", 1), ("fit-shape", 1), ("models", 0), ("predict", 0)],
)
def test_only_commands_that_train_start_again(monkeypatch, name, count):
    calls = []
    monkeypatch.setattr(command, "restart_with_tcmalloc", lambda: calls.append(name))
    monkeypatch.setattr(command, "exit_code_of", lambda function: 0)
    monkeypatch.setattr(sys, "argv", ["lcgcn", name])
    assert command.main() == 0
    assert command.main([name]) == 0, "in Python, this process continues"
    assert len(calls) == count


def test_real_command_runs_with_tcmalloc():
    try:
        ctypes.CDLL(allocator.LIBRARIES[0])
    except OSError:
        pytest.skip(f"{allocator.LIBRARIES[0]} is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    words = [sys.executable, "-m", "lcgcn_jax", "train", "--config", "no such"]
    result = subprocess.run(
        words,
        env=environment | {"JAX_PLATFORMS": "cpu", "LD_DEBUG": "files"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert f"file={allocator.LIBRARIES[0]} [0];  needed by {sys.executable}" in result.stderr
    assert "--workdir" in result.stderr, "is missing"

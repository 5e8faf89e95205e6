"""Atomic replacement of files."""

import contextlib
import errno
import os
import subprocess
import sys

import pytest

from lcgcn_jax.atomic_io import lock_file, require_writable, write_whole
from lcgcn_jax.errors import InputError


def test_file_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("one", "two"):
        write_whole(path, lambda tmp, text=text: tmp.write_text(text))
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_only_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(tmp):
        tmp.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_devices_and_pipes_are_not_replaced(pipe):
    with pytest.raises(InputError, match="pipe: is a device or pipe; give a file"):
        require_writable(pipe, overwrite=True)
    with pytest.raises(OSError, match="is a device or pipe"):
        write_whole(pipe, lambda partial: partial.write_text("1"))
    assert pipe.is_fifo()
    assert list(pipe.parent.iterdir()) == [pipe]


def test_two_results_need_two_files(tmp_path):
    paths = tmp_path / "a.json", tmp_path / "b" / ".." / "a.json"
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="is given for two results; choose two files"):
        require_writable(*paths, overwrite=False)
    require_writable(tmp_path / "a.json", tmp_path / "b.json", overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_name_that_is_too_long_is_found_before_the_computation(tmp_path):
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        require_writable(tmp_path / ("x" * 255), overwrite=False)


def test_a_file_is_locked_for_one_holder(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        assert lock_file(first)
        assert not lock_file(second)
        first.close()
        assert lock_file(second, wait=True)


def test_the_package_can_be_imported_without_file_locks():
    modules = "lcgcn_jax.inference.model, lcgcn_jax.training.trainer, lcgcn_jax.training.run_lock"
    code = f"import sys; sys.modules['fcntl'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("number", "is_ignored"), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_only_missing_locks_are_ignored(tmp_path, monkeypatch, number, is_ignored):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)
    expected = contextlib.nullcontext() if is_ignored else pytest.raises(OSError, match=r"\[Errno")
    with (tmp_path / "lock").open("w") as file, expected:
        assert lock_file(file)

"""Tests of `cpu_kernels.library`: compilation and loading of the kernels."""

import os
import shutil
from pathlib import Path

import pytest

from lcgcn_jax.cpu_kernels import library


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """Path of the folder of libraries in an empty cache; no library is registered."""
    monkeypatch.setenv(library.VARIABLE, "true")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(library, "_PREFIXES", {})
    monkeypatch.setattr(library, "_register", lambda library, prefix: prefix)  # XLA accepts one
    return tmp_path / "lcgcn_jax_kernels"


@pytest.fixture
def no_compilation(monkeypatch):
    monkeypatch.setattr(library, "_compile", lambda path: pytest.fail("compiled"))


@pytest.fixture
def library_file(kernel_cache):
    (file,) = (kernel_cache / "lcgcn_jax_kernels").glob("*.so")
    return file


def test_library_is_compiled_once(library_file, kernels, no_compilation, monkeypatch):
    monkeypatch.setattr(library, "_PREFIXES", {})
    monkeypatch.setattr(library, "_register", lambda library, prefix: prefix)  # XLA accepts one
    assert library.load_library(build=True) == kernels
    assert library_file.stem.partition("-")[0] in kernels


@pytest.mark.parametrize("value", ["0", "false", "False"])
def test_variable_disables_them(empty_cache, monkeypatch, value):
    monkeypatch.setenv(library.VARIABLE, value)
    monkeypatch.setattr(library, "_compiler", lambda: None)
    assert library.load_library(build=True) is None
    assert library.compiler_advice() == ""


def test_predictions_do_not_compile_them(empty_cache, no_compilation):
    assert library.load_library(build=False) is None
    assert not empty_cache.exists()


def test_without_a_compiler_xla_is_used(empty_cache, monkeypatch):
    assert library.compiler_advice() == ""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert library.load_library(build=True) is None
    assert "install g++" in library.compiler_advice()


def test_no_advice_if_there_is_a_library(kernels, monkeypatch):
    monkeypatch.setattr(library, "_compiler", lambda: None)
    assert library.compiler_advice() == ""


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("false", "returned non-zero exit status 1"),
        ("no-such-compiler", "No such file or directory: 'no-such-compiler'"),
        ("sh -c 'echo first; echo last >&2; exit 3' --", ": last;"),
        ("sh -c 'printf \\377 >&2; exit 3' --", "cannot be compiled or loaded"),
        ("g++ 'unbalanced", "No closing quotation"),
        ("sh -c 'echo x.cc: error: no y.h >&2; echo terminated >&2; exit 1' --", "error: no y.h"),
        ("sh -c 'for last; do :; done; echo text > $last' --", "without Convolution"),
    ],
)
def test_compiler_that_fails(empty_cache, monkeypatch, caplog, compiler, message):
    """Training continues, with one warning per process."""
    monkeypatch.setenv("CXX", compiler)
    for _ in range(3):
        assert library.load_library(build=True) is None
    assert caplog.text.count("cannot be compiled") == 1
    assert message in caplog.text
    assert not empty_cache.exists()


def test_folder_that_cannot_be_written(library_file, empty_cache, monkeypatch):
    """The library is used without being stored, and compiled once per process."""
    calls = []

    def compile_to(path):
        calls.append(path)
        shutil.copy(library_file, path)

    monkeypatch.setattr(library, "_compile", compile_to)
    empty_cache.write_text("a file")
    assert library.load_library(build=True)
    assert library.load_library(build=True)
    assert len(calls) == 1


@pytest.mark.parametrize("refused", ["temporary", "cache"])
def test_folder_whose_files_cannot_be_executed(library_file, empty_cache, monkeypatch, refused):
    """As on systems with `noexec` for `/tmp` or for the home folder."""
    load_file, loaded = library.ctypes.CDLL, []

    def load(path):
        is_cached = Path(path).parent == empty_cache
        if is_cached == (refused == "cache"):
            raise OSError("failed to map segment from shared object")
        loaded.append(path)
        return load_file(path)

    monkeypatch.setattr(library, "_compile", lambda path: shutil.copy(library_file, path))
    monkeypatch.setattr(library.ctypes, "CDLL", load)
    assert library.load_library(build=True)
    assert len(loaded) == 1


def test_library_that_cannot_be_loaded_does_not_hide_another(library_file, empty_cache):
    """As in a home folder of machines with other versions of the C++ library."""
    empty_cache.mkdir()
    content = b"not a library"
    prefix = library_file.stem.rpartition("-")[0]
    (empty_cache / f"{prefix}-{library._digest(content)}.so").write_bytes(content)
    assert library.load_library(build=False) is None
    shutil.copy(library_file, empty_cache)
    assert library.load_library(build=False)


def test_cache_folder_without_permission(empty_cache, monkeypatch):
    def refuse(self, pattern):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "glob", refuse)
    assert library.load_library(build=False) is None


def test_damaged_library_is_not_used(library_file, empty_cache):
    empty_cache.mkdir()
    (empty_cache / library_file.name).write_bytes(library_file.read_bytes()[:1000])
    assert library.load_library(build=False) is None


@pytest.mark.parametrize("change", ["owner", "mode", "link"])
def test_library_that_others_can_write_is_not_loaded(
    library_file, empty_cache, monkeypatch, change
):
    empty_cache.mkdir()
    file = empty_cache / library_file.name
    if change == "link":
        file.symlink_to(library_file)
    else:
        shutil.copy(library_file, file)
    if change == "mode":
        file.chmod(0o666)
    if change == "owner":
        user = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
        file.rename(empty_cache / file.name.replace(f"-{user}-", f"-{user + 1}-"))
    assert library.load_library(build=False) is None


def test_old_libraries_are_deleted(library_file, empty_cache, monkeypatch):
    monkeypatch.setattr(library, "_compile", lambda path: shutil.copy(library_file, path))
    empty_cache.mkdir()
    for i in range(12):
        old = empty_cache / f"{i}.so"
        old.touch()
        os.utime(old, (i, i))
    assert library.load_library(build=True)
    names = {file.name for file in empty_cache.iterdir()}
    assert len(names) == library._MAX_LIBRARIES
    assert library_file.name in names
    assert "11.so" in names

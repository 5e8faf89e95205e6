"""Compilation and loading of the kernels in C++.

The compiler of the system compiles them once, for the processor of this machine. The library is kept in the
cache folder. Loading it runs its code, as for JAX's own compilation cache, so only a file that this user has
written, and no one else can write, is loaded.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax

from lcgcn_jax.atomic_io import write_whole
from lcgcn_jax.cache import compilation_cache_folder, processor

VARIABLE = "LCGCN_CPU_KERNELS"
"""Environment variable that disables the kernels if it is `false` or 0."""

KERNELS = (
    "Convolution", "KernelGradient", "BatchNorm", "BatchNormGradient", "Upsampling", "UpsamplingGradient"
)  # fmt: skip

_LOGGER = logging.getLogger("lcgcn_jax")
_SOURCES = Path(__file__).parent
_NATIVE = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
_OPTIONS = ("-std=c++17", "-O3", _NATIVE, "-fPIC", "-fvisibility=hidden", "-shared", "-w")
_COMPILERS = ("c++", "g++", "clang++")
_MAX_SECONDS = 120
_MAX_LIBRARIES = 8

_LOCK = threading.Lock()
_PREFIXES: dict[str, str | None] = {}  # by key; None: the library cannot be compiled or loaded


def load_library(*, build: bool) -> str | None:
    """Register the kernels with XLA.

    Args:
      build: whether to compile them if the cache does not have them; takes a few seconds.

    Returns:
      Prefix of the names under which XLA knows `KERNELS`; None if the kernels are not available: on another
      system than Linux, without a C++ compiler, or if they are disabled.
    """
    if not _is_enabled():
        return None
    with _LOCK:
        key = _key()
        if key not in _PREFIXES:
            library = _load(key, build=build)
            if library is None and not build:
                return None  # a later call may build it
            _PREFIXES[key] = None if library is None else _register(library, f"lcgcn_{key}_")
        return _PREFIXES[key]


def compiler_advice() -> str:
    """A line about the C++ compiler for the start of a training on one CPU; empty if it is not needed."""
    if not _is_enabled() or _compiler() is not None or load_library(build=False) is not None:
        return ""
    return (
        "training on a CPU takes less time with a C++ compiler; install g++ (apt) or gcc-c++ (dnf)"
    )


def _is_enabled() -> bool:
    is_disabled = os.environ.get(VARIABLE, "").lower() in ("0", "false")
    return sys.platform == "linux" and not is_disabled


def _compiler() -> str | None:
    """Command of the C++ compiler."""
    return os.environ.get("CXX") or next(filter(None, map(shutil.which, _COMPILERS)), None)


def _key() -> str:
    """Digest of the sources, options, compiler, version of jaxlib and processor.

    Calls of different versions have different names.
    """
    environment = (_OPTIONS, os.environ.get("CXX"), metadata.version("jaxlib"), processor())
    return _digest(_source() + repr(environment).encode())


@functools.cache
def _source() -> bytes:
    return b"".join(path.read_bytes() for path in sorted(_SOURCES.glob("*.[ch]*")))


def _register(library: ctypes.CDLL, prefix: str) -> str:
    for name in KERNELS:
        capsule = jax.ffi.pycapsule(getattr(library, _symbol(name)))
        jax.ffi.register_ffi_target(prefix + name, capsule, platform="cpu")
    return prefix


def _load(key: str, *, build: bool) -> ctypes.CDLL | None:
    """Load the library from the cache, or compile it; None if that fails."""
    cache = compilation_cache_folder()
    folder = None if cache is None else cache / "lcgcn_jax_kernels"
    if folder is not None and (library := _open(folder, key)):
        return library
    if not build or _compiler() is None:
        return None
    try:
        return _build(folder, key)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        text = (getattr(error, "stderr", None) or str(error)).strip() or "no message"
        lines = text.splitlines()
        _LOGGER.warning(
            "lcgcn: the C++ kernels cannot be compiled or loaded: %s; training takes longer without them; "
            "set CXX to a C++ compiler, TMPDIR to a folder whose files can be executed, or %s=false",
            next((line for line in lines if "error" in line), lines[-1]),
            VARIABLE,
        )
        return None


def _build(folder: Path | None, key: str) -> ctypes.CDLL:
    """Compile the library, and store it in a folder.

    Raises:
      OSError, ValueError, subprocess.SubprocessError: it cannot be compiled or loaded.
    """
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "kernels.so")
        _compile(path)
        content = path.read_bytes()
        if missing := [name for name in KERNELS if _symbol(name).encode() not in content]:
            raise OSError(f"the compiler wrote a library without {', '.join(missing)}")
        if folder is not None:
            _store(content, folder, key)
            # The temporary folder may be mounted with noexec.
            if library := _open(folder, key):
                return library
        return ctypes.CDLL(str(path))


def _symbol(kernel: str) -> str:
    return f"Lcgcn{kernel}"


def _open(folder: Path, key: str) -> ctypes.CDLL | None:
    """Load a library from a folder; None if it has none, or files there cannot be executed."""
    for path in _find(folder, key):
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:  # also a library for another version of the C++ library
            _LOGGER.info("lcgcn: %s: cannot be loaded: %s", path, error)
    return None


def _find(folder: Path, key: str) -> Iterator[Path]:
    """Yield the libraries of this user in a folder whose digest is that in their name."""
    user = os.getuid()
    try:
        paths = sorted(folder.glob(f"{key}-{user}-*.so"))
    except OSError:  # a folder without permission
        return
    for path in paths:
        try:
            status = path.lstat()
            is_private = status.st_uid == user and not status.st_mode & (
                stat.S_IWGRP | stat.S_IWOTH
            )
            is_own = is_private and stat.S_ISREG(status.st_mode)
            if is_own and path.stem.endswith(_digest(path.read_bytes())):
                yield path
        except OSError:  # deleted by another process
            continue


def _store(content: bytes, folder: Path, key: str) -> None:
    """Write the library to the cache, and delete the oldest ones."""
    path = folder / f"{key}-{os.getuid()}-{_digest(content)}.so"

    def write(partial: Path) -> None:
        partial.write_bytes(content)
        partial.chmod(0o644)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
        libraries = sorted(folder.glob("*.so"), key=lambda file: file.stat().st_mtime)
        for old in libraries[:-_MAX_LIBRARIES]:
            old.unlink(missing_ok=True)
    except OSError as error:
        _LOGGER.info("lcgcn: %s: cannot be written: %s", path, error)


def _compile(path: Path) -> None:
    command = [*shlex.split(_compiler() or ""), *_OPTIONS, "-isystem", jax.ffi.include_dir()]
    command += [str(_SOURCES / "kernels.cc"), "-o", str(path)]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_MAX_SECONDS,
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]

"""Compilation and loading of the kernels in C++.

The compiler of the system compiles them once, for the processor of this machine. The library is kept in the
cache folder. Loading it runs its code, as for JAX's own compilation cache, so only a file of the same user is
loaded.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from importlib import metadata
from pathlib import Path

import jax

from lcgcn_jax.atomic_io import write_whole
from lcgcn_jax.cache import compilation_cache_folder, processor

SWITCH = "LCGCN_CPU_KERNELS"
"""Environment variable that disables the kernels if it is `false` or 0."""

FUNCTIONS = (
    "Convolution", "KernelGradient", "BatchNorm", "BatchNormGradient", "Upsampling", "UpsamplingGradient"
)  # fmt: skip
"""Names of the kernels."""

_LOGGER = logging.getLogger("lcgcn_jax")
_FOLDER = Path(__file__).parent
_SOURCE = _FOLDER / "kernels.cc"
_OPTIONS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w")
_COMPILERS = ("c++", "g++", "clang++")
_MAX_SECONDS = 120

_LOCK = threading.Lock()
_PREFIXES: dict[str, str] = {}  # of the registered libraries, by key


def load_library(*, build: bool) -> str | None:
    """Register the kernels with XLA.

    Args:
      build: whether to compile them if the cache does not have them; takes a few seconds.

    Returns:
      Prefix of the names under which XLA knows `FUNCTIONS`; None if the kernels are not available: on another
      system than Linux, without a C++ compiler, or if they are disabled.
    """
    if not _is_enabled():
        return None
    with _LOCK:
        return _PREFIXES.get(_key()) or _register(_key(), build=build)


def compiler_advice() -> str:
    """A line about the C++ compiler for the start of a training on one CPU; empty if it is not needed."""
    if not _is_enabled() or _compiler() is not None:
        return ""
    return (
        "training on a CPU takes less time with a C++ compiler; install g++ (apt) or gcc-c++ (dnf)"
    )


def _is_enabled() -> bool:
    is_disabled = os.environ.get(SWITCH, "").lower() in ("0", "false")
    return sys.platform == "linux" and not is_disabled


def _compiler() -> str | None:
    """Command of the C++ compiler."""
    return os.environ.get("CXX") or next(filter(None, map(shutil.which, _COMPILERS)), None)


@functools.cache
def _key() -> str:
    """Digest of all that the library depends on; calls of different versions have different names."""
    digest = hashlib.sha256()
    for path in (_SOURCE, *sorted(_FOLDER.glob("*.h"))):
        digest.update(path.read_bytes())
    environment = (_OPTIONS, metadata.version("jaxlib"), processor())
    digest.update(repr(environment).encode())
    return digest.hexdigest()[:32]


def _register(key: str, *, build: bool) -> str | None:
    cache = compilation_cache_folder()
    if cache is None:
        return None
    folder = cache / "lcgcn_jax"
    try:
        path = _find(folder, key) or (_compile(folder, key) if build else None)
        if path is None:
            return None
        library = ctypes.CDLL(str(path))
    except OSError as error:
        _LOGGER.info("lcgcn: %s: the kernels for CPUs cannot be loaded: %s", folder, error)
        return None
    prefix = f"lcgcn_{key}_"
    for name in FUNCTIONS:
        capsule = jax.ffi.pycapsule(getattr(library, f"Lcgcn{name}"))
        jax.ffi.register_ffi_target(prefix + name, capsule, platform="cpu")
    return _PREFIXES.setdefault(key, prefix)


def _find(folder: Path, key: str) -> Path | None:
    """Return the library in a folder, if this user has written it and its digest is that in its name."""
    for path in folder.glob(f"{key}-*.so"):
        is_intact = path.stem == f"{key}-{_digest(path.read_bytes())}"
        if is_intact and path.stat().st_uid == os.getuid():
            return path
    return None


def _compile(folder: Path, key: str) -> Path | None:
    """Compile the library into a folder; returns None if that fails."""
    compiler = _compiler()
    if compiler is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        result = Path(temporary, "kernels.so")
        command = [*shlex.split(compiler), *_OPTIONS, "-isystem", jax.ffi.include_dir()]
        command += [str(_SOURCE), "-o", str(result)]
        try:
            subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=_MAX_SECONDS
            )
            content = result.read_bytes()
        except (subprocess.SubprocessError, OSError) as error:
            details = getattr(error, "stderr", None) or str(error)
            _LOGGER.info("lcgcn: the kernels for CPUs cannot be compiled: %s", details)
            return None
    path = folder / f"{key}-{_digest(content)}.so"
    write_whole(path, lambda partial: partial.write_bytes(content))
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]

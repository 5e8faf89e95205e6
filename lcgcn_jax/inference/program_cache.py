"""Files of compiled programs, which later processes load instead of tracing and compiling a model again.

The name of a file has two hashes. The first is that of the bundle, the code that traces it, and the versions
of the libraries; the second that of everything else that a program depends on: the processor, the number of
threads, and the options of JAX and XLA. A file starts with the SHA-256 of the rest. Loading a program runs
its code, as for JAX's own compilation cache, so only files of the same user are read.
"""

import contextlib
import functools
import hashlib
import logging
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from lcgcn_jax.atomic_io import write_whole
from lcgcn_jax.cache import compilation_cache_folder, processor

_LOGGER = logging.getLogger("lcgcn_jax")
_LIBRARIES = ("jax", "jaxlib", "flax")
_PACKAGE = Path(__file__).parents[1]
_MAX_BYTES = 256 << 20  # total size of the files; the program of `w300-lcgcn-small` has 9 MB
_DIGEST_BYTES = hashlib.sha256().digest_size


def is_known(digest: str) -> bool:
    """Whether the cache has a program of a bundle, whose weights were therefore checked by this code."""
    folder = _folder()
    try:
        return folder is not None and any(folder.glob(f"{_bundle_key(digest)}-*"))
    except OSError:
        return False


def read_program(digest: str, *parts: object) -> bytes | None:
    """Read a program, or return None if there is no intact one.

    Args:
      digest: digest of the bundle (`models.bundles.read_bundle`).
      parts: everything else that the program depends on, with a `repr` that identifies it.
    """
    path = _path(digest, parts)
    if path is None:
        return None
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            return None
        content = path.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):  # a read-only folder
        os.utime(path)  # the oldest files are deleted first
    program = content[_DIGEST_BYTES:]
    return program if hashlib.sha256(program).digest() == content[:_DIGEST_BYTES] else None


def write_program(program: bytes, digest: str, *parts: object) -> None:
    """Write a program. Without access to the folder, nothing is written."""
    path = _path(digest, parts)
    if path is None:
        return
    content = hashlib.sha256(program).digest() + program
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda partial: partial.write_bytes(content))
        _delete_oldest(path.parent)
    except OSError as error:
        _LOGGER.info("lcgcn: %s: cannot be written: %s", path, error.strerror)


def delete_program(digest: str, *parts: object) -> None:
    """Delete a program that cannot be used."""
    path = _path(digest, parts)
    try:
        if path is not None:
            path.unlink(missing_ok=True)
    except OSError as error:
        _LOGGER.info("lcgcn: %s: cannot be deleted: %s", path, error.strerror)


def _folder() -> Path | None:
    folder = compilation_cache_folder()
    return None if folder is None else folder / "lcgcn_jax"


def _path(digest: str, parts: Iterable[object]) -> Path | None:
    folder = _folder()
    if folder is None or not digest:
        return None
    environment = (processor(), _num_threads(), os.environ.get("XLA_FLAGS"), *parts)
    return folder / f"{_bundle_key(digest)}-{_hash(environment)}"


def _delete_oldest(folder: Path) -> None:
    """Delete the files that were not used for the longest time, above a total size."""
    total = 0
    files = [(path.stat(), path) for path in folder.iterdir() if path.is_file()]
    for stat, path in sorted(files, key=lambda item: -item[0].st_mtime):
        total += stat.st_size
        if total > _MAX_BYTES:
            path.unlink(missing_ok=True)


def _bundle_key(digest: str) -> str:
    return _hash((digest, _code(), [metadata.version(name) for name in _LIBRARIES], sys.version))


def _hash(parts: Iterable[object]) -> str:
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:32]


@functools.cache
def _code() -> str:
    """Digest of the modules that determine the program of a model."""
    patterns = ("*.py", "models/*.py", "cpu_kernels/*.py", "inference/program*.py")
    paths = sorted(path for pattern in patterns for path in _PACKAGE.glob(pattern))
    return _hash(path.read_bytes() for path in paths)


def _num_threads() -> int | None:
    """Number of threads of XLA, which divides loops among them when it compiles."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

"""Atomic replacement of files, locks, and checksums."""

import contextlib
import errno
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from lcgcn_jax import interrupts, storage
from lcgcn_jax.errors import InputError, require_absent

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PARTIALS = ".*.partial*"
"""Pattern of temporary files, including those of killed processes."""

_CHUNK = 1 << 20  # bytes read at a time
_NUM_READERS = 8


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Temporary file that replaces `path` when the block succeeds, and is deleted when it fails.

    Raises:
      OSError: the file cannot be written.
    """
    with replacing_all([path]) as (partial,):
        yield partial


@contextlib.contextmanager
def replacing_all(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary files that replace `paths` when the block succeeds, and are deleted when it fails.

    Raises:
      OSError: a file cannot be written; the error names it and not the temporary file.
    """
    partials = [storage.partial_file(path) for path in paths]
    names = {str(partial): str(path) for partial, path in zip(partials, paths, strict=True)}
    try:
        yield partials
        with interrupts.deferred():
            for partial, path in zip(partials, paths, strict=True):
                storage.commit_file(partial, path)
    except OSError as error:
        if str(error.filename) in names:
            raise OSError(error.errno, error.strerror, names[str(error.filename)]) from error
        raise
    finally:
        with interrupts.deferred():
            for partial in partials:
                partial.unlink(missing_ok=True)


def lock_file(file: int | IO[Any], *, wait: bool = False) -> bool:
    """Lock an open file for this process until it is closed.

    Windows and some network file systems have no such locks; the file is then not locked.

    Args:
      wait: wait for another process that has locked the file.

    Returns:
      Whether no other process has locked it.

    Raises:
      OSError: the file cannot be locked.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write several files, all of them or none.

    Raises:
      OSError: a file cannot be written; the error names it.
    """
    with replacing_all(list(contents)) as partials:
        for partial, path in zip(partials, contents, strict=True):
            try:
                partial.write_bytes(contents[path])
            except OSError as error:  # the error for a full disk names no file
                raise OSError(error.errno, error.strerror, str(path)) from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically.

    Args:
      write: function that writes the content to the path that it is called with.

    Raises:
      OSError: the file cannot be written.
    """
    with replacing(path) as partial:
        write(partial)


def require_writable(*paths: Path, overwrite: bool) -> None:
    """Check that files can be written, before a long computation; create their folders.

    Raises:
      InputError: one is a folder, a device or a pipe, already exists, or its folder cannot be written; or two
        are the same file.
    """
    for path in paths:
        _require_writable(path, overwrite=overwrite)
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError(f"{paths[-1]}: is given for two results; choose two files")


def _require_writable(path: Path, *, overwrite: bool) -> None:
    with writing(path):
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give a file")
        if path.exists() and not path.is_file():  # which a renamed file would replace
            raise InputError(f"{path}: is a device or pipe; give a file")
        require_absent(path, overwrite=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = storage.partial_file(path)
        partial.touch()
        partial.unlink()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert errors of a block that writes a file or folder to messages of one line.

    Raises:
      InputError: for example, the disk is full or the folder is read-only.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {error.strerror or error}; give another place, or make room"
        ) from error


def write_json(path: Path, content: object) -> None:
    """Write an output file in JSON, whole or not at all.

    Raises:
      InputError: it cannot be written.
    """
    text = json.dumps(content, indent=1) + "\n"
    with writing(path):
        write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def checksums(folder: Path) -> dict[str, dict[str, int]]:
    """Checksums of the files in a folder and below it.

    A CRC detects every corruption of a few bytes at about 1 GB/s. It does not protect against deliberate
    changes.

    Returns:
      Relative path -> `bytes`, the size, and `crc32`.

    Raises:
      OSError: a file cannot be read.
    """
    names = list(storage.file_sizes(folder))
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return dict(zip(names, pool.map(lambda name: _checksum(folder / name), names), strict=True))


def _checksum(path: Path) -> dict[str, int]:
    crc = size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return {"bytes": size, "crc32": crc}

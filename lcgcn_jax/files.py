"""Writing files, and telling whether they are still as they were written."""

import contextlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lcgcn_jax.errors import InputError

PARTIALS = ".*.partial*"
"""Pattern of the names of files that are being written, or were when their process was killed."""

_CHUNK = 1 << 20  # bytes read at a time


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of another one when the block ends well.

    Until then what was there before stays, and if the block fails, nothing of the new file does.

    Args:
      path: the file that is replaced, or made.

    Raises:
      OSError: it cannot be written.
    """
    # With the same ending, which tells some writers what to write, and apart from other processes'.
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file whole or not at all, as `replacing`.

    Args:
      path: the file.
      write: writes the content to the file that it is given.

    Raises:
      OSError: it cannot be written.
    """
    with replacing(path) as partial:
        write(partial)


def require_writable(path: Path, *, overwrite: bool) -> None:
    """Checks before minutes of work that a file can be written at their end; makes its folder.

    Args:
      path: the file.
      overwrite: whether it may be there already.

    Raises:
      InputError: it is a folder, is there already, or its folder cannot be written.
    """
    with writing(path):
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give a file")
        if path.exists() and not overwrite:
            raise InputError(f"{path}: already exists; choose another file or give --overwrite")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Reports in one line what keeps the block from writing a file or folder.

    Raises:
      InputError: the disk is full, the folder is read-only, and the like.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {error.strerror or error}; give another place, or make room"
        ) from error


def checksums(folder: Path) -> dict[str, dict[str, int]]:
    """What the files in a folder and below it hold, in short.

    A CRC finds any damage to a few bytes, reads a gigabyte a second, and is no protection against someone
    who means to deceive.

    Returns:
      Path within the folder -> `bytes`, the size, and `crc32`.

    Raises:
      OSError: a file cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _checksum(path) for path in files}


def _checksum(path: Path) -> dict[str, int]:
    crc = size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return {"bytes": size, "crc32": crc}

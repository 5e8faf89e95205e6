"""Writing files, and telling whether they are still as they were written."""

import contextlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lcgcn_jax import interrupts
from lcgcn_jax.errors import InputError, require_absent

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
    with replacing_all([path]) as (partial,):
        yield partial


@contextlib.contextmanager
def replacing_all(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Files to write that belong together: all of them take their places when the block ends well, or none.

    Args:
      paths: the files that are replaced, or made.

    Raises:
      OSError: one cannot be written; the error names it and not the temporary file.
    """
    # With the same ending, which tells some writers what to write, and apart from other processes'.
    partials = [p.with_name(f".{p.stem}.{os.getpid()}.partial{p.suffix}") for p in paths]
    names = {str(partial): str(path) for partial, path in zip(partials, paths, strict=True)}
    try:
        yield partials
        with interrupts.deferred():
            for partial, path in zip(partials, paths, strict=True):
                partial.replace(path)
    except OSError as error:
        if str(error.filename) in names:
            raise OSError(error.errno, error.strerror, names[str(error.filename)]) from error
        raise
    finally:
        with interrupts.deferred():
            for partial in partials:
                partial.unlink(missing_ok=True)


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Writes files that belong together, all of them whole or none.

    Args:
      contents: file -> what it will hold.

    Raises:
      OSError: one cannot be written; the error names it.
    """
    with replacing_all(list(contents)) as partials:
        for partial, path in zip(partials, contents, strict=True):
            try:
                partial.write_bytes(contents[path])
            except OSError as error:  # of a full disk, it names no file
                raise OSError(error.errno, error.strerror, str(path)) from error


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
        require_absent(path, overwrite=overwrite)
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


def write_json(path: Path, content: object) -> None:
    """Write an output file in JSON, whole or not at all.

    Raises:
      InputError: it cannot be written.
    """
    text = json.dumps(content, indent=1) + "\n"
    with writing(path):
        write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


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

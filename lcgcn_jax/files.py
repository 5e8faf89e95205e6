"""Writing files."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path


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

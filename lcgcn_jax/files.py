"""Writing files."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file whole or not at all; what was there before stays until then.

    Args:
      path: the file.
      write: writes the content to the file that it is given, which then takes the name.

    Raises:
      OSError: it cannot be written.
    """
    tmp = path.with_name(path.name + ".tmp")
    try:
        write(tmp)
        os.replace(tmp, path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise

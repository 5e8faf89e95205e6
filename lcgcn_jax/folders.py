"""Files below a folder."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from lcgcn_jax.errors import InputError

SYSTEM_FOLDERS = frozenset(
    ("lost+found", ".trashes", ".spotlight-v100", ".fseventsd", ".documentrevisions-v100",
     "system volume information", "$recycle.bin")
)  # fmt: skip
"""Folders that systems add to volumes, in lower case; users cannot read them."""


def _refuse(error: OSError) -> None:
    raise InputError(
        f"{error.filename}: cannot be read: {error.strerror}; change its permissions, or move it elsewhere"
    ) from error


def files_below(folder: Path, on_error: Callable[[OSError], None] = _refuse) -> Iterator[Path]:
    """Find the files in a folder and its subfolders, sorted, then those in linked folders.

    `SYSTEM_FOLDERS` are left out.

    A link to a folder is followed unless that folder contains, or is in, one that was searched before. So
    loops of links end, and links inside `folder` give no file twice.

    Args:
      on_error: called with the error of each folder that cannot be read, which is then skipped.

    Raises:
      InputError: without `on_error`: a folder cannot be read.
    """
    searched = [Path(os.path.realpath(folder))]
    pending = [folder]
    while pending:
        files, links = [], []
        for parent, folders, names in os.walk(pending.pop(0), onerror=on_error):
            folders[:] = [name for name in folders if name.lower() not in SYSTEM_FOLDERS]
            # Without this permission, the names can be listed and the files cannot be read.
            if not os.access(parent, os.X_OK):
                code = errno.EACCES
                on_error(PermissionError(code, os.strerror(code), parent))
                folders.clear()
                continue
            files += [Path(parent, name) for name in names]
            links += [path for name in folders if (path := Path(parent, name)).is_symlink()]
        yield from sorted(files)
        for link in sorted(links):
            target = Path(os.path.realpath(link))
            if any(target.is_relative_to(s) or s.is_relative_to(target) for s in searched):
                continue
            searched.append(target)
            pending.append(link)

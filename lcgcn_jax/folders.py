"""Files below a folder."""

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(folder: Path) -> Iterator[Path]:
    """Find the files in a folder and its subfolders, sorted, then those in linked folders.

    A link to a folder is followed unless that folder contains, or is in, one that was searched before. So
    loops of links end, and links inside `folder` give no file twice.
    """
    searched = [Path(os.path.realpath(folder))]
    pending = [folder]
    while pending:
        files, links = [], []
        for parent, folders, names in os.walk(pending.pop(0)):
            files += [Path(parent, name) for name in names]
            links += [path for name in folders if (path := Path(parent, name)).is_symlink()]
        yield from sorted(files)
        for link in sorted(links):
            target = Path(os.path.realpath(link))
            if any(target.is_relative_to(s) or s.is_relative_to(target) for s in searched):
                continue
            searched.append(target)
            pending.append(link)

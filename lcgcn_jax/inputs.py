"""What people name on a command line: photographs and videos, folders of them, and patterns."""

import dataclasses
import glob
import os
from collections.abc import Iterable
from pathlib import Path

from lcgcn_jax.errors import InputError

PHOTOGRAPH_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".gif",
    ".ppm", ".pgm", ".pnm",
)  # fmt: skip
VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".avi",
    ".mkv",
    ".webm",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".mjpeg",
)


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A photograph or video to work on.

    Attributes:
      path: the file.
      name: what its results are called, without a suffix: its name, below the folder that was given.
    """

    path: Path
    name: Path

    @property
    def is_video(self) -> bool:
        """Whether it is a video, by its suffix."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_inputs(texts: Iterable[str]) -> list[InputFile]:
    """The files that are meant, in order, each once.

    A folder stands for the photographs and videos in it and below it, by their suffixes; a pattern
    (`*`, `?`, `[...]`, `**`) for what it matches. A file that is named is taken whatever its suffix.

    Raises:
      InputError: a folder or a pattern gives no file, or two files would have results of one name.
    """
    inputs: dict[str, InputFile] = {}
    for text in texts:
        path = Path(text)
        # Unlike those of Path, these take any text and any link.
        if os.path.exists(path) or not glob.has_magic(text):
            matches = [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
            if not matches:
                raise InputError(f"{text}: no file matches this pattern")
        for match in matches:
            if os.path.isdir(match):
                found = _below(match)
                if not found and len(matches) == 1:
                    raise InputError(f"{match}: no photograph or video in this folder")
            else:
                found = [InputFile(match, _name_of(match))]
            for file in found:
                inputs.setdefault(os.path.realpath(file.path), file)
    return _with_own_names(list(inputs.values()))


def _below(folder: Path) -> list[InputFile]:
    suffixes = PHOTOGRAPH_SUFFIXES + VIDEO_SUFFIXES
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in suffixes]
    return [
        InputFile(path, path.relative_to(folder).parent / _name_of(path))
        for path in files
        if path.is_file()
    ]


def _name_of(path: Path) -> Path:
    """A file's name without its suffix; with it where only dots would be left, as of `..jpg`."""
    return Path(path.stem if path.stem.strip(".") else path.name)


def _with_own_names(inputs: list[InputFile]) -> list[InputFile]:
    """Where two files differ in their suffix alone, the results keep it: `a.jpg.json`."""
    names = [file.name for file in inputs]
    inputs = [
        dataclasses.replace(file, name=file.name.with_name(file.path.name))
        if names.count(file.name) > 1
        else file
        for file in inputs
    ]
    taken: dict[Path, InputFile] = {}
    for file in inputs:
        if (other := taken.setdefault(file.name, file)) is not file:
            raise InputError(
                f"{file.path}: its results would have the name of those of {other.path}; run them "
                "apart, with an --out each"
            )
    return inputs

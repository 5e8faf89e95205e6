"""Command-line inputs: image and video files, folders of them, and patterns."""

import collections
import dataclasses
import glob
import os
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from lcgcn_jax.atomic_io import PARTIALS
from lcgcn_jax.errors import InputError
from lcgcn_jax.image_io import IMAGE_SUFFIXES

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
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
"""Suffixes of images that have to be converted first."""

# Files that usually lie next to images; skipping them is not reported.
_SIDECARS = (
    ".pts", ".txt", ".json", ".jsonl", ".csv", ".xml", ".yaml", ".yml", ".md", ".ini", ".db", ".py",
)  # fmt: skip

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # at least two letters: `C:` is a drive
_SHOWN_TEXT = 100  # characters of an input in a message; a `data:` URL can have millions
_SHOWN_SUFFIXES = 6


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A image or video to work on.

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

    @property
    def path_in_folder(self) -> Path:
        """The path below the folder that was given; the file's name if the file itself was given."""
        return self.name.with_name(self.path.name)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Files to work on, and the files in the same folders that cannot be read.

    Attributes:
      files: the images and videos, in order, each once.
      unread: suffix in lower case -> number of files with it, without annotations and texts; "" for files
        without a suffix.
    """

    files: list[InputFile]
    unread: collections.Counter[str]

    def describe_unread(self) -> str:
        """One line about the files that cannot be read; empty if there are none."""
        if not self.unread:
            return ""
        count = self.unread.total()
        return (
            f"left out {count} file{'s' if count > 1 else ''} that cannot be read: "
            f"{_list_suffixes(self.unread)}{_heic_advice(self.unread)}"
        )


def find_inputs(texts: Iterable[str]) -> Inputs:
    """The files that are meant, in order, each once.

    A folder means the images and videos below it, by their suffixes, without the `._` files of macOS;
    a pattern (`*`, `?`, `[...]`, `**`) means the files that it matches. A file that is
    named is taken whatever its suffix.

    Raises:
      InputError: an input is a URL, a camera or another stream, a folder or a pattern gives no file, or
        two files would have results of one name.
    """
    inputs: dict[str, InputFile] = {}
    unread: dict[str, str] = {}
    for text in texts:
        matches = _matches(text)
        for match in matches:
            if os.path.isdir(match):
                found, others = _below(match)
                unread |= {os.path.realpath(path): path.suffix.lower() for path in others}
                if not found and len(matches) == 1:
                    raise InputError(_describe_empty(text, others))
            else:
                found = [InputFile(match, _name_of(match))]
            for file in found:
                inputs.setdefault(os.path.realpath(file.path), file)
    left_out = collections.Counter(
        suffix for path, suffix in unread.items() if path not in inputs and suffix not in _SIDECARS
    )
    return Inputs(_with_own_names(list(inputs.values())), left_out)


def _matches(text: str) -> list[Path]:
    # Unlike those of Path, the functions of os.path take any text and any link.
    if os.path.exists(text):
        if not (os.path.isfile(text) or os.path.isdir(text)):
            raise InputError(f"{text}: is a device or pipe; only files and folders are read")
        return [Path(text)]
    if _URL.match(text) or text.isdecimal() or text == "-":
        shown = text if len(text) <= _SHOWN_TEXT else text[:_SHOWN_TEXT] + "..."
        raise InputError(
            f"{shown}: only files and folders are read, no URLs, cameras or standard input; save the "
            "images or the video to a file first"
        )
    with_slashes = text.replace("\\", "/")
    if os.path.exists(with_slashes):  # a path in Windows' form
        return [Path(with_slashes)]
    if not glob.has_magic(text):
        return [Path(text)]
    found = sorted(glob.glob(text, recursive=True)) or sorted(
        glob.glob(with_slashes, recursive=True)
    )
    if not found:
        raise InputError(f"{text}: no file matches this pattern")
    return [Path(match) for match in found]


def _below(folder: Path) -> tuple[list[InputFile], list[Path]]:
    """The images and videos in a folder and below it, and the other files there."""
    found, others = [], []
    for path in sorted(folder.rglob("*")):
        if path.name.startswith("._") or fnmatch(path.name, PARTIALS) or not path.is_file():
            continue
        if path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
            name = path.relative_to(folder).parent / _name_of(path)
            found.append(InputFile(path, name))
        elif not path.name.startswith("."):
            others.append(path)
    return found, others


def _describe_empty(folder: str, others: list[Path]) -> str:
    suffixes = collections.Counter(path.suffix.lower() for path in others)
    message = f"{folder}: no image or video in this folder"
    if suffixes:
        message += f" that can be read, only {_list_suffixes(suffixes)}{_heic_advice(suffixes)}"
    return message


def _list_suffixes(suffixes: collections.Counter[str]) -> str:
    """`2 .heic, 1 .tga`, the most frequent first."""
    ordered = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} {suffix or 'without a suffix'}" for suffix, count in ordered]
    rest = sum(count for _, count in ordered[_SHOWN_SUFFIXES:])
    return ", ".join(shown[:_SHOWN_SUFFIXES] + ([f"{rest} others"] if rest else []))


def _heic_advice(suffixes: Iterable[str]) -> str:
    return "; convert HEIC to JPEG first" if set(suffixes) & set(HEIC_SUFFIXES) else ""


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

"""Inputs of `lcgcn predict`: images and videos, from paths, folders, patterns and streams."""

import collections
import dataclasses
import glob
import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from lcgcn_jax.atomic_io import PARTIALS
from lcgcn_jax.errors import InputError, count_of
from lcgcn_jax.folders import files_below
from lcgcn_jax.image_io import IMAGE_SUFFIXES
from lcgcn_jax.inference import streams

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mjpeg",
)  # fmt: skip
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
"""Suffixes of images that have to be converted to another format first."""

# Files that often accompany images; skipping them is not reported.
_SIDECARS = (
    ".pts", ".txt", ".json", ".jsonl", ".csv", ".xml", ".yaml", ".yml", ".md", ".ini", ".db", ".py",
)  # fmt: skip

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # at least two letters, unlike a drive such as `C:`
_MAX_TEXT = 100  # characters of an input in a message; a `data:` URL can have millions
_MAX_SUFFIXES = 6


@dataclasses.dataclass(frozen=True)
class InputFile:
    """An image or video to process.

    Attributes:
      path: path of the file; the name of the results for a stream.
      name: name of its results without a suffix; for a file in an input folder, relative to that folder.
      stream: camera or address of a stream (`streams.is_stream`); None for a file.
    """

    path: Path
    name: Path
    stream: str | None = None

    @property
    def is_video(self) -> bool:
        """Whether the input is a stream, or a video file by its suffix."""
        return self.stream is not None or self.path.suffix.lower() in VIDEO_SUFFIXES

    @property
    def label(self) -> str:
        """Name of the input in messages."""
        return str(self.path) if self.stream is None else streams.display_name(self.stream)

    @property
    def path_in_folder(self) -> Path:
        """Path relative to the input folder; the file name if the input is the file."""
        return self.name.with_name(self.path.name)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Files to process, and the files and folders that cannot be read.

    Attributes:
      files: images and videos in order, without duplicates.
      unread: number of unreadable files by suffix in lower case, "" for files without a suffix; annotations
        and texts are not counted.
      locked: folders that cannot be read, with the reason.
    """

    files: list[InputFile]
    unread: collections.Counter[str]
    locked: list[str] = dataclasses.field(default_factory=list)

    def describe_unread(self) -> list[str]:
        """Describe the files and folders that cannot be read, one line each."""
        lines = [f"left out: {text}" for text in self.locked]
        if self.unread:
            lines.append(
                f"left out {count_of(self.unread.total(), 'file')} that cannot be read: "
                f"{_list_suffixes(self.unread)}{_heic_advice(self.unread)}"
            )
        return lines


def find_inputs(texts: Iterable[str], out: Path | None = None) -> Inputs:
    """Find the input files of command-line arguments, in order and without duplicates.

    A folder selects the images and videos in it, its subfolders and folders linked there, selected by suffix,
    without the `._` files of macOS. A pattern (`*`, `?`, `[...]`, `**`) selects the files that it matches. A
    file path is used whatever its suffix. A camera or network stream (`streams.is_stream`) is a video.

    Args:
      out: folder of the results. If it is below an input folder or a folder linked there, the overlays in it
        are not inputs.

    Raises:
      InputError: an input is another URL or a device, a folder or a pattern has no files, or the results
        of two files would have the same name.
    """
    inputs: dict[str, InputFile] = {}
    unread: dict[str, str] = {}
    locked: dict[str, str] = {}  # folder -> message
    for text in texts:
        if not text:
            raise InputError("an input is empty; give an image, video, folder, pattern or stream")
        if streams.is_stream(text) and not os.path.exists(text):
            name = Path(streams.result_name(text))
            inputs.setdefault(text, InputFile(name, name, stream=text))
            continue
        matches = _matches(text)
        for match in matches:
            if os.path.isdir(match):
                files, others, unreadable = _list_folder(match, out)
                locked |= unreadable
                unread |= {_identity(path): path.suffix.lower() for path in others}
                if not files and len(matches) == 1:
                    raise InputError(_describe_empty(text, others, list(unreadable.values())))
            else:
                files = [InputFile(match, _stem(match))]
            for file in files:
                inputs.setdefault(_identity(file.path), file)
    unread_suffixes = collections.Counter(
        suffix for path, suffix in unread.items() if path not in inputs and suffix not in _SIDECARS
    )
    return Inputs(_with_unique_names(list(inputs.values())), unread_suffixes, list(locked.values()))


def _identity(path: Path) -> str:
    """Path that is the same however its folder was reached; links to one file are several inputs."""
    return os.path.join(os.path.realpath(path.parent), os.path.normcase(path.name))


def _matches(text: str) -> list[Path]:
    # Unlike the methods of Path, the functions of os.path accept any text and any link.
    if os.path.exists(text):
        if not (os.path.isfile(text) or os.path.isdir(text)):
            raise InputError(f"{text}: is a device or pipe; only files and folders are read")
        return [Path(text)]
    if _URL.match(text) or text.isdecimal() or text == "-":
        short_text = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."
        raise InputError(
            f"{short_text}: only files and folders are read, and the streams camera:N, rtsp://, http:// and "
            "https://; save the images or the video to a file first"
        )
    with_slashes = text.replace("\\", "/")
    if os.path.exists(with_slashes):  # a Windows path
        return [Path(with_slashes)]
    if not glob.has_magic(text):
        return [Path(text)]
    matches = sorted(glob.glob(text, recursive=True)) or sorted(
        glob.glob(with_slashes, recursive=True)
    )
    if not matches:
        raise InputError(f"{text}: no file matches this pattern")
    return [Path(match) for match in matches]


def _list_folder(
    folder: Path, out: Path | None
) -> tuple[list[InputFile], list[Path], dict[str, str]]:
    """Images and videos in a folder and its subfolders, except `out`, and the other files.

    The third result are the folders that cannot be read, with a message.
    """
    locked = {}

    def note(error: OSError) -> None:
        path = os.path.realpath(error.filename)
        if not (results and Path(path).is_relative_to(results)):
            locked[path] = f"{error.filename}: cannot be read: {error.strerror}"

    files, others = [], []
    results = None if out is None else Path(os.path.realpath(out))
    if results and Path(os.path.realpath(folder)).is_relative_to(results):
        results = None
    for path in files_below(folder, note):
        if results and Path(os.path.realpath(path.parent)).is_relative_to(results):
            continue
        if path.name.startswith("._") or fnmatch(path.name, PARTIALS) or not os.path.isfile(path):
            continue
        if path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
            name = path.relative_to(folder).parent / _stem(path)
            files.append(InputFile(path, name))
        elif not path.name.startswith("."):
            others.append(path)
    return files, others, locked


def _describe_empty(folder: str, others: Sequence[Path], locked: Sequence[str]) -> str:
    if locked:
        return f"{locked[0]}; change its permissions"
    suffixes = collections.Counter(path.suffix.lower() for path in others)
    message = f"{folder}: no image or video in this folder"
    if suffixes:
        message += f" that can be read, only {_list_suffixes(suffixes)}{_heic_advice(suffixes)}"
    return message


def _list_suffixes(suffixes: collections.Counter[str]) -> str:
    """Format counts of suffixes as `2 .heic, 1 .tga`, by descending frequency."""
    ordered = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    counts = [f"{count} {suffix or 'without a suffix'}" for suffix, count in ordered]
    num_others = sum(count for _, count in ordered[_MAX_SUFFIXES:])
    return ", ".join(counts[:_MAX_SUFFIXES] + ([f"{num_others} others"] if num_others else []))


def _heic_advice(suffixes: Iterable[str]) -> str:
    return "; convert HEIC to JPEG first" if set(suffixes) & set(HEIC_SUFFIXES) else ""


def _stem(path: Path) -> Path:
    """File name without the suffix, or with it if only dots would remain, as for `..jpg`."""
    return Path(path.stem if path.stem.strip(".") else path.name)


def _with_unique_names(inputs: list[InputFile]) -> list[InputFile]:
    """Include the suffix in the names of files that differ only in it: `a.jpg.json`."""
    counts = collections.Counter(file.name for file in inputs)
    inputs = [
        dataclasses.replace(file, name=file.name.with_name(file.path.name))
        if counts[file.name] > 1
        else file
        for file in inputs
    ]
    first_files: dict[Path, InputFile] = {}
    for file in inputs:
        if (other := first_files.setdefault(file.name, file)) is not file:
            raise InputError(
                f"{file.label}: its results would have the same name as those of {other.label}; run them "
                "separately, with different --out folders"
            )
    return inputs

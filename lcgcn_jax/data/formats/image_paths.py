"""Lookup of the images of an annotation file that was written on another machine or in another folder."""

import functools
import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from lcgcn_jax.data.annotations import fold_name, is_system_file, lies_within
from lcgcn_jax.errors import count_of
from lcgcn_jax.folders import files_below
from lcgcn_jax.image_io import IMAGE_SUFFIXES


class ImageFinder:
    """Images below a folder, by the paths that a labeling tool wrote.

    A path is looked up in this order: relative to `folder`; with backslashes as separators; with `%20`
    and similar escapes decoded, in both Unicode normal forms; without its leading folders, one after the
    other; and by the file name only, anywhere below `folder`, at last in any case. Two different paths never
    match the same image unless both are exact.

    Args:
      folder: the folder of the images. Images outside of it are never returned.
      stored_name: maps a file name to the name that the tool stores for it.
      original_name: removes what the tool adds to a file name.
    """

    def __init__(
        self,
        folder: Path,
        *,
        stored_name: Callable[[str], str] = str,
        original_name: Callable[[str], str] = str,
    ):
        self.folder = folder.absolute()
        self._stored_name = stored_name
        self._original_name = original_name
        self._matches: dict[Path, tuple[str, bool]] = {}
        self._moved: dict[str, Path] = {}

    def find(
        self, text: str, *, relative_to: Path | None = None, names: Iterable[str] = ()
    ) -> Path:
        """Find an image.

        Args:
          text: the path in the annotation file.
          relative_to: the folder of the annotation file, for formats whose paths start there.
          names: other file names of the same image.

        Raises:
          ValueError: no image, several images, or an image that another path already matched.
        """
        if not text:
            raise ValueError("no image path")
        # No file name has a NUL, but normpath of some Python versions truncates paths at it.
        if "\0" in text:
            raise ValueError(f"no image {text!r} in {self.folder.name}/ or below")
        path = self._find_exact(text, relative_to)
        is_exact = path is not None
        path = path or self._find_tail(text) or self._find_name(text, names)
        if not lies_within(path, self.folder):
            raise ValueError(f"the image {text!r} is a link that leaves {self.folder.name}/")
        other, other_is_exact = self._matches.setdefault(path, (text, is_exact))
        if other != text and not (is_exact and other_is_exact):
            raise ValueError(
                f"{text!r} and {other!r} both fit {path.relative_to(self.folder).as_posix()!r} "
                f"in {self.folder.name}/; keep their folders in it"
            )
        is_relative = re.match(r"[^/\\:]+[/\\]", text)
        if is_relative and not is_exact and not _is_in_folder_of(path, text):
            self._moved.setdefault(text, path)
        return path

    def notes(self) -> list[str]:
        """A note on relative paths that were found in another folder only; empty if there are none."""
        if not self._moved:
            return []
        text, path = next(iter(self._moved.items()))
        return [
            f"{count_of(len(self._moved), 'image')} found in another folder than stated, such as {text!r} = "
            f"{path.relative_to(self.folder).as_posix()!r}; check that --src is the folder that the paths "
            "start from"
        ]

    def root_of(self, path: Path) -> Path | None:
        """The folder, as passed or with links resolved, if a path lies in it; else None."""
        roots = (Path(form(self.folder)) for form in (os.path.normpath, os.path.realpath))
        return next((root for root in roots if path.is_relative_to(root)), None)

    def _find_exact(self, text: str, relative_to: Path | None) -> Path | None:
        for form in _forms(text):
            bases = [self.folder] if relative_to is None else [relative_to.absolute(), self.folder]
            for base in bases:
                path = Path(os.path.normpath(base / form))
                root = self.root_of(path)
                if root is not None and os.path.isfile(path):
                    return self.folder / path.relative_to(root)
        return None

    def _find_tail(self, text: str) -> Path | None:
        for form in _forms(text):
            parts = _plain_parts(form)
            for start in range(len(parts)):
                path = self.folder.joinpath(*parts[start:])
                if os.path.isfile(path):
                    return path
        return None

    @functools.cached_property
    def _index(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """Images by stored name, and by name in any case."""
        by_name, by_folded_name = defaultdict(list), defaultdict(list)
        for path in _images_below(self.folder):
            for name in (path.name, path.stem):  # in CVAT, frames of a video have no suffix
                by_name[self._stored_name(name)].append(path)
                by_folded_name[fold_name(name)].append(path)
        return by_name, by_folded_name

    def _find_name(self, text: str, names: Iterable[str]) -> Path:
        by_name, by_folded_name = self._index
        exported = [_basename(text), *names]
        originals = map(self._original_name, exported)
        forms = [form for name in (*exported, *originals) for form in _forms(name)]
        exact = (by_name.get(form) or by_name.get(self._stored_name(form)) for form in forms)
        folded = (by_folded_name.get(fold_name(form)) for form in forms)
        candidates = next(filter(None, itertools.chain(exact, folded)), [])
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            first, second, *_ = (p.relative_to(self.folder).as_posix() for p in candidates)
            raise ValueError(
                f"the image {_basename(text)!r} is {first!r} or {second!r} in {self.folder.name}/; "
                "--src must be the folder that the paths of the file start from"
            )
        raise ValueError(f"no image {text!r} in {self.folder.name}/ or below")


def _forms(text: str) -> Iterator[str]:
    """Variants of a path, the original one first."""
    slashed = re.sub(r"^[A-Za-z]:(?=[\\/])", "", text).replace("\\", "/")
    forms = (text, slashed, unquote(text), unquote(slashed))
    # macOS writes the decomposed form of accented letters.
    normalized = (unicodedata.normalize(name, form) for name in ("NFC", "NFD") for form in forms)
    yield from dict.fromkeys((*forms, *normalized))


def _is_in_folder_of(path: Path, text: str) -> bool:
    """Whether an image lies in the folder of a relative path, which may start above the folder of images."""
    parent = fold_name(f"/{path.parent.as_posix()}/")
    folders = [_plain_parts(form)[:-1] for form in _forms(text) if "\\" not in form]
    return any(
        parent.endswith(fold_name("/" + "".join(f"{part}/" for part in folder)))
        for folder in folders
    )


def _plain_parts(path: str) -> list[str]:
    """Parts of a path after the last `..`."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "//", ".")]
    while ".." in parts:
        parts = parts[parts.index("..") + 1 :]
    return parts


def _basename(text: str) -> str:
    return text.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _images_below(folder: Path) -> Iterator[Path]:
    for path in files_below(folder):
        if not path.name.lower().endswith(IMAGE_SUFFIXES) or is_system_file(path.name):
            continue
        if os.path.isfile(path):  # reading a pipe may never end
            yield path

"""File with one line of JSON per image, which an interrupted job continues."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from lcgcn_jax.atomic_io import lock_file, write_whole
from lcgcn_jax.errors import InputError


class JsonLines:
    """File to which a job appends a line for each finished image.

    A line is added whole or not at all. The file is locked while it is open, because two jobs would mix
    their lines.

    Args:
      resume: keep the lines of an earlier job.
      overwrite: the first line replaces the lines of an earlier job.

    Attributes:
      finished: names of the images with a line of an earlier job.
      schemes: names of the landmark schemes of these lines; empty for a line without one.

    Raises:
      InputError: the file cannot be read or has other content, or another process writes to it.
    """

    def __init__(self, path: Path, *, resume: bool = False, overwrite: bool = False):
        self.path = path
        self.finished: set[str] = set()
        self.schemes: set[str] = set()
        self._file: Any = None
        self._resume, self._overwrite = resume, overwrite
        if resume and path.exists():
            try:
                self._keep_finished_lines()
            except OSError as error:
                raise InputError(f"{path}: cannot be read: {error.strerror}") from error

    def append(self, line: str) -> None:
        """Append a line.

        Raises:
          InputError: another process writes to the file, or has written it since the start.
          OSError: the line cannot be written; the file is then unchanged.
        """
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
            if not self._resume:
                if not self._overwrite and self._file.seek(0, os.SEEK_END):
                    self.close()
                    raise InputError(
                        f"{self.path}: another process has written it; choose another --out"
                    )
                self._file.truncate(0)
        end = self._file.seek(0, os.SEEK_END)
        rest = memoryview(line.encode("utf-8") + b"\n")
        try:
            while rest:  # a nearly full disk takes a part
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> Any:
        file = self.path.open("ab", buffering=0)
        if not lock_file(file):
            file.close()
            raise InputError(
                f"{self.path}: another process writes to this file; wait for it, or choose another --out"
            )
        return file

    def _keep_finished_lines(self) -> None:
        """Find the finished images. Truncated or damaged lines are deleted.

        Raises:
          InputError: the file has lines that are not the results of an image.
        """
        self._file = self._open()
        is_intact = True
        with self.path.open("rb") as lines:
            for line in lines:
                content = _parse(line)
                if content is None and _is_json(line):
                    self.close()
                    raise InputError(
                        f"{self.path}: has lines that are not results of images, which would be deleted; "
                        "choose another --out"
                    )
                is_intact &= content is not None and content[0] not in self.finished
                if content is not None:
                    self.finished.add(content[0])
                    self.schemes.add(content[1])
        if not is_intact:
            self.close()
            write_whole(self.path, self._write_intact)
            self._file = self._open()

    def _write_intact(self, partial: Path) -> None:
        names: set[str] = set()
        with self.path.open("rb") as lines, partial.open("wb") as output:
            for line in lines:
                content = _parse(line)
                if content is not None and content[0] not in names:
                    names.add(content[0])
                    output.write(line)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return line.endswith(b"\n")


def _parse(line: bytes) -> tuple[str, str] | None:
    """Names of the image and of the landmark scheme of a line; None for a truncated or damaged line."""
    try:
        content = json.loads(line)
        names = content["image"], content.get("scheme", "")
        is_whole = line.endswith(b"\n") and isinstance(content["faces"], list)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return names if is_whole and all(isinstance(name, str) for name in names) else None

"""Large jobs: a part of the inputs for each process, and results that an earlier job has finished."""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

from lcgcn_jax.errors import InputError
from lcgcn_jax.image_io import check_complete
from lcgcn_jax.inference.results import CSV_COLUMNS
from lcgcn_jax.inference.sources import InputFile


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part of the inputs of a job, for one of several processes.

    Attributes:
      number: number of the part, 1 to `count`.
      count: number of parts.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Parse `I/N`.

        Raises:
          InputError: the text is not a part I of N, from 1 to N.
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        shard = cls(*map(int, match.groups())) if match else cls(0, 0)
        if not 1 <= shard.number <= shard.count:
            raise InputError(
                f"--shard {text}: give I/N, the part I of N parts, for example 1/8 to 8/8"
            )
        return shard

    def select(self, files: Sequence[InputFile]) -> list[InputFile]:
        """Every N-th file of the list in the order of the paths, starting with the I-th.

        All parts together have each file once, if all processes are started with the same inputs.
        """
        if self.count == 1:
            return list(files)
        return sorted(files, key=lambda file: str(file.path))[self.number - 1 :: self.count]

    @property
    def suffix(self) -> str:
        """Suffix for the name of a file of the part; empty for a single part."""
        return "" if self.count == 1 else f"-{self.number:05d}-of-{self.count:05d}"


WHOLE_JOB = Shard()


def is_intact(path: Path, num_landmarks: int) -> bool:
    """Whether a result file exists and is complete, with faces of this number of landmarks.

    Result files are written whole, so others come from a full or damaged disk, another program or another
    model.
    """
    check = _CHECKS.get(path.suffix.lower(), lambda content, num_landmarks: bool(content))
    try:
        return check(path.read_bytes(), num_landmarks)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error):
        return False


def _is_json(content: bytes, num_landmarks: int) -> bool:
    faces = json.loads(content)["faces"]
    return all(len(face["landmarks"]) == num_landmarks for face in faces)


def _is_json_lines(content: bytes, num_landmarks: int) -> bool:
    lines = content.splitlines()
    return content.endswith(b"\n") and all(_is_json(line, num_landmarks) for line in lines)


def _is_csv(content: bytes, num_landmarks: int) -> bool:
    header, *rows = csv.reader(io.StringIO(content.decode("utf-8"), newline=""))
    is_whole = content.endswith(b"\n") and header[: len(CSV_COLUMNS)] == CSV_COLUMNS
    return (
        is_whole and len(rows) % num_landmarks == 0 and {len(row) for row in rows} <= {len(header)}
    )


def _is_png(content: bytes, num_landmarks: int) -> bool:
    check_complete(content)
    return content.startswith(b"\x89PNG")


def _is_pts(content: bytes, num_landmarks: int) -> bool:
    return content.endswith(b"\n}\n") and content.count(b"\n") == num_landmarks + 4


_CHECKS = {
    ".json": _is_json,
    ".jsonl": _is_json_lines,
    ".csv": _is_csv,
    ".png": _is_png,
    ".pts": _is_pts,
}

"""The files of `lcgcn predict`: face boxes in; landmarks out as JSON, CSV and 300W's .pts."""

import collections
import csv
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.inference.model import Face
from lcgcn_jax.inference.sources import InputFile
from lcgcn_jax.landmarks import LandmarkScheme

BOX_COLUMNS = ["image", "x0", "y0", "x1", "y1"]
CSV_COLUMNS = [
    "face", "landmark", "name", "x", "y", "confidence", "heatmap_x", "heatmap_y", "expected_error",
    "visibility",
]  # fmt: skip


def describe_face(face: Face) -> dict[str, Any]:
    """A face in plain types for JSON.

    `expected_error` (percent) and `predicted_error` (pixels) are left out if the model has no calibration,
    `visibility` if it has no visibility head.
    """
    fields: dict[str, Any] = {
        "box": np.round(face.box, 3).tolist(),
        "score": None if face.score is None else round(float(face.score), 4),
        "landmarks": np.round(face.landmarks, 3).tolist(),
        "confidence": np.round(face.confidence.astype(float), 4).tolist(),
        "heatmap_landmarks": np.round(face.heatmap_landmarks, 3).tolist(),
    }
    if face.expected_error is not None:
        fields["expected_error"] = np.round(face.expected_error, 2).tolist()
    if face.visibility is not None:
        fields["visibility"] = np.round(face.visibility.astype(float), 4).tolist()
    if face.predicted_error is not None:
        fields["predicted_error"] = np.round(face.predicted_error, 3).tolist()
    return fields


def describe_image(
    path: Path, width: int, height: int, faces: Iterable[Face], scheme: LandmarkScheme
) -> dict[str, Any]:
    """The JSON of a image; the design's section 6 fixes its form."""
    return {
        "image": str(path),
        "width": width,
        "height": height,
        "scheme": scheme.name,
        "faces": [describe_face(face) for face in faces],
    }


def describe_frame(
    number: int, time: float, faces: Iterable[Face], tracks: Iterable[int]
) -> dict[str, Any]:
    """The JSON line of a frame of a video; `track` numbers the face through the frames."""
    return {
        "frame": number,
        "time": round(time, 6),
        "faces": [
            {"track": track, **describe_face(face)}
            for face, track in zip(faces, tracks, strict=True)
        ],
    }


def format_csv(faces: Iterable[Face], scheme: LandmarkScheme) -> str:
    """Formats a row for each landmark of each face, in pixels; faces and landmarks count from 0.

    The predicted error, in percent, is empty where the model is not calibrated, and the visibility where it
    has no visibility head.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for number, face in enumerate(faces):
        for i, name in enumerate(scheme.names):
            x, y, u, v = np.concatenate([face.landmarks[i], face.heatmap_landmarks[i]])
            confidence = f"{face.confidence[i]:.4f}"
            expected = "" if face.expected_error is None else f"{face.expected_error[i]:.2f}"
            visibility = "" if face.visibility is None else f"{face.visibility[i]:.4f}"
            row = (f"{x:.3f}", f"{y:.3f}", confidence, f"{u:.3f}", f"{v:.3f}", expected)
            writer.writerow((number, i, name, *row, visibility))
    return file.getvalue()


class BoxFile:
    """Face boxes by image, from a file.

    JSON: `{"photo.jpg": [[x0, y0, x1, y1], ...], ...}`, with an empty list where there is no face. CSV,
    with commas, semicolons or tabs: a header `image,x0,y0,x1,y1` and a row for each face; the four cells
    are empty where there is no face. An image is named by its path as it is given, below its folder,
    or from the root, or by the end of its path if only one image has that end.
    """

    def __init__(self, path: Path):
        """Reads the file.

        Raises:
          InputError: it cannot be read, or is not of the form above.
        """
        self._path = path
        try:
            text = path.read_text(encoding="utf-8-sig")
            is_json = path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "["))
            boxes = _json_boxes(text) if is_json else _csv_boxes(text)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, OverflowError, RecursionError, csv.Error) as error:
            raise InputError(
                f"{path}: not a file of face boxes: {one_line(error)}; see lcgcn predict --help"
            ) from error
        self._boxes: dict[tuple[str, ...], list[list[float]]] = {}
        self._names: dict[tuple[str, ...], str] = {}
        for name, found in boxes:
            parts = _parts(name)
            self._boxes.setdefault(parts, []).extend(found)
            self._names.setdefault(parts, name)
        self._of: dict[Path, list[list[float]]] = {}
        self.unused: list[str] = list(self._names.values())

    def assign(self, images: Iterable[InputFile]) -> None:
        """Finds the image that each name in the file means; `unused` keeps those that mean none.

        Raises:
          InputError: a name means several images.
        """
        files = list(images)
        by_end: dict[tuple[str, ...], list[InputFile]] = collections.defaultdict(list)
        exact: dict[tuple[str, ...], list[InputFile]] = collections.defaultdict(list)
        for file in files:
            full = _parts(os.path.abspath(file.path))
            for i in range(1, len(full)):
                by_end[full[i:]].append(file)
            for parts in {full, _parts(file.path), _parts(file.path_in_folder)}:
                exact[parts].append(file)
        self._of = {}
        unused = set(self._boxes)
        # The names that say most come first: exact ones, then long ends of paths.
        for parts in sorted(self._boxes, key=lambda p: (p not in exact, -len(p))):
            matches = exact.get(parts)
            if matches is None:
                matches = [file for file in by_end.get(parts, []) if file.path not in self._of]
            if len(matches) > 1:
                first, second = (str(file.path) for file in matches[:2])
                raise InputError(
                    f"{self._path}: {self._names[parts]} is {first} or {second}; write more of its path"
                )
            if matches:
                self._of.setdefault(matches[0].path, []).extend(self._boxes[parts])
                unused.remove(parts)
        self.unused = [name for parts, name in self._names.items() if parts in unused]

    def of(self, image: Path) -> list[list[float]]:
        """The boxes of an image, after `assign`.

        Raises:
          InputError: the file does not name the image.
        """
        if image not in self._of:
            raise InputError(f"{image}: no face box in {self._path}")
        return self._of[image]


def _parts(path: str | Path) -> tuple[str, ...]:
    """The parts of a path in the form of any system, without `.`; the root is a part."""
    path = PurePosixPath(str(path).strip().replace("\\", "/"))
    return tuple(part for part in path.parts if part != ".")


def _json_boxes(text: str) -> list[tuple[str, list[list[float]]]]:
    # Pairs, since a name may be there twice, and a dictionary keeps the last.
    content = json.loads(text, object_pairs_hook=_Pairs)
    if not isinstance(content, _Pairs):
        raise ValueError("expected images and their boxes in braces")
    for name, boxes in content:
        if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
            raise ValueError(f"{name!r} wants a list of boxes of four numbers each")
    return [(name, [[float(value) for value in box] for box in boxes]) for name, boxes in content]


class _Pairs(list):
    """Names and values of a JSON object, in order."""


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in box)
    )


def _csv_boxes(text: str) -> list[tuple[str, list[list[float]]]]:
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    columns: list[str] | None = None
    boxes = []
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if columns is None:
            columns = [cell.strip().lower() for cell in row]
            if missing := [name for name in BOX_COLUMNS if name not in columns]:
                raise ValueError(_missing_column(missing[0]))
            continue
        line = f"line {rows.line_num}"
        # Of a name with a comma that is not in quotes, say; spreadsheets add empty cells.
        if any(cell.strip() for cell in row[len(columns) :]):
            raise ValueError(f"{line} has {len(row)} cells, and the header has {len(columns)}")
        cells = dict(zip(columns, row, strict=False))
        if not cells.get("image", "").strip():
            raise ValueError(f"{line} names no image")
        numbers = [cells.get(name, "").strip() for name in BOX_COLUMNS[1:]]
        if delimiter == ";":  # spreadsheets that separate by semicolons write decimal commas
            numbers = [number.replace(",", ".") for number in numbers]
        if not any(numbers) and cells.keys() >= set(BOX_COLUMNS):
            boxes.append((cells["image"], []))
            continue
        try:
            boxes.append((cells["image"], [[float(number) for number in numbers]]))
        except ValueError as error:
            raise ValueError(f"{line} has no four numbers") from error
    if columns is None:
        raise ValueError(_missing_column("image"))
    return boxes


def _missing_column(name: str) -> str:
    return f"no column {name!r}; the header is {','.join(BOX_COLUMNS)}"

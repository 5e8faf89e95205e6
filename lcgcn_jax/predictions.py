"""The files of `lcgcn predict`: face boxes in; landmarks out as JSON, CSV and 300W's .pts."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.inference import Face
from lcgcn_jax.landmarks import LandmarkScheme

BOX_COLUMNS = ["image", "x0", "y0", "x1", "y1"]
CSV_COLUMNS = [
    "face", "landmark", "name", "x", "y", "confidence", "heatmap_x", "heatmap_y", "expected_error",
]  # fmt: skip


def describe_face(face: Face) -> dict[str, Any]:
    """A face in plain types for JSON; `expected_error` is there where the model is calibrated."""
    fields = {
        "box": np.round(face.box, 3).tolist(),
        "landmarks": np.round(face.landmarks, 3).tolist(),
        "confidence": np.round(face.confidence.astype(float), 4).tolist(),
        "heatmap_landmarks": np.round(face.heatmap_landmarks, 3).tolist(),
    }
    if face.expected_error is not None:
        fields["expected_error"] = np.round(face.expected_error, 2).tolist()
    return fields


def describe_photograph(
    path: Path, width: int, height: int, faces: Iterable[Face]
) -> dict[str, Any]:
    """The JSON of a photograph; the design's section 6 fixes its form."""
    return {
        "image": str(path),
        "width": width,
        "height": height,
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


def write_csv(path: Path, faces: Iterable[Face], scheme: LandmarkScheme) -> None:
    """Writes a row for each landmark of each face, in pixels; faces and landmarks count from 0.

    The expected error, in percent, is empty where the model is not calibrated.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for number, face in enumerate(faces):
            for i, name in enumerate(scheme.names):
                x, y, u, v = np.concatenate([face.landmarks[i], face.heatmap_landmarks[i]])
                confidence = f"{face.confidence[i]:.4f}"
                expected = "" if face.expected_error is None else f"{face.expected_error[i]:.2f}"
                row = (f"{x:.3f}", f"{y:.3f}", confidence, f"{u:.3f}", f"{v:.3f}", expected)
                writer.writerow((number, i, name, *row))


def write_pts(path: Path, landmarks: Float[np.ndarray, "k 2"]) -> None:
    """Writes landmarks that count from 0 as 300W's official `.pts` file, which counts from 1."""
    lines = [f"{x:.6f} {y:.6f}" for x, y in landmarks + 1.0]
    header = f"version: 1\nn_points: {len(lines)}\n"
    path.write_text(header + "{\n" + "\n".join(lines) + "\n}\n", encoding="utf-8")


class BoxFile:
    """Face boxes by photograph, from a file.

    JSON: `{"photo.jpg": [[x0, y0, x1, y1], ...], ...}`. CSV: a header `image,x0,y0,x1,y1` and a row for
    each face. The photograph is named by its path, or by the end of it: `photo.jpg`, `party/photo.jpg`.
    """

    def __init__(self, path: Path):
        """Reads the file.

        Raises:
          InputError: it cannot be read, or is not of the form above.
        """
        self._path = path
        try:
            text = path.read_text(encoding="utf-8-sig")
            boxes = _json_boxes(text) if path.suffix.lower() == ".json" else _csv_boxes(text)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, OverflowError, RecursionError, csv.Error) as error:
            raise InputError(
                f"{path}: not a file of face boxes: {one_line(error)}; see lcgcn predict --help"
            ) from error
        self._boxes = {Path(name).parts: found for name, found in boxes.items()}

    def of(self, photograph: Path) -> list[list[float]]:
        """The boxes of a photograph.

        Raises:
          InputError: the file has none.
        """
        parts = photograph.parts
        matches = [name for name in self._boxes if parts[-len(name) :] == name]
        if not matches:
            raise InputError(f"{photograph}: no face box in {self._path}")
        return self._boxes[max(matches, key=len)]


def _json_boxes(text: str) -> dict[str, list[list[float]]]:
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("expected photographs and their boxes in braces")
    for name, boxes in content.items():
        if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
            raise ValueError(f"{name!r} wants a list of boxes of four numbers each")
    return {name: [[float(value) for value in box] for box in content[name]] for name in content}


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in box)
    )


def _csv_boxes(text: str) -> dict[str, list[list[float]]]:
    reader = csv.DictReader(text.splitlines())
    if missing := [name for name in BOX_COLUMNS if name not in (reader.fieldnames or ())]:
        raise ValueError(f"no column {missing[0]!r}; the header is {','.join(BOX_COLUMNS)}")
    boxes: dict[str, list[list[float]]] = {}
    for row in reader:
        try:
            box = [float(row[name]) for name in BOX_COLUMNS[1:]]
        except (TypeError, ValueError) as error:
            raise ValueError(f"line {reader.line_num} has no four numbers") from error
        boxes.setdefault(row["image"], []).append(box)
    return boxes

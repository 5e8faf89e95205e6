"""Results of `lcgcn predict`: faces as JSON and CSV."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lcgcn_jax.inference.face import Face
from lcgcn_jax.landmarks import LandmarkScheme

CSV_COLUMNS = [
    "face", "landmark", "name", "x", "y", "confidence", "heatmap_x", "heatmap_y", "expected_error",
    "visibility", "reliable", "predicted_error", "score",
]  # fmt: skip


def describe_image(
    path: Path,
    width: int,
    height: int,
    faces: Iterable[Face],
    scheme: LandmarkScheme,
    *,
    geometry: bool = False,
) -> dict[str, Any]:
    """JSON content for an image; tools outside the project read its keys."""
    return {
        "image": str(path),
        "width": width,
        "height": height,
        "scheme": scheme.name,
        "names": list(scheme.names),
        "faces": [face.to_dict(geometry=geometry) for face in faces],
    }


def describe_frame(
    number: int,
    time: float,
    faces: Iterable[Face],
    scheme: LandmarkScheme,
    *,
    geometry: bool = False,
) -> dict[str, Any]:
    """JSON content for a frame of a video; `track` identifies a face over the frames."""
    return {
        "frame": number,
        "time": round(time, 6),
        "scheme": scheme.name,
        "names": list(scheme.names),
        "faces": [{"track": face.track} | face.to_dict(geometry=geometry) for face in faces],
    }


def format_csv(faces: Iterable[Face], scheme: LandmarkScheme) -> str:
    """Format a CSV with one row per landmark of each face, in pixels; faces and landmarks count from 0.

    The predicted error, in percent and in pixels, and `reliable` (`true` or `false`) are empty if the model
    is not calibrated, the visibility if it has no visibility head, and the score if the box was given.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for number, face in enumerate(faces):
        reliable = "" if face.reliable is None else str(face.reliable).lower()
        score = "" if face.score is None else f"{face.score:.4f}"
        for i, name in enumerate(scheme.names):
            x, y, heatmap_x, heatmap_y = (*face.landmarks[i], *face.heatmap_landmarks[i])
            point = (f"{x:.3f}", f"{y:.3f}", f"{face.confidence[i]:.4f}")
            heatmap_point = (f"{heatmap_x:.3f}", f"{heatmap_y:.3f}")
            percent, pixels = face.predicted_error_percent, face.predicted_error
            errors = (
                "" if percent is None else f"{percent[i]:.2f}",
                "" if pixels is None else f"{pixels[i]:.3f}",
            )
            visible = "" if face.visibility is None else f"{face.visibility[i]:.4f}"
            rest = (errors[0], visible, reliable, errors[1], score)
            writer.writerow((number, i, name, *point, *heatmap_point, *rest))
    return file.getvalue()

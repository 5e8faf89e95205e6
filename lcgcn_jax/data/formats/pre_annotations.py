"""Predicted faces as pre-annotations for labeling tools, and their COCO keypoints JSON.

A person corrects pre-annotations in the tool, and `lcgcn prepare` reads the export. The writers are next to
the readers: `cvat.format_xml`, `label_studio.format_tasks`, and for COCO `format_coco` below. By default,
writers and readers use coordinates unchanged, so that a point that nobody moves returns unchanged. A tool
that draws images with the corner of the first pixel at (0, 0), such as CVAT and Label Studio, shows such a
point half a pixel to the upper left. `--count-from 0.5` of `lcgcn predict` and of `lcgcn prepare` shifts the
points to where the model located them.
"""

import dataclasses
import json
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import LandmarkScheme

FACE = "face"
"""Label of a face in the tools."""

_DECIMALS = 3
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclasses.dataclass(frozen=True)
class PredictedFace:
    """Predicted face of an image.

    Attributes:
      landmarks: pixels, counted as in the file; NaN for a landmark without a location.
      box: face box x0, y0, x1, y1 in pixels, counted as in the file.
      is_occluded: whether each landmark is occluded; None if it is unknown.
      score: score of the face detector in 0..1, or None.
    """

    landmarks: Float[np.ndarray, "k 2"]
    box: Float[np.ndarray, "4"]
    is_occluded: Bool[np.ndarray, "k"] | None = None
    score: float | None = None

    @property
    def located(self) -> Bool[np.ndarray, "k"]:
        """Which landmarks have a location."""
        return np.isfinite(self.landmarks.sum(axis=1))


@dataclasses.dataclass(frozen=True)
class PredictedImage:
    """Image with its predicted faces.

    Attributes:
      name: path below the folder of the images, with `/` as separators.
      folder: name of the folder of the images.
      faces: the faces; empty if none was found.
    """

    name: str
    folder: str
    width: int
    height: int
    faces: Sequence[PredictedFace] = ()


def check_text(text: str) -> None:
    """Reject names that annotation files cannot hold.

    Raises:
      InputError: the name is not valid Unicode, or has a control character.
    """
    if match := _NO_XML.search(text):
        raise InputError(
            f"{text!r}: annotation files cannot hold the character {match[0]!r} of this name; rename it"
        )


def contour_edges(scheme: LandmarkScheme) -> list[tuple[int, int]]:
    """Pairs of landmarks that the contours of a scheme connect."""
    edges = []
    for contour in scheme.contours:
        ends = contour.indices[1:] + (contour.indices[:1] if contour.closed else ())
        edges += [(i, j) for i, j in zip(contour.indices, ends, strict=False) if i != j]
    return edges


def format_coco(images: Sequence[PredictedImage], scheme: LandmarkScheme) -> str:
    """Format COCO keypoints JSON with one category, `face`, for `custom.read_coco`, CVAT and others.

    Visibility is 0 for a landmark without a location, 1 for an occluded one, else 2.

    Args:
      images: the images; those without faces are listed, too.
    """
    category = {
        "id": 1,
        "name": FACE,
        "supercategory": "",
        "keypoints": list(scheme.names),
        "skeleton": [[i + 1, j + 1] for i, j in contour_edges(scheme)],
    }
    annotations = []
    for image_id, image in enumerate(images, start=1):
        for face in image.faces:
            fields = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1}
            annotations.append(fields | _coco_fields(face))
    content = {
        "images": [
            {"id": i, "file_name": image.name, "width": image.width, "height": image.height}
            for i, image in enumerate(images, start=1)
        ],
        "annotations": annotations,
        "categories": [category],
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


def _coco_fields(face: PredictedFace) -> dict[str, object]:
    occluded = np.zeros(len(face.landmarks), bool) if face.is_occluded is None else face.is_occluded
    visibility = np.where(face.located, np.where(occluded, 1, 2), 0)
    points = np.where(face.located[:, None], np.round(face.landmarks, _DECIMALS), 0.0)
    keypoints: list[float] = []
    for (x, y), v in zip(points.tolist(), visibility.tolist(), strict=True):
        keypoints += (x, y, v)
    x0, y0, x1, y1 = np.round(face.box, _DECIMALS).tolist()
    width, height = round(x1 - x0, _DECIMALS), round(y1 - y0, _DECIMALS)
    fields: dict[str, object] = {
        "keypoints": keypoints,
        "num_keypoints": int(face.located.sum()),
        "bbox": [x0, y0, width, height],
        "area": round(width * height, _DECIMALS),
        "iscrowd": 0,
    }
    return fields if face.score is None else fields | {"score": round(face.score, 4)}

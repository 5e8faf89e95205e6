"""Faces as an annotation file states them, and checks of all faces of one file together."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from lcgcn_jax.data.annotations import MISSING_POINTS, marked_missing
from lcgcn_jax.errors import InputError

SPLITS = ("train", "validation", "test")

UNSTATED = ""
"""In the place of a split: the rows state theirs, or belong to train."""

ABSENT = math.nan

_MIN_SPAN = 2.0  # px; no annotated face is smaller
_PERCENT = 100.0
_PERCENT_MIN_SIDE = 200  # px; in smaller images, faces within 100 px are common
_SAMPLED_IMAGES = 16

BOX_FORMS = {
    "corners": "x0, y0, x1, y1",
    "sizes": "x, y, width, height",
    "centers": "center x, center y, width, height",
}


@dataclasses.dataclass(frozen=True)
class RawFace:
    """A face as a row or an annotation states it, before its image is looked up.

    Attributes:
      image: the path of the image.
      points: pixels, counted as in the file.
      visible: which points are there.
      box: the four numbers of the face box, in the form `box_form`, or None.
      box_form: a key of `BOX_FORMS`.
      normalizer: what NME divides by, in pixels, or NaN.
      split: the split, or `UNSTATED`.
      group: e.g. the person, or empty.
      subset: a part of the data, or empty.
      stated_size: width and height of the image as the file states them, or None.
    """

    image: str
    points: Float[np.ndarray, "k 2"]
    visible: Bool[np.ndarray, "k"]
    box: Float[np.ndarray, "4"] | None
    box_form: str = "corners"
    normalizer: float = ABSENT
    split: str = UNSTATED
    group: str = ""
    subset: str = ""
    stated_size: tuple[int, int] | None = None

    @property
    def box_corners(self) -> Float[np.ndarray, "4"] | None:
        """The box as x0, y0, x1, y1; None if there is none, or only zeros or -1 in its place."""
        if self.box is None or ((self.box == self.box[0]).all() and self.box[0] in (0, -1)):
            return None
        return _corners(self.box, self.box_form)


def mark_missing(face: RawFace) -> tuple[RawFace, collections.Counter]:
    """Count the points at (0, 0) and (-1, -1) as missing.

    Returns:
      The face, and the number of points at each of these places.

    Raises:
      ValueError: many points lie at another single place, or they span too little for a face.
    """
    missing = face.visible & marked_missing(face.points)
    counts = collections.Counter(
        {
            place: count
            for place in MISSING_POINTS
            if (count := int((face.points[missing] == place).all(axis=1).sum()))
        }
    )
    visible = face.visible & ~missing
    seen = face.points[visible]
    if len(seen) and np.isfinite(seen).all():
        _check_repeated(seen)
        span = np.ptp(seen, axis=0).max()
        # Faces of one point, or of points at one place, are refused where records are written.
        if 0 < span < _MIN_SPAN:
            raise ValueError(f"the points span {span:.2g} px; coordinates have to be pixels")
    return dataclasses.replace(face, visible=visible), counts


def _check_repeated(points: Float[np.ndarray, "n 2"]) -> None:
    places, counts = np.unique(points, axis=0, return_counts=True)
    for (x, y), count in zip(places, counts, strict=True):
        is_code = x == y and x < 0 and count >= 2
        if is_code or (count < len(points) and count >= max(3, math.ceil(len(points) / 4))):
            raise ValueError(
                f"{count} of {len(points)} points lie at ({x:g}, {y:g}); a missing point is left "
                "empty, or has visibility 0 in COCO"
            )


def check_pixels(path: Path, faces: Sequence[RawFace]) -> None:
    """Refuse files whose points are fractions of the image size.

    Raises:
      InputError: the points of half the faces or more span less than two pixels.
    """
    spans = [
        np.ptp(face.points[shown], axis=0).max()
        for face in faces
        if (shown := _located(face)).any()
    ]
    # Points at a single place are refused where records are written.
    spans = [span for span in spans if span > 0]
    if spans and (span := float(np.median(spans))) < _MIN_SPAN:
        raise InputError(
            f"{path}: the points span {span:.2g} px, and coordinates have to be pixels; multiply "
            "x by the width and y by the height of the image"
        )


def percent_note(path: Path, faces: Sequence[RawFace], images: Sequence[Path | None]) -> str | None:
    """Describe points that may be percent of the image size: all within 100 px of large images.

    Args:
      path: the annotation file.
      faces: all its faces.
      images: the image of each face, or None.
    """
    located = [face.points[_located(face)] for face in faces]
    if not located or not all(len(points) for points in located):
        return None
    points = np.concatenate(located)
    if not ((points >= 0) & (points <= _PERCENT)).all():
        return None
    sizes = [_stored_size(image) for image in list(dict.fromkeys(images))[:_SAMPLED_IMAGES]]
    sizes = [size for size in sizes if size is not None]
    if not sizes or min(map(min, sizes)) < _PERCENT_MIN_SIDE:
        return None
    width, height = min(sizes)
    return (
        f"{path}: all points lie within 100 px of the upper left corner of images of {width} x "
        f"{height} px and more; if they are percent of the image size, convert them to pixels"
    )


def _stored_size(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # reported when the image is read


def check_boxes(path: Path, faces: Sequence[RawFace]) -> str | None:
    """Compare the form of a file's boxes with its points.

    Loose boxes, small ones and boxes of whole persons pass: in most faces, another form has to fit the
    points at least twice as closely on the worst side, or to hold all points where the stated one
    cuts them or lies to one side of them.

    Returns:
      A note if the boxes of most faces do not hold their points, and no other form fits.

    Raises:
      InputError: the boxes of most faces fit their points only in another form.
    """
    stated = faces[0].box_form if faces else "corners"
    num_boxes, num_cut, better = 0, 0, collections.Counter()
    for face in faces:
        shown, corners = _located(face), face.box_corners
        if shown.sum() < 2 or face.box is None or corners is None or not np.isfinite(corners).all():
            continue
        points = face.points[shown]
        if not np.ptp(points, axis=0).all():
            continue
        num_boxes += 1
        is_cut = _coverage(corners, points) < 0.5
        num_cut += is_cut
        margins = _margins(corners, points)
        for form in BOX_FORMS:
            other = _margins(_corners(face.box, form), points)
            better[form] += _fits_better(other, margins, is_cut=is_cut)
    for form, count in better.most_common(1):
        if count > num_boxes / 2:
            raise InputError(
                f"{path}: {count} of {num_boxes} boxes fit their points only if they are "
                f"{BOX_FORMS[form]}, but {BOX_FORMS[stated]} are expected; convert or remove them"
            )
    if num_cut > num_boxes / 2:
        return (
            f"{path}: {num_cut} of {num_boxes} boxes hold less than half of the area of their points; "
            f"expected are {BOX_FORMS[stated]}, in pixels"
        )
    return None


def _located(face: RawFace) -> Bool[np.ndarray, "k"]:
    return face.visible & np.isfinite(face.points).all(axis=1)


def _corners(box: Float[np.ndarray, "4"], form: str) -> Float[np.ndarray, "4"]:
    first, second = np.split(box, 2)
    if form == "sizes":
        return np.concatenate([first, first + second])
    if form == "centers":
        return np.concatenate([first - second / 2, first + second / 2])
    return box


def _margins(
    box: Float[np.ndarray, "4"], points: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "4"]:
    """Distances of the sides of a box from those of the points' box, over its size; < 0 is inside."""
    low, high = points.min(axis=0), points.max(axis=0)
    return np.concatenate([(low - box[:2]) / (high - low), (box[2:] - high) / (high - low)])


def _fits_better(
    other: Float[np.ndarray, "4"], stated: Float[np.ndarray, "4"], *, is_cut: bool
) -> bool:
    """Whether the margins of another form fit a face clearly better than those of the stated form."""
    misfit, other_misfit = np.abs(stated).max(), np.abs(other).max()
    if misfit >= 0.25 and other_misfit <= misfit / 2:
        return True
    if other.min() < 0 or other_misfit >= 1:
        return False
    # The forehead is in many boxes; to the left and right of the points there is about the same.
    lean, other_lean = (abs(margins[2] - margins[0]) for margins in (stated, other))
    return bool(is_cut or (lean >= 0.5 and other_lean <= lean / 3))


def _coverage(box: Float[np.ndarray, "4"], points: Float[np.ndarray, "n 2"]) -> float:
    """Part of the points' box that lies within a box."""
    low, high = points.min(axis=0), points.max(axis=0)
    sides = np.minimum(box[2:], high) - np.maximum(box[:2], low)
    return float((np.maximum(sides, 0) / (high - low)).prod())

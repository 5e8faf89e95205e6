"""Faces as stated in an annotation file: checks over a whole file, and conversion to annotations."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int8
from PIL import Image

from lcgcn_jax.data.annotations import (
    MISSING_POINTS,
    AnnotationList,
    BadRecord,
    FaceAnnotation,
    Visibility,
    marked_missing,
)
from lcgcn_jax.data.encoding import MIN_SPAN
from lcgcn_jax.errors import InputError, count_of

SPLITS = ("train", "validation", "test")

UNSTATED = ""
"""Split of files whose faces state their split themselves, or belong to train."""

ABSENT = math.nan

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
    """A face as stated in an annotation file.

    Attributes:
      image: path of the image as stated in the file.
      points: pixels, counted as in the file.
      visible: which points have a location.
      box: the four numbers of the face box, in the form `box_form`, or None.
      box_form: a key of `BOX_FORMS`.
      normalizer: normalizing distance of NME, in pixels, or NaN.
      split: the split, or `UNSTATED`.
      group: for example the person, or empty.
      subset: a part of the dataset, or empty.
      stated_size: width and height of the image as stated in the file, or None.
      attributes: values of the attributes of the dataset.
      visibility: values of `Visibility`, or None if the file has no visibility labels.
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
    attributes: tuple[bool, ...] = ()
    visibility: Int8[np.ndarray, "k"] | None = None

    @property
    def box_corners(self) -> Float[np.ndarray, "4"] | None:
        """The box as x0, y0, x1, y1; None without a box, or if all its numbers are 0 or all are -1."""
        if self.box is None or ((self.box == self.box[0]).all() and self.box[0] in (0, -1)):
            return None
        return _corners(self.box, self.box_form)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row or an annotation of a file.

    Attributes:
      number: its number in the file, which becomes a part of the face's name.
      name: its name in reports.
      face: the face, or the error why it cannot be used.
    """

    number: int
    name: str
    face: RawFace | ValueError

    @classmethod
    def parse(cls, number: int, name: str, parse_face: Callable[[], RawFace]) -> "Entry":
        """Entry with the result of `parse_face`, or with the ValueError that it raises."""
        try:
            return cls(number, name, parse_face())
        except ValueError as error:
            return cls(number, name, error)


def add_faces(
    annotations: AnnotationList,
    path: Path,
    split: str,
    entries: Iterable[Entry],
    find_image: Callable[[str], Path],
    folder: Path,
    *,
    count_from: int | float,
) -> None:
    """Check the entries of an annotation file and add their faces, bad records and notes.

    Args:
      split: the split of all its faces, or `UNSTATED`.
      entries: the content of the file.
      find_image: maps `RawFace.image` to the image; raises ValueError if it cannot be used.
      folder: the folder of the images.
      count_from: coordinate of the center of the first pixel in the file: 0, 0.5 or 1.

    Raises:
      InputError: the coordinates of the file are not pixels, or its boxes have another form.
    """
    entries, start = list(entries), len(annotations.faces)
    check_pixels(path, [entry.face for entry in entries if isinstance(entry.face, RawFace)])
    counts, marked_faces, image_paths = collections.Counter(), [], []
    for entry in entries:
        try:
            if isinstance(entry.face, ValueError):
                raise entry.face
            face, missing = mark_missing(entry.face)
            counts += missing
            marked_faces.append(face)
            annotation = _annotation(face, entry.number, split, find_image, folder, count_from)
            annotations.faces.append(annotation)
            image_paths.append(annotation.image_path)
        except ValueError as error:
            annotations.bad.append(BadRecord(entry.name, str(error)))
    if counts:
        places = " and ".join(
            f"{count_of(n, 'point')} at ({x:g}, {y:g})" for (x, y), n in counts.items()
        )
        annotations.notes.append(f"{path}: {places} treated as missing")
    notes = check_boxes(path, marked_faces), percent_note(path, marked_faces, image_paths)
    annotations.notes.extend(note for note in notes if note)
    images = [(face.split, face.image_path) for face in annotations.faces]
    if repeated := set(images[:start]) & set(images[start:]):
        annotations.notes.append(
            f"{path}: {count_of(len(repeated), 'image')} also in another file of the same split; faces that "
            "are in both count twice"
        )
    places = [(face.image_path, face.landmarks.tobytes()) for face in annotations.faces[start:]]
    if repeated := len(places) - len(set(places)):
        annotations.notes.append(
            f"{path}: {count_of(repeated, 'face')} repeated with the same landmarks; remove the copies"
        )


def _annotation(
    face: RawFace,
    number: int,
    split: str,
    find_image: Callable[[str], Path],
    folder: Path,
    count_from: int | float,
) -> FaceAnnotation:
    """Convert a face to the conventions of this package.

    Raises:
      ValueError: the face cannot be used.
    """
    if split != UNSTATED and face.split not in (UNSTATED, split):
        raise ValueError(f"the split is {face.split!r} in a file of {split!r}")
    split = face.split or split or SPLITS[0]
    if split not in SPLITS:
        raise ValueError(f"the split {split!r} is none of {', '.join(SPLITS)}")
    if not face.visible.any():
        raise ValueError("no point has a location")
    if not np.isfinite(face.points[face.visible]).all():
        raise ValueError(
            "a coordinate is NaN or infinite; leave the cells of a missing point empty"
        )
    box = face.box_corners
    if box is not None:
        if not np.isfinite(box).all():
            raise ValueError(f"the box {box.tolist()} has a missing or infinite number")
        if (box[2:] <= box[:2]).any():
            raise ValueError(f"the box {box.tolist()} has no extent")
        box = box - count_from
    # Records hold it as float32, where it must be neither 0 nor infinite.
    least, most = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    if not (math.isnan(face.normalizer) or least <= face.normalizer <= most):
        raise ValueError(f"the normalizer {face.normalizer:g} is not a positive number of pixels")
    image_path = find_image(face.image)
    image_name = image_path.relative_to(folder).as_posix()
    visibility = face.visibility
    if visibility is not None:
        visibility = np.where(face.visible, visibility, Visibility.UNKNOWN).astype(np.int8)
    return FaceAnnotation(
        name=f"{split}/{number:06d}:{image_name}",
        subset=face.subset,
        split=split,
        group=face.group or image_name,
        image_path=image_path,
        landmarks=np.where(face.visible[:, None], face.points - count_from, np.nan),
        visible=face.visible,
        provided_box=box,
        attributes=face.attributes,
        normalizer=face.normalizer,
        stated_size=face.stated_size,
        visibility=visibility,
    )


def mark_missing(face: RawFace) -> tuple[RawFace, collections.Counter]:
    """Mark the points at (0, 0) and (-1, -1) as missing.

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
    points = face.points[visible]
    if len(points) and np.isfinite(points).all():
        check_repeated(points)
        span = np.ptp(points, axis=0).max()
        # A single point, or points at one place, are rejected when the record is encoded.
        if 0 < span < MIN_SPAN:
            raise ValueError(f"the points span {span:.2g} px; coordinates have to be pixels")
    return dataclasses.replace(face, visible=visible), counts


def check_repeated(points: Float[np.ndarray, "n 2"]) -> None:
    """Check that the located points of a face are not a marker of missing points, such as (-9, -9) or (1, 1).

    Raises:
      ValueError: several points are at the same place.
    """
    places, counts = np.unique(points, axis=0, return_counts=True)
    for (x, y), count in zip(places, counts, strict=True):
        is_marker = x == y and x < 0 and count >= 2
        if is_marker or (count < len(points) and count >= max(3, math.ceil(len(points) / 4))):
            raise ValueError(
                f"{count} of {len(points)} points lie at ({x:g}, {y:g}); a missing point is at (0, 0) or "
                "(-1, -1), an empty cell in CSV, or has visibility 0 in COCO"
            )


def check_pixels(path: Path, faces: Sequence[RawFace]) -> None:
    """Reject files whose points are fractions of the image size.

    Raises:
      InputError: the points of half the faces or more span less than two pixels.
    """
    spans = [
        np.ptp(face.points[located], axis=0).max()
        for face in faces
        if (located := _located(face)).any()
    ]
    # Points at a single place are rejected when the record is encoded.
    spans = [span for span in spans if span > 0]
    if spans and (span := float(np.median(spans))) < MIN_SPAN:
        raise InputError(
            f"{path}: the points span {span:.2g} px, and coordinates have to be pixels; multiply "
            "x by the width and y by the height of the image"
        )


def percent_note(path: Path, faces: Sequence[RawFace], images: Sequence[Path]) -> str | None:
    """Note about points that may be percent of the image size: all within 100 px of large images.

    Args:
      images: the image of each face.
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


def _stored_size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # reported when the image is read


def check_boxes(path: Path, faces: Sequence[RawFace]) -> str | None:
    """Check the form of a file's boxes against its points.

    Loose boxes, small boxes and boxes of whole persons pass. Another form fits a face better if its worst
    side is at least twice as close to the points, or if it contains all points where the stated form
    cuts them or lies to one side of them.

    Returns:
      A note if the boxes of most faces do not contain their points, and no other form fits.

    Raises:
      InputError: in most faces, another form fits better.
    """
    stated = faces[0].box_form if faces else "corners"
    num_boxes, num_cut, better = 0, 0, collections.Counter()
    for face in faces:
        located, corners = _located(face), face.box_corners
        if (
            located.sum() < 2
            or face.box is None
            or corners is None
            or not np.isfinite(corners).all()
        ):
            continue
        points = face.points[located]
        if not np.ptp(points, axis=0).all() or (corners[2:] == corners[:2]).any():
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
    """Distance of each side from the bounding box of the points, relative to its size; < 0 is inside."""
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
    # Many boxes include the forehead, but the left and right margins are about equal.
    asymmetry, other_asymmetry = (abs(margins[2] - margins[0]) for margins in (stated, other))
    return bool(is_cut or (asymmetry >= 0.5 and other_asymmetry <= asymmetry / 3))


def _coverage(box: Float[np.ndarray, "4"], points: Float[np.ndarray, "n 2"]) -> float:
    """Fraction of the bounding box of the points that lies within a box."""
    low, high = points.min(axis=0), points.max(axis=0)
    sides = np.minimum(box[2:], high) - np.maximum(box[:2], low)
    return float((np.maximum(sides, 0) / (high - low)).prod())

"""Convert labeled points of images to annotated faces: grouping, names of landmarks, paths."""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int8

from lcgcn_jax.data import raw_faces
from lcgcn_jax.data.annotations import AnnotationList, BadRecord, FaceAnnotation, Visibility
from lcgcn_jax.data.formats.image_paths import ImageFinder
from lcgcn_jax.data.raw_faces import SPLITS, UNSTATED, RawFace
from lcgcn_jax.errors import InputError, did_you_mean, printable
from lcgcn_jax.landmarks import LandmarkScheme

_Entry = TypeVar("_Entry")

_NEAR = 0.75
"""Similarity (difflib's ratio) from which a name is suggested."""


@dataclasses.dataclass(frozen=True)
class LabeledPoint:
    """One point of an image.

    Attributes:
      label: the name of the point in the tool.
      xy: its place in pixels; None for a point that the tool lists without one.
      is_occluded: whether the annotator marked it as occluded; None if the file does not say.
      group: the face that it belongs to, or None where the file does not say.
    """

    label: str
    xy: tuple[float, float] | None
    is_occluded: bool | None = None
    group: Hashable | None = None


@dataclasses.dataclass(frozen=True)
class LabeledBox:
    """A face box of an image: x0, y0, x1, y1 in pixels, and the face that it belongs to."""

    corners: tuple[float, float, float, float]
    group: Hashable | None = None


@dataclasses.dataclass
class LabeledImage:
    """The annotations of one image.

    Attributes:
      called: the name of the entry, for reports.
      image_path: the image.
      points: the points of all faces.
      boxes: the face boxes.
      stated_size: width and height of the image as the annotation file states them, or None.
      split: the split that the file states, or `UNSTATED`.
      flags: names of the attributes that are true for the image.
      num_skipped_boxes: face boxes without points, or marked as to be ignored.
    """

    called: str
    image_path: Path
    points: list[LabeledPoint]
    boxes: list[LabeledBox]
    stated_size: tuple[int, int] | None = None
    split: str = UNSTATED
    flags: frozenset[str] = frozenset()
    num_skipped_boxes: int = 0


@dataclasses.dataclass
class LabeledFile:
    """What a reader found in one annotation file (or folder).

    Attributes:
      path: the file.
      images: the usable entries, in the order of the file.
      bad: the entries left out.
    """

    path: Path
    images: list[LabeledImage] = dataclasses.field(default_factory=list)
    bad: list[BadRecord] = dataclasses.field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Remarks on what holds no face."""
        empty = sum(not image.points for image in self.images)
        skipped = sum(image.num_skipped_boxes for image in self.images)
        counts = {"images": empty, "face boxes": skipped}
        return [f"{self.path}: {n:,} {what} without points" for what, n in counts.items() if n]


def read_entries(
    path: Path,
    entries: Iterable[tuple[str, _Entry]],
    read_entry: Callable[[str, _Entry], LabeledImage],
) -> LabeledFile:
    """Read the entries of an annotation file; those that cannot be used are listed.

    Args:
      path: the file.
      entries: each with the name that reports call it by.
      read_entry: reads one of them, given its name; ValueError says what is wrong with it.
    """
    file = LabeledFile(path)
    for name, entry in entries:
        called = printable(f"{path.name}: {name}")
        try:
            file.images.append(read_entry(called, entry))
        except ValueError as error:
            file.bad.append(BadRecord(called, str(error)))
    return file


def require_scheme_without_normalizer(scheme: LandmarkScheme, kind: str) -> None:
    """Refuse a scheme whose NME needs a number per face, which labeling tools do not have.

    Raises:
      InputError: the normalizer of the scheme is `given`.
    """
    if scheme.normalizer == "given":
        raise InputError(
            f"--scheme: the normalizer of {scheme.name} is 'given', and {kind} files hold none; use "
            "two landmarks or 'box', or lcgcn prepare csv"
        )


def to_annotations(
    kind: str,
    files: Mapping[str, LabeledFile],
    finder: ImageFinder,
    scheme: LandmarkScheme,
    *,
    count_from: int,
    grouping: str,
    attribute_names: Sequence[str] = (),
) -> AnnotationList:
    """Convert the content of annotation files to annotated faces.

    Args:
      kind: the format, e.g. `cvat`.
      files: what was read, by split.
      finder: the images.
      scheme: the landmarks.
      count_from: the number of the first pixel in the files, 0 or 1.
      grouping: how the tool tells the faces of an image apart, for messages.
      attribute_names: names of the attributes that `flags` hold.

    Raises:
      InputError: a file has no points, or its points do not fit the scheme.
    """
    faces: list[FaceAnnotation] = []
    bad, notes = [], []
    for split, file in files.items():
        bad += file.bad
        notes += file.notes
        places = {p.label: image.called for image in reversed(file.images) for p in image.points}
        if not places and not file.bad:
            raise InputError(f"{file.path}: no points in it; label some faces and export it again")
        indices = landmarks_of_labels(places, scheme, file.path) if places else {}
        stated: list[tuple[LabeledImage, RawFace, np.ndarray]] = []
        for image in file.images:
            try:
                groups = group_faces(image, indices, grouping)
            except ValueError as error:
                bad.append(BadRecord(image.called, str(error)))
                continue
            for points, box in groups:
                stated.append(
                    (image, *_raw_face(image, points, box, indices, scheme.num_landmarks))
                )
        raw_faces.check_pixels(file.path, [face for _, face, _ in stated])
        missing, whole = Counter(), []
        for number, (image, face, visibility) in enumerate(stated, start=1):
            try:
                face, counts = raw_faces.mark_missing(face)
                faces.append(
                    _annotation(
                        split or image.split or SPLITS[0],
                        number,
                        image,
                        face,
                        visibility,
                        finder.folder,
                        count_from,
                        tuple(flag in image.flags for flag in attribute_names),
                    )
                )
            except ValueError as error:
                bad.append(BadRecord(image.called, str(error)))
                continue
            missing += counts
            whole.append(face)
        if missing:
            places = " and ".join(
                f"{n:,} points at ({x:g}, {y:g})" for (x, y), n in missing.items()
            )
            notes.append(f"{file.path}: {places} count as missing")
        if note := raw_faces.check_boxes(file.path, whole):
            notes.append(note)
    return AnnotationList(
        kind, scheme, tuple(attribute_names), faces, bad, [], notes, has_custom_landmarks=True
    )


def _raw_face(
    image: LabeledImage,
    points: Iterable[LabeledPoint],
    box: LabeledBox | None,
    indices: Mapping[str, int],
    num_landmarks: int,
) -> tuple[RawFace, Int8[np.ndarray, "k"]]:
    """A face as the file states it, and its visibility labels."""
    landmarks = np.full((num_landmarks, 2), np.nan)
    visibility = np.full(num_landmarks, Visibility.UNKNOWN, np.int8)
    for point in points:
        if point.xy is not None:
            index = indices[point.label]
            landmarks[index] = point.xy
            if point.is_occluded is not None:
                visibility[index] = (
                    Visibility.EXTERNALLY_OCCLUDED if point.is_occluded else Visibility.VISIBLE
                )
    face = RawFace(
        image=str(image.image_path),
        points=landmarks,
        visible=np.all(np.isfinite(landmarks), axis=1),
        box=None if box is None else np.array(box.corners),
        split=image.split,
        stated_size=image.stated_size,
    )
    return face, visibility


def _annotation(
    split: str,
    number: int,
    image: LabeledImage,
    face: RawFace,
    visibility: Int8[np.ndarray, "k"],
    folder: Path,
    count_from: int,
    attributes: tuple[bool, ...],
) -> FaceAnnotation:
    """The face in this project's conventions.

    Raises:
      ValueError: no point has a location, or the name of the image is not in UTF-8.
    """
    if not face.visible.any():
        raise ValueError("no point of a face has a location")
    name = image.image_path.relative_to(folder).as_posix()
    return FaceAnnotation(
        name=f"{split}/{number:06d}:{name}",
        subset="",
        split=split,
        group=name,
        image_path=image.image_path,
        landmarks=np.where(face.visible[:, None], face.points - count_from, np.nan),
        visible=face.visible,
        provided_box=None if (box := face.box_corners) is None else box - count_from,
        attributes=attributes,
        stated_size=image.stated_size,
        visibility=np.where(face.visible, visibility, Visibility.UNKNOWN).astype(np.int8),
    )


def landmarks_of_labels(
    places: Mapping[str, str], scheme: LandmarkScheme, path: Path
) -> dict[str, int]:
    """Find the landmark of each label of a file.

    A label is the name of a landmark. Labels that are all whole numbers, and no names, count from 0
    or from 1: the file has to hold the first or the last number.

    Args:
      places: label -> the entry of the file that it is first in, for messages.
      scheme: the landmarks.
      path: the file.

    Raises:
      InputError: a label is not a landmark of the scheme, or it is unclear where the numbers start.
    """
    labels = list(places)
    by_name = {name: i for i, name in enumerate(scheme.names)}
    if all(map(_is_whole, by_name)):
        # `01` is the landmark `1`.
        by_number = {int(name): i for name, i in by_name.items()}
        by_name |= {t: by_number[int(t)] for t in labels if _is_whole(t) and int(t) in by_number}
    unknown = [label for label in labels if label not in by_name]
    if not unknown:
        return {label: by_name[label] for label in labels}
    if all(map(_is_whole, labels)):
        return _landmarks_of_numbers(labels, scheme, path)
    more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    raise InputError(
        f"{places[unknown[0]]}: the point label {unknown[0]!r}{more} is not a landmark of {scheme.name}"
        + (did_you_mean(unknown[0], by_name, cutoff=_NEAR) or "; use the names in the scheme")
    )


def _landmarks_of_numbers(
    labels: Sequence[str], scheme: LandmarkScheme, path: Path
) -> dict[str, int]:
    k = scheme.num_landmarks
    numbers = {label: int(label) for label in labels}
    low, high = min(numbers.values()), max(numbers.values())
    if high - low >= k or high > k:
        raise InputError(
            f"{path}: the points are numbered {low} to {high}, and {scheme.name} has {k} landmarks; "
            "give the scheme of these points"
        )
    if low > 0 and high < k:
        raise InputError(
            f"{path}: the points are numbered {low} to {high}; with neither 0 nor {k} it is unclear "
            "whether they count from 0 or 1; use the names in the scheme"
        )
    first = 0 if low == 0 else 1
    return {label: number - first for label, number in numbers.items()}


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


def group_faces(
    image: LabeledImage, indices: Mapping[str, int], grouping: str
) -> list[tuple[list[LabeledPoint], LabeledBox | None]]:
    """Tell the faces of an image apart.

    Points and boxes of one group are a face. Without groups, the points are one face; with two or
    more boxes, the faces are what lies in them.

    Args:
      image: the annotations.
      indices: label -> landmark.
      grouping: how the tool tells the faces of an image apart, for messages.

    Raises:
      ValueError: the points cannot be assigned.
    """
    points, boxes = defaultdict(list), defaultdict(list)
    for point in image.points:
        points[point.group].append(point)
    for box in image.boxes:
        boxes[box.group].append(box)
    if len(points) > 1 and None in points:
        raise ValueError(f"{len(points[None])} points belong to no face, and others do; {grouping}")
    if None in points and len(boxes[None]) > 1:
        points = _points_in_boxes(points[None], boxes[None], grouping)
        boxes = defaultdict(list, {box: [box] for box in boxes[None]})
    faces = []
    for group, members in points.items():
        index, count = Counter(indices[point.label] for point in members).most_common(1)[0]
        if count > 1:
            label = next(point.label for point in members if indices[point.label] == index)
            raise ValueError(f"{count} points {label!r} in one face; {grouping}")
        if len(boxes[group]) > 1:
            raise ValueError(f"{len(boxes[group])} boxes for one face; {grouping}")
        if any(point.xy is not None for point in members):
            faces.append((members, boxes[group][0] if boxes[group] else None))
    return faces


def _points_in_boxes(
    points: Sequence[LabeledPoint], boxes: Sequence[LabeledBox], grouping: str
) -> Mapping[Hashable, list[LabeledPoint]]:
    faces = defaultdict(list)
    for point in points:
        if point.xy is None:
            continue
        x, y = point.xy
        around = [b for b in boxes if b.corners[0] <= x <= b.corners[2]]
        around = [b for b in around if b.corners[1] <= y <= b.corners[3]]
        if len(around) != 1:
            raise ValueError(
                f"the point {point.label!r} at ({x:g}, {y:g}) lies in {len(around)} of "
                f"{len(boxes)} face boxes; {grouping}"
            )
        faces[around[0]].append(point)
    return faces

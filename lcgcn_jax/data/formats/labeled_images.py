"""Labeled points of images, as labeling tools export them, and their conversion to faces."""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from lcgcn_jax.data.annotations import AnnotationList, BadRecord, Visibility
from lcgcn_jax.data.formats.image_paths import ImageFinder
from lcgcn_jax.data.raw_faces import UNSTATED, Entry, RawFace, add_faces
from lcgcn_jax.errors import InputError, count_of, did_you_mean, printable
from lcgcn_jax.landmarks import LandmarkScheme

_Item = TypeVar("_Item")

_MIN_SIMILARITY = 0.75
"""Ratio of difflib from which a name is suggested."""


@dataclasses.dataclass(frozen=True)
class LabeledPoint:
    """Point of an image.

    Attributes:
      label: name of the point in the tool.
      xy: location in pixels; None for a point without a location.
      is_occluded: whether the annotator marked it as occluded; None if the file does not state it.
      group: the face that it belongs to, or None if the file does not state it.
    """

    label: str
    xy: tuple[float, float] | None
    is_occluded: bool | None = None
    group: Hashable | None = None


@dataclasses.dataclass(frozen=True)
class LabeledBox:
    """Face box of an image: x0, y0, x1, y1 in pixels, and the face that it belongs to."""

    corners: tuple[float, float, float, float]
    group: Hashable | None = None


@dataclasses.dataclass
class LabeledImage:
    """Annotations of one image.

    Attributes:
      name: name of the entry in reports.
      stated_size: width and height of the image as stated in the file, or None.
      split: the split stated in the file, or `UNSTATED`.
      flags: names of the attributes that are true for the image.
      num_skipped_boxes: face boxes without points, or marked as ignored.
    """

    name: str
    image_path: Path
    points: list[LabeledPoint]
    boxes: list[LabeledBox]
    stated_size: tuple[int, int] | None = None
    split: str = UNSTATED
    flags: frozenset[str] = frozenset()
    num_skipped_boxes: int = 0


@dataclasses.dataclass
class LabeledFile:
    """Content of an annotation file or of a folder of them.

    Attributes:
      images: the usable entries, in the order of the file.
      bad: the entries that cannot be used.
    """

    path: Path
    images: list[LabeledImage] = dataclasses.field(default_factory=list)
    bad: list[BadRecord] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Remarks, and notes about images and boxes without points."""
        empty = sum(not image.points for image in self.images)
        skipped = sum(image.num_skipped_boxes for image in self.images)
        counts = {"image": empty, "face box": skipped}
        texts = [f"{count_of(n, what)} without points" for what, n in counts.items() if n]
        return [f"{self.path}: {text}" for text in (*self.remarks, *texts)]


def read_entries(
    path: Path, items: Iterable[tuple[str, _Item]], read_item: Callable[[str, _Item], LabeledImage]
) -> LabeledFile:
    """Read the entries of an annotation file; unusable ones are listed in `bad`.

    Args:
      items: the entries, each with its name in reports.
      read_item: reads an entry, given its name; raises ValueError if it cannot be used.
    """
    file = LabeledFile(path)
    for item_name, item in items:
        name = printable(f"{path.name}: {item_name}")
        try:
            file.images.append(read_item(name, item))
        except ValueError as error:
            file.bad.append(BadRecord(name, str(error)))
    return file


def describe_ignored(shapes: Counter[str]) -> list[str]:
    """Remark on lines, which may be meant as landmarks, by their kind; empty if there are none."""
    kinds = " and ".join(f"{count_of(n, 'shape')} of the type {kind}" for kind, n in shapes.items())
    return [f"{kinds} ignored; a landmark is a point"] if shapes else []


def to_annotations(
    kind: str,
    files: Iterable[tuple[str, LabeledFile]],
    finder: ImageFinder,
    scheme: LandmarkScheme,
    *,
    count_from: int | float,
    grouping: str,
    attribute_names: Sequence[str] = (),
) -> AnnotationList:
    """Convert the content of annotation files to annotated faces.

    Args:
      kind: file format, such as `cvat`.
      files: split and content of each file.
      count_from: coordinate of the center of the first pixel in the files: 0, 0.5 or 1.
      grouping: how to group the points of a face in the tool, for error messages.
      attribute_names: names of the attributes in `flags`.

    Raises:
      InputError: a file has no points, its points do not fit the scheme, or NME of the scheme needs a
        number per face, which labeling tools do not have.
    """
    if scheme.normalizer == "given":
        raise InputError(
            f"--scheme: the normalizer of {scheme.name} is 'given', and {kind} files hold none; use "
            "two landmarks or 'box', or lcgcn prepare csv"
        )
    annotations = AnnotationList(
        kind, scheme, tuple(attribute_names), [], [], [], has_custom_landmarks=True
    )
    for split, file in files:
        annotations.bad.extend(file.bad)
        annotations.notes.extend(file.notes)
        label_entries = {
            point.label: image.name for image in reversed(file.images) for point in image.points
        }
        if not label_entries and not file.bad:
            remarks = "".join(f" ({remark})" for remark in file.remarks)
            raise InputError(
                f"{file.path}: no points in it{remarks}; label some faces and export it again"
            )
        indices = landmarks_of_labels(label_entries, scheme, file.path) if label_entries else {}
        entries: list[Entry] = []
        for image in file.images:
            try:
                faces = group_faces(image, indices, grouping)
            except ValueError as error:
                annotations.bad.append(BadRecord(image.name, str(error)))
                continue
            for points, box in faces:
                face = dataclasses.replace(
                    _raw_face(image, points, box, indices, scheme.num_landmarks),
                    split=split or image.split,
                    attributes=tuple(flag in image.flags for flag in attribute_names),
                )
                entries.append(Entry(len(entries) + 1, image.name, face))
        add_faces(
            annotations, file.path, split, entries, Path, finder.folder, count_from=count_from
        )
    annotations.notes.extend(finder.notes())
    return annotations


def _raw_face(
    image: LabeledImage,
    points: Iterable[LabeledPoint],
    box: LabeledBox | None,
    indices: Mapping[str, int],
    num_landmarks: int,
) -> RawFace:
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
    return RawFace(
        image=str(image.image_path),
        points=landmarks,
        visible=np.all(np.isfinite(landmarks), axis=1),
        box=None if box is None else np.array(box.corners),
        stated_size=image.stated_size,
        visibility=visibility,
    )


def landmarks_of_labels(
    label_entries: Mapping[str, str], scheme: LandmarkScheme, path: Path
) -> dict[str, int]:
    """Map each label of a file to the index of its landmark.

    A label is the name of a landmark. If all labels are whole numbers that are not names, they count
    from 0 or from 1: the file must contain the first or the last number.

    Args:
      label_entries: label -> the entry of the file with its first occurrence, for error messages.

    Raises:
      InputError: a label is not a landmark of the scheme, or it is unclear where the numbers start.
    """
    labels = list(label_entries)
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
        f"{label_entries[unknown[0]]}: the point label {unknown[0]!r}{more} is not a landmark of "
        f"{scheme.name}"
        + (
            did_you_mean(unknown[0], by_name, cutoff=_MIN_SIMILARITY)
            or "; use the names in the scheme"
        )
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
            "use the scheme of these points"
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
    """Separate the faces of an image.

    Points and boxes of the same group are a face. Points without groups are one face, or, with two or
    more boxes, one face per box.

    Args:
      indices: label -> landmark.
      grouping: how to group the points of a face in the tool, for error messages.

    Raises:
      ValueError: the points cannot be assigned.
    """
    points, boxes = defaultdict(list), defaultdict(list)
    for point in image.points:
        points[point.group].append(point)
    for box in image.boxes:
        boxes[box.group].append(box)
    if len(points) > 1 and None in points:
        raise ValueError(
            f"{count_of(len(points[None]), 'point')} without a face, but others have one; {grouping}"
        )
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

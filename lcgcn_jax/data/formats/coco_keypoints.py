"""COCO keypoints JSON: images, categories and annotations."""

import collections
import dataclasses
import functools
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int8

from lcgcn_jax.data.annotations import Visibility, marked_missing
from lcgcn_jax.data.formats.csv_tables import refuse_normalizer
from lcgcn_jax.data.formats.parsing import parse_size, read_json, to_float
from lcgcn_jax.data.raw_faces import ABSENT, Entry, RawFace
from lcgcn_jax.errors import InputError, count_of, did_you_mean
from lcgcn_jax.landmarks import LandmarkScheme

_MAX_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class _Image:
    file_name: Any
    size: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class _Category:
    """Category, and the landmarks of the scheme among its keypoints.

    Attributes:
      order: index of the keypoint of each landmark, or -1; None if no keypoint has the name of a landmark,
        so that keypoints count in order.
      missing: landmarks without a keypoint, if other landmarks have one.
    """

    name: str
    keypoints: tuple[str, ...]
    order: tuple[int, ...] | None
    missing: tuple[str, ...]


def read_annotations(path: Path, scheme: LandmarkScheme, notes: list[str]) -> Iterator[Entry]:
    """Read the faces of COCO keypoints JSON.

    Skipped are annotations without keypoints, crowds, and, if a category names all landmarks, annotations
    of other categories.

    Args:
      notes: extended by notes about the file.

    Raises:
      InputError: the file cannot be read, is not COCO keypoints JSON, or contradicts itself.
    """
    content = read_json(path)
    try:
        images = _images(content["images"])
        annotations = list(content["annotations"])
        categories = _categories(content.get("categories") or (), scheme)
        chosen = _faces(annotations, categories, scheme, file_notes := [])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: not COCO's keypoints: expected images with id and file_name, annotations, "
            "and categories with id"
        ) from error
    notes += (f"{path}: {note}" for note in file_notes)
    marks_visible = any(_marks_visible(annotation) for _, annotation, _ in chosen)
    for number, annotation, category in chosen:
        name = f"{path.name}: annotation {_name_of(annotation, number)}"
        parse_face = functools.partial(_face, annotation, images, category, scheme, marks_visible)
        yield Entry.parse(number, name, parse_face)


def _id(value: Any) -> Hashable:
    """Normalize an id: 3, 3.0 and "3" are equal."""
    if isinstance(value, str) and re.fullmatch(r"0|-?[1-9]\d{0,17}", value.strip()):
        return int(value)
    hash(value)
    return value


def _images(entries: Sequence[Mapping[str, Any]]) -> dict[Hashable, _Image]:
    images: dict[Hashable, _Image] = {}
    for entry in entries:
        image = _Image(entry["file_name"], parse_size(entry.get("width"), entry.get("height")))
        other = images.setdefault(_id(entry["id"]), image)
        if other.file_name != image.file_name:
            raise InputError(
                f"the images {other.file_name!r} and {image.file_name!r} both have the id "
                f"{entry['id']!r}, so that faces cannot be assigned; renumber images when merging files"
            )
        if other.size and image.size and other.size != image.size:
            raise InputError(
                f"the image {image.file_name!r} (id {entry['id']!r}) is listed with two sizes, "
                f"{other.size[0]} x {other.size[1]} and {image.size[0]} x {image.size[1]}"
            )
        if other.size is None:
            images[_id(entry["id"])] = image
    return images


def _plain(name: str) -> str:
    return re.sub(r"[\s.\-]+", "_", name.strip()).casefold()


def _categories(
    entries: Sequence[Mapping[str, Any]], scheme: LandmarkScheme
) -> dict[Hashable, _Category]:
    categories: dict[Hashable, _Category] = {}
    for entry in entries:
        keypoints = tuple(map(str, entry.get("keypoints") or ()))
        category = _category(str(entry.get("name", entry["id"])), keypoints, scheme)
        other = categories.setdefault(_id(entry["id"]), category)
        if other != category:
            raise InputError(
                f"the categories {other.name!r} and {category.name!r} both have the id "
                f"{entry['id']!r}; renumber categories when merging files"
            )
    return categories


def _category(name: str, keypoints: tuple[str, ...], scheme: LandmarkScheme) -> _Category:
    exact, plain = (
        {key(keypoint): i for i, keypoint in enumerate(keypoints)} for key in (str, _plain)
    )
    is_unique = len(plain) == len(keypoints) == len(exact)
    indices = [exact.get(n, plain.get(_plain(n)) if is_unique else None) for n in scheme.names]
    missing = tuple(n for n, i in zip(scheme.names, indices, strict=True) if i is None)
    if len(missing) == len(indices):
        return _Category(name, keypoints, None, ())
    order = tuple(-1 if i is None else i for i in indices)
    if not missing and len(set(order)) < len(order):
        raise InputError(f"category {name!r}: two landmarks have the same keypoint")
    if not missing and len(exact) < len(keypoints):
        duplicate = next(k for k in keypoints if keypoints.count(k) > 1)
        raise InputError(f"category {name!r} has two keypoints named {duplicate!r}")
    return _Category(name, keypoints, order, missing)


def _has_id(annotation: Any) -> bool:
    return isinstance(annotation, Mapping) and "id" in annotation


def _has_keypoints(annotation: Mapping[str, Any]) -> bool:
    """Whether a keypoint is labeled, or the list is malformed."""
    keypoints = annotation.get("keypoints")
    if keypoints is None or (isinstance(keypoints, Sequence) and not len(keypoints)):
        return False
    try:
        return len(keypoints) % 3 != 0 or any(float(v) != 0 for v in keypoints[2::3])
    except (TypeError, ValueError, OverflowError):
        return True


def _num_unlabeled(annotation: Any) -> int:
    """Number of keypoints with coordinates but visibility 0."""
    try:
        points = np.array([float(v) for v in annotation["keypoints"]]).reshape(-1, 3)
    except (TypeError, KeyError, ValueError, OverflowError):
        return 0
    return int((~marked_missing(points[:, :2]) & (points[:, 2] == 0)).sum())


def _marks_visible(annotation: Any) -> bool:
    """Whether a keypoint has visibility 2; without any in a file, 1 only means that a point is labeled."""
    try:
        return any(float(v) == 2 for v in annotation["keypoints"][2::3])
    except (TypeError, KeyError, ValueError, OverflowError):
        return False


def _faces(
    annotations: Sequence[Any],
    categories: Mapping[Hashable, _Category],
    scheme: LandmarkScheme,
    notes: list[str],
) -> list[tuple[int, Any, _Category | None]]:
    """Select the annotations that are faces or malformed; returns number, annotation and category.

    Raises:
      InputError: a category is unknown, or lacks landmarks.
    """
    skipped: collections.Counter[str] = collections.Counter()
    candidates: list[tuple[int, Any, _Category | None]] = []
    for number, annotation in enumerate(annotations, start=1):
        if not isinstance(annotation, Mapping):
            candidates.append((number, annotation, None))
        elif annotation.get("iscrowd") in (1, True, "1"):
            skipped["crowd"] += 1
        elif not _has_keypoints(annotation):
            skipped["without labeled keypoints"] += 1
        else:
            candidates.append((number, annotation, _category_of(annotation, number, categories)))
    used = list(dict.fromkeys(c for _, _, c in candidates if c is not None))
    # If a category names all landmarks, other categories are of other objects.
    if any(c.order is not None and not c.missing for c in used):
        others = [c for c in used if c.order is None or c.missing]
        for category in others:
            skipped[f"of category {category.name!r}"] = sum(c == category for *_, c in candidates)
        candidates = [item for item in candidates if item[2] not in others]
        used = [c for c in used if c not in others]
    for category in used:
        if category.missing:
            # Keypoints with the name of another landmark cannot be meant.
            other_names = [name for name in category.keypoints if name not in scheme.names]
            hint = did_you_mean(category.missing[0], other_names)
            if other_names and not hint:
                hint = f" (but {', '.join(map(repr, other_names[:_MAX_SHOWN]))})"
            raise InputError(
                f"category {category.name!r} has no keypoint {category.missing[0]!r}{hint}; give the "
                f"landmarks of {scheme.name} the same names"
            )
    notes += _category_notes(used, scheme)
    if unlabeled := sum(map(_num_unlabeled, annotations)):
        notes.append(
            f"{count_of(unlabeled, 'keypoint')} with coordinates but visibility 0 treated as missing; a "
            "labeled point has visibility 1 or 2"
        )
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
    if skipped and not candidates:
        raise InputError(f"no annotation is a face; skipped: {reasons}")
    if skipped:
        notes.append(f"{sum(skipped.values()):,} annotations skipped: {reasons}")
    notes += _repeated_ids(annotation for _, annotation, _ in candidates)
    return candidates


def _category_of(
    annotation: Mapping[str, Any], number: int, categories: Mapping[Hashable, _Category]
) -> _Category | None:
    """Category of an annotation; None if the file has no categories.

    Raises:
      InputError: it is unknown, or not stated although there are several.
    """
    if not categories:
        return None
    category_id = annotation.get("category_id")
    known = ", ".join(f"{key} ({category.name})" for key, category in categories.items())
    if category_id is None:
        if len(categories) == 1:
            return next(iter(categories.values()))
        raise InputError(
            f"annotation {_name_of(annotation, number)} has no category_id; add one of {known}"
        )
    try:
        return categories[_id(category_id)]
    except (KeyError, TypeError):
        raise InputError(
            f"annotation {_name_of(annotation, number)} has the category_id {category_id!r}, which "
            f"is not among the categories; they are {known}"
        ) from None


def _category_notes(used: Sequence[_Category], scheme: LandmarkScheme) -> Iterator[str]:
    if len(used) > 1:
        yield f"annotations of {len(used)} categories are read as faces: " + ", ".join(
            repr(category.name) for category in used[:_MAX_SHOWN]
        )
    for category in used:
        if category.order is None and category.keypoints and not _is_numbered(category.keypoints):
            yield (
                f"category {category.name!r} names none of the landmarks of {scheme.name}, so its "
                f"keypoints count in order: {category.keypoints[0]!r} is {scheme.names[0]!r}"
            )


def _is_numbered(keypoints: Sequence[str]) -> bool:
    """Whether the names of keypoints are consecutive numbers."""
    matches = [match for text in keypoints if (match := re.fullmatch(r"\D*(\d+)", text))]
    numbers = [int(match[1]) for match in matches]
    is_whole = bool(numbers) and len(numbers) == len(keypoints)
    return is_whole and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _repeated_ids(annotations: Iterable[Any]) -> Iterator[str]:
    counts = collections.Counter(
        str(annotation["id"]) for annotation in annotations if _has_id(annotation)
    )
    if repeated := [name for name, count in counts.items() if count > 1]:
        yield (
            f"{len(repeated):,} annotation ids are duplicated (such as {repeated[0]}); if "
            "files were merged, check that the image ids are still right"
        )


def _name_of(annotation: Any, number: int) -> str:
    return str(annotation["id"]) if _has_id(annotation) else f"number {number}"


def _face(
    annotation: Any,
    images: Mapping[Hashable, _Image],
    category: _Category | None,
    scheme: LandmarkScheme,
    marks_visible: bool,
) -> RawFace:
    """Parse an annotation.

    Raises:
      ValueError: the annotation cannot be used.
    """
    try:
        image = images.get(_id(annotation["image_id"]))
        keypoints = annotation["keypoints"]
        normalizer = annotation.get("normalizer")
        normalizer = ABSENT if normalizer is None else float(normalizer)
        box = _box(annotation.get("bbox"))
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError("not a COCO annotation") from error
    if annotation.get("iscrowd") not in (None, 0, "0", ""):
        raise ValueError(f"its iscrowd is {annotation['iscrowd']!r}; expected 0 or 1")
    if image is None or not isinstance(image.file_name, str):
        raise ValueError(f"no image with the id {annotation['image_id']!r} and a file_name")
    points, visible, visibility = _points(keypoints, category, scheme)
    if scheme.normalizer != "given" and not np.isnan(normalizer):
        refuse_normalizer(scheme)
    return RawFace(
        image.file_name,
        points,
        visible,
        box,
        "sizes",
        normalizer=normalizer,
        stated_size=image.size,
        visibility=visibility if marks_visible else None,
    )


def _points(
    keypoints: Any, category: _Category | None, scheme: LandmarkScheme
) -> tuple[Float[np.ndarray, "k 2"], Bool[np.ndarray, "k"], Int8[np.ndarray, "k"]]:
    values = _numbers(keypoints)
    order = None if category is None else category.order
    expected = len(category.keypoints) if category and order else scheme.num_landmarks
    if len(values) != 3 * expected:
        hint = "; each is x, y and visibility" if len(values) == 2 * expected else ""
        raise ValueError(
            f"{count_of(len(values), 'number')} for the keypoints, expected {3 * expected}{hint}"
        )
    points = values.reshape(-1, 3)[slice(None) if order is None else list(order)]
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        raise ValueError("a keypoint's visibility is none of 0, 1 and 2")
    labeled = points[:, 2] > 0
    missing = np.isnan(points[:, :2])
    if (half := labeled & (missing[:, 0] != missing[:, 1])).any():
        raise ValueError(f"one coordinate of {scheme.names[int(half.argmax())]} is missing")
    visibility = np.where(points[:, 2] == 2, Visibility.VISIBLE, Visibility.EXTERNALLY_OCCLUDED)
    return points[:, :2], labeled & ~missing[:, 0], visibility.astype(np.int8)


def _box(values: Any) -> Float[np.ndarray, "4"] | None:
    if values is None or (isinstance(values, Sequence) and all(v is None for v in values)):
        return None
    box = _numbers(values)
    if len(box) != 4:
        raise ValueError("the bbox is not x, y, width and height")
    return box


def _numbers(values: Any) -> Float[np.ndarray, "n"]:
    """Convert a list to numbers; null becomes NaN."""
    try:
        return np.array([ABSENT if v is None else to_float(v) for v in values], np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("keypoints or bbox is not a list of numbers") from error

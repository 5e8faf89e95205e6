"""Readers of anyone's own points: a CSV with a row a face, or COCO's keypoints JSON."""

import csv
import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lcgcn_jax.data.formats import identify, require_format
from lcgcn_jax.data.records import AnnotationList, BadRecord, FaceAnnotation, image_inside
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import LandmarkScheme

SPLITS = ("train", "validation", "test")
UNSTATED = ""
"""In the place of a split: the rows say theirs, or are of train."""

BOX_COLUMNS = ("x0", "y0", "x1", "y1")
COLUMNS = ("image", "split", "group", "subset", *BOX_COLUMNS, "normalizer")
"""Columns of a CSV beside its points; all but `image` may be missing."""

_HRNET_COLUMNS = ("image_name", "scale", "center_w", "center_h")
_HRNET_UNIT = 200.0  # px, the side of a face's box at scale 1 in HRNet-Facial's lists

_ABSENT = math.nan


@dataclasses.dataclass(frozen=True)
class _Face:
    """A row's content, as it stands there."""

    image: str
    points: Float[np.ndarray, "k 2"]
    visible: Bool[np.ndarray, "k"]
    box: Float[np.ndarray, "4"] | None
    normalizer: float = _ABSENT
    split: str = UNSTATED
    group: str = ""
    subset: str = ""


_Row = tuple[int, str, Callable[[], _Face]]
"""Its number, from 1; what it is called in a report; and how it is read, or ValueError."""


def read_csv(
    src: Path, files: Mapping[str, Path], scheme: LandmarkScheme, *, count_from: int = 0
) -> AnnotationList:
    """Reads CSV files with a row a face.

    The columns, in any order: `image`, a path below `src`; `x_NAME` and `y_NAME` for each landmark, or,
    counting from 0, `x_0` and `y_0`, both empty where a point is missing; and, where wanted, `x0`, `y0`,
    `x1`, `y1`, a face box (or empty); `split`, one of `SPLITS`; `group`, such as a person, which
    validation keeps together (without it, the image); `subset`, a part of the data that is measured for
    itself; and `normalizer`, pixels, where that of the scheme is `given`.

    Lists of HRNet-Facial are read too: `image_name`, `scale`, `center_w`, `center_h`, and `original_0_x`
    and `original_0_y` for each landmark.

    Args:
      src: the folder that the images lie in.
      files: the files, by split. One alone may be under `UNSTATED`.
      scheme: what the landmarks mean.
      count_from: what the files' pixels count from, 0 or 1.

    Raises:
      InputError: a file cannot be read, or its columns are not these.
    """

    def rows(path: Path) -> Iterator[_Row]:
        require_format(path, identify.CSV)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file)
                read = _csv_row_reader(next(reader, []), scheme)
                for cells in reader:
                    if cells:
                        line = reader.line_num
                        yield line, f"{path.name}:{line}", lambda cells=cells: read(cells)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: not a CSV in UTF-8: {error}") from error
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error

    return _read("csv", rows, src, files, scheme, count_from)


def read_coco(
    src: Path, files: Mapping[str, Path], scheme: LandmarkScheme, *, count_from: int = 0
) -> AnnotationList:
    """Reads COCO's keypoints JSON: every annotation is a face.

    `keypoints` are x, y, v for each point, v = 0 where it is missing; `bbox` becomes the face box, and a
    field `normalizer` the normalising distance where the scheme's is `given`. Where the category names
    its keypoints, they are found by the scheme's names, and it may have more of them; if it names none
    of the scheme's, or nothing, they count in order.

    Args:
      src: the folder that the images lie in.
      files: the files, by split. One alone may be under `UNSTATED`, for train.
      scheme: what the landmarks mean.
      count_from: what the files' pixels count from, 0 or 1.

    Raises:
      InputError: a file cannot be read, or is not of this form.
    """

    def rows(path: Path) -> Iterator[_Row]:
        require_format(path, identify.COCO)
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON in UTF-8: {error}") from error
        try:
            images = {image["id"]: image["file_name"] for image in content["images"]}
            annotations = list(content["annotations"])
            orders = {
                category["id"]: _keypoint_order(category, scheme)
                for category in content.get("categories", ())
            }
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path}: not COCO's keypoints: expected images with id and file_name, annotations, "
                "and categories with id"
            ) from error
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        for number, fields in enumerate(annotations, start=1):
            yield (
                number,
                f"{path.name}: annotation {_name_of(fields, number)}",
                lambda fields=fields: _coco_face(fields, images, orders, scheme),
            )

    return _read("coco", rows, src, files, scheme, count_from)


def _read(
    kind: str,
    rows_of: Callable[[Path], Iterable[_Row]],
    src: Path,
    files: Mapping[str, Path],
    scheme: LandmarkScheme,
    count_from: int,
) -> AnnotationList:
    src = src.absolute()
    faces, bad = [], []
    for split, path in files.items():
        for number, called, read in rows_of(path):
            try:
                faces.append(_annotation(src, split, number, read(), count_from))
            except ValueError as error:
                bad.append(BadRecord(called, str(error)))
    return AnnotationList(kind, scheme, (), faces, bad, [])


def _annotation(src: Path, split: str, number: int, face: _Face, count_from: int) -> FaceAnnotation:
    """The face as `builders` take it.

    Raises:
      ValueError: what is wrong with it.
    """
    if split != UNSTATED and face.split not in (UNSTATED, split):
        raise ValueError(f"the split is {face.split!r} in a file of {split!r}")
    split = face.split or split or SPLITS[0]
    if split not in SPLITS:
        raise ValueError(f"the split {split!r} is none of {', '.join(SPLITS)}")
    if not face.visible.any():
        raise ValueError("not one point is there")
    if not np.isfinite(face.points[face.visible]).all():
        raise ValueError("a coordinate is NaN or infinite; a missing point is left empty")
    box = face.box
    if box is not None:
        if not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
            raise ValueError(f"the box {box.tolist()} has no extent")
        box = box - count_from
    # Records hold it as float32, where it must be neither 0 nor infinite.
    least, most = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    if not (math.isnan(face.normalizer) or least <= face.normalizer <= most):
        raise ValueError(f"the normalizer {face.normalizer:g} is not a positive number of pixels")
    image_path = image_inside(src, face.image)
    return FaceAnnotation(
        name=f"{split}/{number:06d}:{face.image}",
        subset=face.subset,
        split=split,
        group=face.group or image_path.relative_to(src).as_posix(),
        image_path=image_path,
        landmarks=np.where(face.visible[:, None], face.points - count_from, np.nan),
        visible=face.visible,
        provided_box=box,
        attributes=(),
        normalizer=face.normalizer,
    )


def _csv_row_reader(
    header: Sequence[str], scheme: LandmarkScheme
) -> Callable[[Sequence[str]], _Face]:
    """What reads a row below a header.

    Raises:
      ValueError: a column is missing, unknown, or there twice.
    """
    header = [name.strip() for name in header]
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise ValueError(f"two columns are named {twice[0]!r}")
    is_hrnet = "image_name" in header
    others = _HRNET_COLUMNS if is_hrnet else COLUMNS
    columns = _point_columns(header, scheme, is_hrnet=is_hrnet)
    known = [*others, *(name for pair in columns for name in pair)]
    if unknown := [name for name in header if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown column {unknown[0]!r}; did you mean {near!r}? What is not for lcgcn has to go"
        )
    has_box = any(name in header for name in BOX_COLUMNS)
    needed = [*(others if is_hrnet else others[:1]), *(name for pair in columns for name in pair)]
    needed += BOX_COLUMNS if has_box else ()
    needed += ["normalizer"] if scheme.normalizer == "given" else []
    if missing := [name for name in needed if name not in header]:
        raise ValueError(f"no column {missing[0]!r}; see lcgcn prepare csv --help")
    if scheme.normalizer != "given":
        _refuse_normalizer(header, scheme)

    def read(cells: Sequence[str]) -> _Face:
        if len(cells) != len(header):
            raise ValueError(f"{len(cells)} fields, expected {len(header)}")
        row = dict(zip(header, map(str.strip, cells), strict=True))
        points = np.array([[_number(row, name) for name in pair] for pair in columns])
        present = np.array([[row[name] != "" for name in pair] for pair in columns])
        if (half := present[:, 0] != present[:, 1]).any():
            x, y = columns[int(half.argmax())]
            raise ValueError(f"one of {x} and {y} is empty")
        if is_hrnet:
            scale, *centre = (_number(row, name) for name in _HRNET_COLUMNS[1:])
            half_side = scale * _HRNET_UNIT / 2
            box = np.concatenate([np.array(centre) - half_side, np.array(centre) + half_side])
            return _Face(row["image_name"], points, present[:, 0], box)
        box = np.array([_number(row, name) for name in BOX_COLUMNS]) if has_box else None
        if has_box and not any(row[name] for name in BOX_COLUMNS):
            box = None
        texts = {name: row[name] for name in ("split", "group", "subset") if name in row}
        if texts.get("split") == "":
            raise ValueError(f"the split is empty; use one of {', '.join(SPLITS)}")
        normalizer = _number(row, "normalizer") if "normalizer" in row else _ABSENT
        return _Face(row["image"], points, present[:, 0], box, normalizer, **texts)

    return read


def _point_columns(
    header: Sequence[str], scheme: LandmarkScheme, *, is_hrnet: bool
) -> list[tuple[str, str]]:
    """The columns of each landmark's x and y: by name or, where not one is, by number."""
    numbers = range(scheme.num_landmarks)
    if is_hrnet:
        return [(f"original_{i}_x", f"original_{i}_y") for i in numbers]
    by_name = [(f"x_{name}", f"y_{name}") for name in scheme.names]
    by_number = [(f"x_{i}", f"y_{i}") for i in numbers]
    named, numbered = (
        sum(name in header for pair in columns for name in pair) for columns in (by_name, by_number)
    )
    return by_number if numbered > named else by_name


def _number(row: Mapping[str, str], column: str) -> float:
    """A cell's number; NaN where it is empty."""
    text = row[column]
    try:
        value = float(text) if text else _ABSENT
    except ValueError:
        raise ValueError(f"{column}: {text!r} is not a number") from None
    if text and not math.isfinite(value):
        raise ValueError(f"{column}: {text!r}; what is missing is left empty")
    return value


def _refuse_normalizer(fields: Iterable[str], scheme: LandmarkScheme) -> None:
    if "normalizer" in fields:
        raise ValueError(
            f"there is a normalizer, but that of {scheme.name} is {scheme.normalizer_text}; say "
            "'normalizer: given' in the scheme"
        )


def _keypoint_order(category: Mapping[str, Any], scheme: LandmarkScheme) -> list[int] | None:
    """Places of the scheme's landmarks among a category's keypoints; None: in order, and all."""
    places = {str(name): i for i, name in enumerate(category.get("keypoints") or ())}
    if not places.keys() & set(scheme.names):
        return None
    if missing := [name for name in scheme.names if name not in places]:
        near = difflib.get_close_matches(missing[0], places, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"category {category.get('name', category['id'])!r} has no keypoint {missing[0]!r}; is it "
            f"{near!r}? Give the landmarks of {scheme.name} the same names"
        )
    return [places[name] for name in scheme.names]


def _name_of(annotation: Any, number: int) -> str:
    has_id = isinstance(annotation, Mapping) and "id" in annotation
    return str(annotation["id"]) if has_id else f"number {number}"


def _coco_face(
    annotation: Any,
    images: Mapping[Any, Any],
    orders: Mapping[Any, list[int] | None],
    scheme: LandmarkScheme,
) -> _Face:
    try:
        image = images.get(annotation["image_id"])
        keypoints = _numbers(annotation["keypoints"])
        order = orders.get(annotation.get("category_id"))
        box = annotation.get("bbox")
        box = None if box is None else _numbers(box)
        normalizer = annotation.get("normalizer")
        normalizer = _ABSENT if normalizer is None else float(normalizer)
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError("not of COCO's form") from error
    if not isinstance(image, str):
        raise ValueError(f"no image with the id {annotation['image_id']!r} and a file_name")
    wanted = scheme.num_landmarks
    if len(keypoints) % 3 or (
        len(keypoints) // 3 != wanted if order is None else len(keypoints) // 3 <= max(order)
    ):
        raise ValueError(f"{len(keypoints)} numbers for the keypoints, expected {3 * wanted}")
    points = keypoints.reshape(-1, 3)[slice(None) if order is None else order]
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        raise ValueError("a keypoint's visibility is none of 0, 1 and 2")
    if box is not None:
        if len(box) != 4:
            raise ValueError("the bbox is not x, y, width and height")
        box = np.concatenate([box[:2], box[:2] + box[2:]])
    if scheme.normalizer != "given":
        _refuse_normalizer(annotation, scheme)
    return _Face(image, points[:, :2], points[:, 2] > 0, box, normalizer)


def _numbers(values: Any) -> Float[np.ndarray, "n"]:
    try:
        return np.array([float(value) for value in values], np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("something else where a list of numbers belongs") from error

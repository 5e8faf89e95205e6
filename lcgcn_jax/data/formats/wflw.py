"""Reader of WFLW's official layout: lists of faces with 98 points, a box and six attributes."""

import codecs
from pathlib import Path

import numpy as np

from lcgcn_jax.data.annotations import (
    AnnotationList,
    BadRecord,
    FaceAnnotation,
    archives,
    image_inside,
    marked_missing,
    note_of_missing_points,
)
from lcgcn_jax.data.formats.parsing import to_float
from lcgcn_jax.data.raw_faces import check_repeated
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import WFLW98

WFLW_ATTRIBUTES = ("pose", "expression", "illumination", "make_up", "occlusion", "blur")

IMAGES = "WFLW_images"
LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test"
SPLITS = ("train", "test")

_NUM_COORDINATES = 2 * WFLW98.num_landmarks
_NUM_FIELDS = _NUM_COORDINATES + 4 + len(WFLW_ATTRIBUTES) + 1


def list_file(src: Path, split: str) -> Path:
    """Path of the annotation list of a split."""
    return src / LISTS / f"list_98pt_rect_attr_{split}.txt"


def read(src: Path) -> AnnotationList:
    """Read the WFLW lists below a folder.

    Args:
      src: the folder with `WFLW_images/` and `WFLW_annotations/`.

    Returns:
      The faces in the order of the lists, named `split/line:image` with lines that count from 1.
      Landmarks count from 0, as in the lists. Points at (0, 0) or (-1, -1) are missing.

    Raises:
      InputError: the lists or the folder of images do not exist.
    """
    lists = {split: path for split in SPLITS if (path := list_file(src, split)).is_file()}
    if not lists or not (src / IMAGES).is_dir():
        packed = archives(src)
        hint = f"; unpack {', '.join(packed)} first" if packed else ""
        raise InputError(f"{src}: no WFLW here; expected {IMAGES}/ and {LISTS}/*.txt{hint}")
    faces, bad = [], []
    for split, path in lists.items():
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        for number, line in enumerate(content.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                faces.append(_read_face(src / IMAGES, split, number, line))
            except ValueError as error:
                bad.append(BadRecord(f"{path.name}:{number}", str(error)))
    absent = [split for split in SPLITS if split not in lists]
    notes = note_of_missing_points(faces)
    return AnnotationList("wflw", WFLW98, WFLW_ATTRIBUTES, faces, bad, absent, notes)


def _read_face(images: Path, split: str, number: int, line: bytes) -> FaceAnnotation:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("the line is not text in UTF-8") from error
    # The image path is the rest of the line, because it may contain spaces.
    fields = text.split(maxsplit=_NUM_FIELDS - 1)
    if len(fields) != _NUM_FIELDS:
        raise ValueError(f"{len(fields)} fields, expected {_NUM_FIELDS}")
    try:
        numbers = np.array(list(map(to_float, fields[:-1])))
    except ValueError as error:
        raise ValueError(f"not {_NUM_FIELDS - 1} numbers and an image path") from error
    if not np.isfinite(numbers).all():
        raise ValueError("a number is NaN or infinite")
    points, box, attributes = np.split(numbers, [_NUM_COORDINATES, _NUM_COORDINATES + 4])
    if (box[2:] <= box[:2]).any():
        raise ValueError(f"the box {box.tolist()} has no extent")
    if not np.isin(attributes, (0, 1)).all():
        raise ValueError("an attribute is neither 0 nor 1")
    points = points.reshape(-1, 2)
    missing = marked_missing(points)
    check_repeated(points[~missing])
    image = fields[-1].strip()
    return FaceAnnotation(
        name=f"{split}/{number:06d}:{image}",
        subset="",
        split=split,
        group=image,
        image_path=image_inside(images, image),
        landmarks=np.where(missing[:, None], np.nan, points),
        visible=~missing,
        provided_box=box,
        attributes=tuple(bool(a) for a in attributes),
    )

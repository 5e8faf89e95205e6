"""Reader of 300W's official layout: an image and a `.pts` file of 68 points for each face."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lcgcn_jax.data.records import AnnotationList, BadRecord, FaceAnnotation, lies_within
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import IBUG68

SUBSETS = {
    "afw": ("afw", "train"),
    "helen/train": ("helen/trainset", "train"),
    "lfpw/train": ("lfpw/trainset", "train"),
    "helen/test": ("helen/testset", "common"),
    "lfpw/test": ("lfpw/testset", "common"),
    "ibug": ("ibug", "challenge"),
    "300W/indoor": ("300W/01_Indoor", "test"),
    "300W/outdoor": ("300W/02_Outdoor", "test"),
}
"""Subset -> (folder, split)."""

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def read(src: Path) -> AnnotationList:
    """Reads every 300W subset below a folder.

    Args:
      src: the folder that holds `afw/`, `helen/trainset/` and so on; some of them are enough.

    Returns:
      The faces in the order of `SUBSETS`, then of file names. Landmarks count from 0 (the files
      count from 1).

    Raises:
      InputError: the folder holds none of the subsets.
    """
    faces, bad, absent = [], [], []
    for subset, (folder, split) in SUBSETS.items():
        points_files = sorted((src / folder).glob("*.pts"))
        if not points_files:
            absent.append(subset)
        images = {
            path.stem: path
            for path in sorted((src / folder).glob("*"))
            if path.suffix.lower() in _IMAGE_SUFFIXES
        }
        for points_file in points_files:
            try:
                faces.append(_read_face(src, points_file, images, subset, split))
            except ValueError as error:
                bad.append(BadRecord(points_file.relative_to(src).as_posix(), str(error)))
    if not faces and not bad:
        folders = ", ".join(f"{folder}/" for folder, _ in SUBSETS.values())
        raise InputError(f"{src}: no 300W subset with .pts files here; expected one of {folders}")
    return AnnotationList("300w", IBUG68, (), faces, bad, absent)


def read_pts(path: Path, num_landmarks: int) -> Float[np.ndarray, "k 2"]:
    """Reads a `.pts` file as it stands (the official ones count from 1).

    Both dialects are read: with a `version` / `n_points` header and braces, and bare lines of x y.

    Raises:
      ValueError: the file cannot be read, ends early, or does not hold `num_landmarks` finite points.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError("is not a text file in UTF-8") from error
    stated = None
    if "{" in text:
        header, _, body = text.partition("{")
        # Without it the last number may have lost digits.
        if "}" not in body:
            raise ValueError("the closing brace is missing: the file is truncated")
        text = body.partition("}")[0]
        stated = re.search(r"n_points:\s*(\d+)", header, re.IGNORECASE)
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines) != num_landmarks:
        raise ValueError(f"{len(lines)} points, expected {num_landmarks}")
    if stated and stated[1].lstrip("0") != str(num_landmarks):
        raise ValueError(f"n_points is {stated[1]}, and there are {num_landmarks} points")
    if wrong := next((line for line in lines if len(line) != 2), None):
        raise ValueError(f"{' '.join(wrong)!r} is not a point: expected x and y on each line")
    try:
        points = np.array(lines, np.float64)
    except ValueError as error:
        raise ValueError("a coordinate is not a number") from error
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is NaN or infinite")
    return points


def photograph_of(stem: str) -> str:
    """The photograph that a file name belongs to.

    AFW, HELEN and IBUG number the faces of one photograph (`134212_1`, `134212_2`, `image_003_1`);
    LFPW and the 300W test sets number the photographs (`image_0001`, `indoor_001`).
    """
    numbered_face = re.fullmatch(r"(.*\d)\s*_\d+\s*", stem)
    return numbered_face[1] if numbered_face else stem


def _require_own_file(src: Path, path: Path) -> None:
    """Refuses pipes and devices, which may never end, and links to files outside of the data.

    Raises:
      ValueError: it is one.
    """
    if not path.is_file():
        raise ValueError(f"{path.name!r} is not a file")
    # A subset's folder may itself be a link to where the data are.
    if not (lies_within(path, src) or lies_within(path, path.parent)):
        raise ValueError(f"{path.name!r} is a link that leaves {path.parent.name}/")


def _read_face(
    src: Path, points_file: Path, images: Mapping[str, Path], subset: str, split: str
) -> FaceAnnotation:
    _require_own_file(src, points_file)
    landmarks = read_pts(points_file, IBUG68.num_landmarks) - 1.0
    image_path = images.get(points_file.stem)
    if image_path is None:
        raise ValueError(f"no image beside it ({', '.join(_IMAGE_SUFFIXES)})")
    _require_own_file(src, image_path)
    name = image_path.relative_to(src)
    return FaceAnnotation(
        name=name.as_posix(),
        subset=subset,
        split=split,
        group=(name.parent / photograph_of(name.stem)).as_posix(),
        image_path=image_path,
        landmarks=landmarks,
        visible=np.ones(len(landmarks), bool),
        provided_box=None,
        attributes=(),
    )

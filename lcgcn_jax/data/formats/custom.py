"""Readers of anyone's own points: a CSV with a row a face, or COCO's keypoints JSON."""

import collections
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from lcgcn_jax.data import raw_faces
from lcgcn_jax.data.annotations import AnnotationList, BadRecord, FaceAnnotation
from lcgcn_jax.data.formats import (
    coco_keypoints,
    csv_tables,
    identify,
    label_studio,
    require_format,
)
from lcgcn_jax.data.formats.image_paths import ImageFinder
from lcgcn_jax.data.raw_faces import SPLITS, UNSTATED, RawFace
from lcgcn_jax.landmarks import LandmarkScheme

_Row = tuple[int, str, Callable[[], RawFace]]
"""Its number, from 1; what it is called in a report; and how it is read, or ValueError."""


def read_csv(
    src: Path, files: Mapping[str, Path], scheme: LandmarkScheme, *, count_from: int = 0
) -> AnnotationList:
    """Reads CSV files with a row a face.

    The separator may be a comma, semicolon, tab or vertical bar. The columns, in any order and without
    regard to case: `image`, a path (see `ImageFinder`); `x_NAME` and `y_NAME` for each landmark, or,
    counting from 0, `x_0` and `y_0`, both empty where a point is missing; and, where wanted, `x0`, `y0`,
    `x1`, `y1`, a face box (or empty); `split`, one of `SPLITS`; `group`, such as a person, which
    validation keeps together (without it, the image); `subset`, a part of the data that is measured for
    itself; and `normalizer`, pixels, where that of the scheme is `given`. Other columns are ignored,
    with a note, unless they look like a misspelled one.

    A point is also missing where its cells are `NA`, `nan`, `null`, `None` or the like, and where it is
    at (0, 0) or (-1, -1).

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

    def rows(path: Path, notes: list[str]) -> Iterable[_Row]:
        require_format(path, identify.CSV)
        for line, read in csv_tables.read_table(path, scheme, notes):
            yield line, f"{path.name}:{line}", read

    return _read("csv", rows, ImageFinder(src), files, scheme, count_from)


def read_coco(
    src: Path, files: Mapping[str, Path], scheme: LandmarkScheme, *, count_from: int = 0
) -> AnnotationList:
    """Reads COCO's keypoints JSON: every annotation with labeled keypoints is a face.

    `keypoints` are x, y, v for each point, v = 0 (or null, (0, 0), (-1, -1)) where it is missing;
    `bbox` becomes the face box, and a field `normalizer` the normalizing distance where the scheme's is
    `given`. Where the category names its keypoints, they are found by the scheme's names, and it may
    have more of them; if it names none of the scheme's, or nothing, they count in order.

    Args:
      src: the folder that the images lie in.
      files: the files, by split. One alone may be under `UNSTATED`, for train.
      scheme: what the landmarks mean.
      count_from: what the files' pixels count from, 0 or 1.

    Raises:
      InputError: a file cannot be read, is not of this form, or contradicts itself.
    """

    def rows(path: Path, notes: list[str]) -> Iterable[_Row]:
        require_format(path, identify.COCO)
        for number, called, read in coco_keypoints.read_annotations(path, scheme, notes):
            yield number, f"{path.name}: annotation {called}", read

    # Label Studio exports COCO, too.
    return _read("coco", rows, label_studio.image_finder(src), files, scheme, count_from)


def _read(
    kind: str,
    rows_of: Callable[[Path, list[str]], Iterable[_Row]],
    finder: ImageFinder,
    files: Mapping[str, Path],
    scheme: LandmarkScheme,
    count_from: int,
) -> AnnotationList:
    faces, bad, notes = [], [], []
    for split, path in files.items():
        stated: list[tuple[int, str, RawFace | ValueError]] = []
        for number, called, read in rows_of(path, notes):
            try:
                stated.append((number, called, read()))
            except ValueError as error:
                stated.append((number, called, error))
        stated = _checked(path, stated, notes)
        images: list[Path] = []
        for number, called, face in stated:
            try:
                if isinstance(face, ValueError):
                    raise face
                faces.append(_annotation(finder, split, number, face, count_from))
                images.append(faces[-1].image_path)
            except ValueError as error:
                bad.append(BadRecord(called, str(error)))
        whole = [face for _, _, face in stated if isinstance(face, RawFace)]
        if note := raw_faces.percent_note(path, whole, images):
            notes.append(note)
    return AnnotationList(kind, scheme, (), faces, bad, [], notes, has_custom_landmarks=True)


def _checked(
    path: Path, stated: list[tuple[int, str, RawFace | ValueError]], notes: list[str]
) -> list[tuple[int, str, RawFace | ValueError]]:
    """The faces of a file with their missing points marked.

    Raises:
      InputError: the coordinates of the file are not pixels, or its boxes have another form.
    """
    raw_faces.check_pixels(path, [face for *_, face in stated if isinstance(face, RawFace)])
    counts = collections.Counter()
    checked: list[tuple[int, str, RawFace | ValueError]] = []
    for number, called, face in stated:
        if isinstance(face, RawFace):
            try:
                face, missing = raw_faces.mark_missing(face)
                counts += missing
            except ValueError as error:
                face = error
        checked.append((number, called, face))
    if counts:
        places = " and ".join(f"{n:,} points at ({x:g}, {y:g})" for (x, y), n in counts.items())
        notes.append(f"{path}: {places} count as missing")
    faces = [face for *_, face in checked if isinstance(face, RawFace)]
    if note := raw_faces.check_boxes(path, faces):
        notes.append(note)
    return checked


def _annotation(
    finder: ImageFinder, split: str, number: int, face: RawFace, count_from: int
) -> FaceAnnotation:
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
    box = face.box_corners
    if box is not None:
        if not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
            raise ValueError(f"the box {box.tolist()} has no extent")
        box = box - count_from
    # Records hold it as float32, where it must be neither 0 nor infinite.
    least, most = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    if not (math.isnan(face.normalizer) or least <= face.normalizer <= most):
        raise ValueError(f"the normalizer {face.normalizer:g} is not a positive number of pixels")
    image_path = _image_path(finder, face.image)
    name = image_path.relative_to(finder.folder).as_posix()
    return FaceAnnotation(
        name=f"{split}/{number:06d}:{name}",
        subset=face.subset,
        split=split,
        group=face.group or name,
        image_path=image_path,
        landmarks=np.where(face.visible[:, None], face.points - count_from, np.nan),
        visible=face.visible,
        provided_box=box,
        attributes=(),
        normalizer=face.normalizer,
        stated_size=face.stated_size,
    )


def _image_path(finder: ImageFinder, text: str) -> Path:
    """Find the image of a path, which must not lead out of the folder of the images.

    Raises:
      ValueError: no image, several images, or a path that leaves the folder.
    """
    slashed = text.replace("\\", "/")
    path = Path(os.path.normpath(finder.folder / slashed))
    # A full path of another machine names no file here.
    if finder.root_of(path) is None and (not slashed.startswith("/") or os.path.isfile(path)):
        raise ValueError(f"the image path {text!r} leaves {finder.folder.name}/")
    return finder.find(text)

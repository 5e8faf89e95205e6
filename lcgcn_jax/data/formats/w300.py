"""Reader of 300W's official layout: an image and a `.pts` file of 68 points per face."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from lcgcn_jax.data.annotations import (
    AnnotationList,
    BadRecord,
    FaceAnnotation,
    archives,
    marked_missing,
    note_of_missing_points,
)
from lcgcn_jax.data.formats.pts import (
    image_of,
    list_folder,
    missing_layout,
    read_pts,
    require_file_inside,
    source_image_of,
)
from lcgcn_jax.data.raw_faces import check_repeated
from lcgcn_jax.errors import count_of
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

LFPW_OVERLAP = ("image_0215", "image_0828", "image_0862")
"""LFPW training images that LFPW's test set also holds, as `image_0066`, `image_0096`, `image_0007`."""

# Relative to the face size. No official point lies that far beyond the top left corner of the image.
_SIGN_FLIP_MARGIN = 0.1


def read(src: Path, *, keep_lfpw_overlap: bool = False) -> AnnotationList:
    """Read every 300W subset below a folder.

    Names of folders and file endings match in any case. Points at (0, 0) or (-1, -1) are treated as missing.

    Args:
      src: the folder with `afw/`, `helen/trainset/` and so on. Subsets may be absent.
      keep_lfpw_overlap: keep the training images in `LFPW_OVERLAP`.

    Returns:
      The faces in the order of `SUBSETS`, then of file names. Landmarks count from 0 (the files
      count from 1).

    Raises:
      InputError: the folder has no subset, or one of them twice.
    """
    faces, bad, absent, notes = [], [], [], []
    overlap, names = [], set()
    for subset, (folder, split) in SUBSETS.items():
        points_files, images = list_folder(src, folder)
        if not points_files:
            absent.append(subset)
        for path in points_files:
            is_overlap = subset == "lfpw/train" and path.stem.lower() in LFPW_OVERLAP
            if is_overlap and not keep_lfpw_overlap:
                overlap.append(path.stem)
                continue
            try:
                face = _read_face(src, path, images, subset, folder, split)
                if face.name in names:
                    raise ValueError(f"{face.name} has another .pts file; remove one")
                names.add(face.name)
                faces.append(face)
            except ValueError as error:
                bad.append(BadRecord(f"{folder}/{path.name}", str(error)))
    if not faces and not bad and not overlap:
        folders = [folder for folder, _ in SUBSETS.values()]
        expected = ", ".join(f"{folder}/" for folder in folders)
        raise missing_layout(
            src, f"no 300W subset with .pts files here; expected one of {expected}", folders
        )
    if overlap:
        notes.append(
            f"{len(overlap)} LFPW training images are left out because LFPW's test set holds the "
            f"same images: {', '.join(overlap)}; --keep-lfpw-overlap keeps them"
        )
    notes += note_of_missing_points(faces)
    if absent and (packed := archives(src)):
        notes.append(f"not read, still packed: {', '.join(packed)}; unpack to add absent subsets")
    return AnnotationList("300w", IBUG68, (), faces, bad, absent, notes)


def _read_face(
    src: Path,
    points_file: Path,
    images: Mapping[str, Sequence[Path]],
    subset: str,
    folder: str,
    split: str,
) -> FaceAnnotation:
    require_file_inside(src, points_file)
    points = read_pts(points_file, IBUG68.num_landmarks)
    visible = _located(points)
    image_path = image_of(points_file, images)
    require_file_inside(src, image_path)
    # Names use the official spelling of the folder, because the choice of validation faces depends on them.
    return FaceAnnotation(
        name=f"{folder}/{image_path.name}",
        subset=subset,
        split=split,
        group=f"{folder}/{source_image_of(image_path.stem)}",
        image_path=image_path,
        landmarks=np.where(visible[:, None], points - 1.0, np.nan),
        visible=visible,
        provided_box=None,
        attributes=(),
    )


def _located(points: Float[np.ndarray, "k 2"]) -> Bool[np.ndarray, "k"]:
    """Which points have a location: (0, 0) and (-1, -1) mark missing points.

    Args:
      points: as in the file, counting from 1. Both markers lie outside the image.

    Raises:
      ValueError: all points are missing, several are at the same place, or points with two negative
        coordinates lie far outside the image.
    """
    missing = marked_missing(points)
    if missing.all():
        raise ValueError("all points are at (0, 0) or (-1, -1), which marks a missing point")
    size = np.ptp(np.abs(points[~missing]), axis=0).max()
    flipped = (points < -_SIGN_FLIP_MARGIN * size).all(axis=1) & ~missing
    if flipped.any():
        x, y = points[flipped][0]
        raise ValueError(
            f"{count_of(int(flipped.sum()), 'point')} with two negative coordinates, such as ({x:g}, {y:g}); "
            "if the file is from MERL-RAV, which marks occluded points so, use 'lcgcn prepare merl-rav'; "
            "if not, the face lies outside its image"
        )
    check_repeated(points[~missing])
    return ~missing

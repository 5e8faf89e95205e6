"""Reader of MERL-RAV's official layout: AFLW faces with 68 points and visibility labels, by pose.

Kumar et al., LUVLi Face Alignment, CVPR 2020. In the `.pts` files, which count from 1, a pair (x, y) is
a visible landmark, (-x, -y) an externally occluded one, and (-1, -1) a self-occluded one without a
location.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int8

from lcgcn_jax.data.annotations import (
    AnnotationList,
    BadRecord,
    FaceAnnotation,
    Visibility,
    archives,
)
from lcgcn_jax.data.formats.w300 import (
    files_in,
    image_of,
    images_by_stem,
    read_pts,
    require_own_file,
    source_image_of,
    subfolder,
)
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import IBUG68

POSES = ("frontal", "left", "lefthalf", "right", "righthalf")
"""Folders of the layout; each is a subset and an attribute."""

SPLITS = {"trainset": "train", "testset": "test"}
"""Folder below that of a pose -> split."""


def read(src: Path, *, has_validation: bool = True) -> AnnotationList:
    """Read the MERL-RAV faces below a folder.

    Args:
      src: the folder that holds `frontal/trainset/`, `frontal/testset/` and so on; some of them are
        enough.
      has_validation: whether a part of the training faces becomes the validation split. Faces whose
        labels are not exact are for training only.

    Returns:
      The faces in the order of `POSES`, then of file names. Landmarks count from 0.

    Raises:
      InputError: the folder holds none of the pose folders.
    """
    faces, bad, absent = [], [], []
    for pose in POSES:
        for part in SPLITS:
            folder = f"{pose}/{part}"
            subset_folder = subfolder(src, folder)
            files = [] if subset_folder is None else files_in(subset_folder)
            points_files = [path for path in files if path.suffix.lower() == ".pts"]
            if not points_files:
                absent.append(folder)
            images = images_by_stem(files)
            for path in points_files:
                try:
                    faces.append(_read_face(src, path, images, pose, part))
                except ValueError as error:
                    bad.append(BadRecord(f"{folder}/{path.name}", str(error)))
    if not faces and not bad:
        raise InputError(f"{src}: {_nothing_here(src)}")
    return AnnotationList(
        "merl-rav", IBUG68, POSES, faces, bad, absent, has_validation=has_validation
    )


def _read_face(
    src: Path, path: Path, images: Mapping[str, Sequence[Path]], pose: str, part: str
) -> FaceAnnotation:
    require_own_file(src, path)
    points, visibility = decode_signs(read_pts(path, IBUG68.num_landmarks))
    # Faces of one image may be numbered: `image00042_1.pts` next to `image00042.jpg`.
    own = images.get(path.stem.lower())
    image_path = image_of(path if own else path.with_stem(source_image_of(path.stem)), images)
    require_own_file(src, image_path)
    return FaceAnnotation(
        name=f"{pose}/{part}/{path.stem}{image_path.suffix}",
        subset=pose,
        split=SPLITS[part],
        # Without the pose: faces of one image have different ones.
        group=source_image_of(path.stem),
        image_path=image_path,
        landmarks=points - 1.0,
        visible=np.all(np.isfinite(points), axis=1),
        provided_box=None,
        attributes=tuple(pose == name for name in POSES),
        visibility=visibility,
    )


def decode_signs(
    points: Float[np.ndarray, "k 2"],
) -> tuple[Float[np.ndarray, "k 2"], Int8[np.ndarray, "k"]]:
    """Separate locations and visibility labels.

    A pair with one negative number is beyond the left or upper border of the image; visible as
    (x, y) or occluded as (-x, -y), whichever is nearer to the other landmarks. A pair with two negative
    numbers always counts as occluded: the files do not distinguish it from a visible landmark
    beyond both borders. A pair (0, 0) has neither a location nor a label.

    Args:
      points: as a file states them.

    Returns:
      The locations, NaN for landmarks without one, and the labels.

    Raises:
      ValueError: no landmark has a location.
    """
    visibility = np.full(len(points), Visibility.VISIBLE, np.int8)
    visibility[(points < 0).all(axis=1)] = Visibility.EXTERNALLY_OCCLUDED
    visibility[(points == -1).all(axis=1)] = Visibility.SELF_OCCLUDED
    visibility[(points == 0).all(axis=1)] = Visibility.UNKNOWN
    is_located = np.isin(visibility, (Visibility.VISIBLE, Visibility.EXTERNALLY_OCCLUDED))
    is_mixed = is_located & (points.prod(axis=1) < 0)
    if not (is_located & ~is_mixed).any():
        raise ValueError("no landmark has a location")
    locations = np.where(is_mixed[:, None], points, np.abs(points))
    center = np.median(locations[is_located & ~is_mixed], axis=0)
    distances = np.linalg.norm(np.stack([points, -points]) - center, axis=-1)
    is_flipped = is_mixed & (distances[1] < distances[0])
    locations[is_flipped] *= -1
    visibility[is_flipped] = Visibility.EXTERNALLY_OCCLUDED
    locations[~is_located] = np.nan
    return locations, visibility


def _nothing_here(src: Path) -> str:
    folders = ", ".join(f"{pose}/" for pose in POSES)
    message = (
        f"no MERL-RAV subset with .pts files here; expected trainset/ or testset/ in {folders}"
    )
    if packed := archives(src):
        return f"{message}; unpack {', '.join(packed)} first"
    for below in [path for path in files_in(src) if path.is_dir()]:
        if any(subfolder(below, pose) for pose in POSES):
            return f"{message}; did you mean --src {below}?"
    return message

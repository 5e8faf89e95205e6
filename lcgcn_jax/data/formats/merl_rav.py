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
    fold_name,
)
from lcgcn_jax.data.formats.pts import (
    image_of,
    list_folder,
    missing_layout,
    read_pts,
    require_file_inside,
    source_image_of,
)
from lcgcn_jax.landmarks import IBUG68

POSES = ("frontal", "left", "lefthalf", "right", "righthalf")
"""Folders of the layout; each is a subset and an attribute."""

SPLITS = {"trainset": "train", "testset": "test"}
"""Folder below that of a pose -> split."""


def read(src: Path, *, has_validation: bool = True) -> AnnotationList:
    """Read the MERL-RAV faces below a folder.

    Args:
      src: the folder with `frontal/trainset/`, `frontal/testset/` and so on. Subsets may be absent.
      has_validation: whether a part of the training faces becomes the validation split. Set it to
        False for faces with inexact labels, which are for training only.

    Returns:
      The faces in the order of `POSES`, then of file names. Landmarks count from 0.

    Raises:
      InputError: the folder has none of the pose folders, or one of them twice.
    """
    faces, bad, absent = [], [], []
    for pose in POSES:
        for part in SPLITS:
            folder = f"{pose}/{part}"
            points_files, images = list_folder(src, folder)
            if not points_files:
                absent.append(folder)
            for path in points_files:
                try:
                    faces.append(_read_face(src, path, images, pose, part))
                except ValueError as error:
                    bad.append(BadRecord(f"{folder}/{path.name}", str(error)))
    if not faces and not bad:
        expected = ", ".join(f"{pose}/" for pose in POSES)
        message = "no MERL-RAV subset with .pts files here; expected trainset/ or testset/ in "
        raise missing_layout(src, message + expected, POSES)
    return AnnotationList(
        "merl-rav", IBUG68, POSES, faces, bad, absent, has_validation=has_validation
    )


def _read_face(
    src: Path, path: Path, images: Mapping[str, Sequence[Path]], pose: str, part: str
) -> FaceAnnotation:
    require_file_inside(src, path)
    points, visibility = decode_signs(read_pts(path, IBUG68.num_landmarks))
    # Faces of one image may be numbered: `image00042_1.pts` next to `image00042.jpg`.
    has_image = images.get(fold_name(path.stem))
    image_path = image_of(path if has_image else path.with_stem(source_image_of(path.stem)), images)
    require_file_inside(src, image_path)
    return FaceAnnotation(
        name=f"{pose}/{part}/{path.stem}{image_path.suffix}",
        subset=pose,
        split=SPLITS[part],
        # Without the pose: faces of one image may have different poses.
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

    A pair with one negative number lies beyond the left or upper border of the image. It is a visible
    landmark at (x, y) or an occluded one at (-x, -y), whichever is nearer to the other landmarks. A pair
    with two negative numbers always counts as occluded: the files do not distinguish it from a visible
    landmark beyond both borders. A pair (0, 0) has neither a location nor a label.

    Args:
      points: as in the file.

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

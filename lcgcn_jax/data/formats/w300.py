"""Reader of 300W's official layout: an image and a `.pts` file of 68 points for each face."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from lcgcn_jax.data.annotations import (
    AnnotationList,
    BadRecord,
    FaceAnnotation,
    archives,
    is_system_file,
    lies_within,
    marked_missing,
    note_of_missing_points,
)
from lcgcn_jax.errors import InputError
from lcgcn_jax.image_io import IMAGE_SUFFIXES
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

# Of the face size. No official annotation is that far beyond the image's top left corner.
_SIGN_FLIP_MARGIN = 0.1


def read(src: Path, *, keep_lfpw_overlap: bool = False) -> AnnotationList:
    """Reads every 300W subset below a folder.

    Names of folders and endings of files match in upper and lower case. A point at (0, 0) or (-1, -1)
    counts as missing.

    Args:
      src: the folder that holds `afw/`, `helen/trainset/` and so on; some of them are enough.
      keep_lfpw_overlap: whether to keep the training images in `LFPW_OVERLAP`.

    Returns:
      The faces in the order of `SUBSETS`, then of file names. Landmarks count from 0 (the files
      count from 1).

    Raises:
      InputError: the folder holds none of the subsets, or one of them twice.
    """
    faces, bad, absent, notes = [], [], [], []
    left_out, names = [], set()
    for subset, (folder, split) in SUBSETS.items():
        found = subfolder(src, folder)
        files = [] if found is None else files_in(found)
        points_files = [path for path in files if path.suffix.lower() == ".pts"]
        if not points_files:
            absent.append(subset)
        images = images_by_stem(files)
        for points_file in points_files:
            if (
                subset == "lfpw/train"
                and points_file.stem.lower() in LFPW_OVERLAP
                and not keep_lfpw_overlap
            ):
                left_out.append(points_file.stem)
                continue
            try:
                face = _read_face(src, points_file, images, subset, folder, split)
                if face.name in names:
                    raise ValueError(f"{face.name} has another .pts file; remove one")
                names.add(face.name)
                faces.append(face)
            except ValueError as error:
                bad.append(BadRecord(f"{folder}/{points_file.name}", str(error)))
    if not faces and not bad and not left_out:
        raise InputError(f"{src}: {_nothing_here(src)}")
    if left_out:
        notes.append(
            f"{len(left_out)} LFPW training images are left out because LFPW's test set holds the "
            f"same images: {', '.join(left_out)}; --keep-lfpw-overlap keeps them"
        )
    notes += note_of_missing_points(faces)
    if absent and (packed := archives(src)):
        notes.append(f"not read, still packed: {', '.join(packed)}; unpack to add absent subsets")
    return AnnotationList("300w", IBUG68, (), faces, bad, absent, notes)


def read_pts(path: Path, num_landmarks: int) -> Float[np.ndarray, "k 2"]:
    """Reads a `.pts` file without changing its numbers (the official files count from 1).

    Two dialects are read: with a `version` / `n_points` header and braces, and bare lines of x y.
    Between x and y there may be spaces, a tab, a semicolon or a comma; decimal commas are read.

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
        stated = re.search(r"n_points\s*:\s*(\d+)", header, re.IGNORECASE)
    lines = [_split_point(line) for line in text.splitlines() if line.strip()]
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


def _split_point(line: str) -> list[str]:
    """The numbers of a line, with decimal points."""
    if "," not in line and ";" not in line:
        return line.split()
    if re.fullmatch(r"[^\s;,]+,[^\s;,]+", line.strip()):
        return line.strip().split(",")  # a comma between x and y
    if re.search(r",(?=[\s;])", line):
        return re.split(r"[\s;]*,[\s;]+", line.strip())  # "x, y"
    numbers = re.split(r"[\s;]+", line.strip())
    if "." in line:  # a comma next to decimal points is an error and is not converted
        return numbers
    return [number.replace(",", ".") for number in numbers]


def located(points: Float[np.ndarray, "k 2"]) -> Bool[np.ndarray, "k"]:
    """Which points of a `.pts` file have a location: (0, 0) and (-1, -1) mark missing points.

    Args:
      points: as the file states them, counting from 1. Both places lie outside of the image then.

    Raises:
      ValueError: points with two negative coordinates lie far outside of the image.
    """
    missing = marked_missing(points)
    if missing.all():
        raise ValueError("all points are at (0, 0) or (-1, -1), which marks a missing point")
    size = np.ptp(np.abs(points[~missing]), axis=0).max()
    flipped = (points < -_SIGN_FLIP_MARGIN * size).all(axis=1) & ~missing
    if flipped.any():
        x, y = points[flipped][0]
        raise ValueError(
            f"{flipped.sum()} points have two negative coordinates, such as ({x:g}, {y:g}); MERL-RAV "
            "marks occluded points so: read its files with 'lcgcn prepare merl-rav'"
        )
    return ~missing


def source_image_of(stem: str) -> str:
    """The image that a file name belongs to.

    AFW, HELEN and IBUG number the faces of one image (`134212_1`, `134212_2`, `image_003_1`);
    LFPW and the 300W test sets number the images (`image_0001`, `indoor_001`).
    """
    numbered_face = re.fullmatch(r"(.*\d)\s*_\d+\s*", stem)
    return numbered_face[1] if numbered_face else stem


def require_own_file(src: Path, path: Path) -> None:
    """Refuses pipes and devices, which may never end, and links to files outside of the data.

    Raises:
      ValueError: it is one.
    """
    if not path.is_file():
        raise ValueError(f"{path.name!r} is not a file")
    # A subset's folder may itself be a link to where the data are.
    if not (lies_within(path, src) or lies_within(path, path.parent)):
        raise ValueError(f"{path.name!r} is a link that leaves {path.parent.name}/")


def subfolder(src: Path, folder: str) -> Path | None:
    """A folder below `src`, whatever the case of its name; None: it does not exist.

    Raises:
      InputError: two folders have this name, in different cases.
    """
    found = src
    for part in folder.split("/"):
        matches = [
            path
            for path in sorted(found.glob("*"))
            if path.name.lower() == part.lower() and path.is_dir()
        ]
        if not matches:
            return None
        if len(matches) > 1:
            raise InputError(
                f"{found}: both {matches[0].name}/ and {matches[1].name}/ exist; merge them or "
                "remove one"
            )
        found = matches[0]
    return found


def files_in(folder: Path) -> list[Path]:
    """The entries of a folder in order, without those of file managers."""
    return [path for path in sorted(folder.glob("*")) if not is_system_file(path.name)]


def images_by_stem(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Files that are not `.pts`, by their name without the ending, in lower case."""
    images = defaultdict(list)
    for path in files:
        if path.suffix.lower() != ".pts":
            images[path.stem.lower()].append(path)
    return images


def _nothing_here(src: Path) -> str:
    """Why no subset is found in a folder, and what to do."""
    folders = ", ".join(f"{folder}/" for folder, _ in SUBSETS.values())
    message = f"no 300W subset with .pts files here; expected one of {folders}"
    if packed := archives(src):
        return f"{message}; unpack {', '.join(packed)} first"
    if any(path.suffix.lower() == ".pts" for path in files_in(src)):
        return f"{message}; these .pts files have to lie in the folder of their subset"
    for below in [path for path in files_in(src) if path.is_dir()]:
        if any(subfolder(below, folder) for folder, _ in SUBSETS.values()):
            return f"{message}; did you mean --src {below}?"
    return message


def image_of(points_file: Path, images: Mapping[str, Sequence[Path]]) -> Path:
    """The image next to a `.pts` file.

    Raises:
      ValueError: there is none, or more than one.
    """
    candidates = images.get(points_file.stem.lower(), ())
    matches = [path for path in candidates if path.suffix.lower() in IMAGE_SUFFIXES]
    # On a case-sensitive file system, names may differ only in case.
    matches = [path for path in matches if path.stem == points_file.stem] or matches
    if not matches:
        others = [path.name for path in candidates if path.suffix]
        hint = f"; {others[0]} is not one: convert it to JPEG or PNG" if others else ""
        raise ValueError(f"no image next to it ({', '.join(IMAGE_SUFFIXES)}){hint}")
    if len(matches) > 1:
        first, second, *_ = (path.name for path in matches)
        raise ValueError(f"two images next to it, {first} and {second}; remove one")
    return matches[0]


def _read_face(
    src: Path,
    points_file: Path,
    images: Mapping[str, Sequence[Path]],
    subset: str,
    folder: str,
    split: str,
) -> FaceAnnotation:
    require_own_file(src, points_file)
    points = read_pts(points_file, IBUG68.num_landmarks)
    visible = located(points)
    image_path = image_of(points_file, images)
    require_own_file(src, image_path)
    # With the official folder's name: the choice of validation faces depends on it.
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

"""`.pts` files of 300W and MERL-RAV, and the folders that hold them next to their images.

The official files count pixels from 1.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lcgcn_jax.data.annotations import archives, fold_name, is_system_file, lies_within
from lcgcn_jax.data.formats.parsing import to_float
from lcgcn_jax.errors import InputError, count_of
from lcgcn_jax.image_io import IMAGE_SUFFIXES


def read_pts(path: Path, num_landmarks: int) -> Float[np.ndarray, "k 2"]:
    """Read the points of a `.pts` file without changing the numbers.

    The file has a header (`version`, `n_points`) and braces, or only lines of x and y. The numbers of a
    line are separated by spaces, tabs, commas or semicolons. Decimal commas are accepted.

    Raises:
      ValueError: the file cannot be read, is truncated, or does not hold `num_landmarks` finite points.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError("is not a text file in UTF-8") from error
    stated_count = None
    if "{" in text:
        header, _, body = text.partition("{")
        # In a truncated file, the last number may have lost digits.
        if "}" not in body:
            raise ValueError("the closing brace is missing: the file is truncated")
        text = body.partition("}")[0]
        stated_count = re.search(r"n_points\s*:\s*(\d+)", header, re.IGNORECASE)
    lines = [_split_line(line) for line in text.splitlines() if line.strip()]
    if len(lines) != num_landmarks:
        raise ValueError(f"{count_of(len(lines), 'point')}, expected {num_landmarks}")
    if stated_count and stated_count[1].lstrip("0") != str(num_landmarks):
        raise ValueError(
            f"n_points is {stated_count[1][:20]}, but the file has {count_of(len(lines), 'line')}"
        )
    if malformed := next((line for line in lines if len(line) != 2), None):
        raise ValueError(f"{' '.join(malformed)!r} is not a point: expected x and y on each line")
    try:
        points = np.array([list(map(to_float, line)) for line in lines], np.float64)
    except ValueError as error:
        raise ValueError("a coordinate is not a number") from error
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is NaN or infinite")
    return points


def _split_line(line: str) -> list[str]:
    """Split a line into numbers with decimal points."""
    line = line.strip()
    if "," not in line and ";" not in line:
        return line.split()
    if re.fullmatch(r"[^\s;,]+,[^\s;,]+", line):
        return line.split(",")
    if re.search(r",(?=[\s;])", line):
        return re.split(r"[\s;]*,[\s;]+", line)
    numbers = re.split(r"[\s;]+", line)
    if "." in line:  # A comma next to decimal points is an error and is not converted.
        return numbers
    return [number.replace(",", ".") for number in numbers]


def format_pts(landmarks: Float[np.ndarray, "k 2"], *, header: bool = True) -> str:
    """Format landmarks that count from 0 as a `.pts` file, which counts from 1.

    Args:
      landmarks: pixels.
      header: write the official header and braces; without it, only lines of x and y.
    """
    lines = [f"{x:.6f} {y:.6f}" for x, y in landmarks + 1.0]
    if header:
        lines = ["version: 1", f"n_points: {len(lines)}", "{", *lines, "}"]
    return "\n".join(lines) + "\n"


def list_folder(src: Path, folder: str) -> tuple[list[Path], dict[str, list[Path]]]:
    """List the `.pts` files of a subset, and its other files by `fold_name` of their stem.

    Both are empty if the folder does not exist. Names of folders and file endings match in any case.

    Raises:
      InputError: two folders have this name, in different cases.
    """
    subset = subfolder(src, folder)
    points_files, images = [], defaultdict(list)
    for path in [] if subset is None else _files_in(subset):
        if path.suffix.lower() == ".pts":
            points_files.append(path)
        else:
            images[fold_name(path.stem)].append(path)
    return points_files, images


def subfolder(src: Path, folder: str) -> Path | None:
    """The folder below `src` with this name in any case, or None if it does not exist.

    Raises:
      InputError: two folders have this name, in different cases.
    """
    path = src
    for part in folder.split("/"):
        matches = [
            child
            for child in sorted(path.iterdir())
            if child.name.lower() == part.lower() and child.is_dir()
        ]
        if not matches:
            return None
        if len(matches) > 1:
            raise InputError(
                f"{path}: both {matches[0].name}/ and {matches[1].name}/ exist; merge them or remove one"
            )
        path = matches[0]
    return path


def missing_layout(src: Path, message: str, folders: Iterable[str]) -> InputError:
    """Error for a folder without any subset, with the likely fix.

    Args:
      folders: the folders of the layout.
    """
    message = f"{src}: {message}"
    if packed := archives(src):
        return InputError(f"{message}; unpack {', '.join(packed)} first")
    files = _files_in(src)
    if any(path.suffix.lower() == ".pts" for path in files):
        return InputError(f"{message}; move these .pts files into the folder of their subset")
    for child in filter(Path.is_dir, files):
        if any(subfolder(child, folder) for folder in folders):
            return InputError(f"{message}; did you mean --src {child}?")
    return InputError(message)


def _files_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if not is_system_file(path.name)]


def image_of(points_file: Path, images: Mapping[str, Sequence[Path]]) -> Path:
    """Find the image of a `.pts` file, which has the same stem.

    Args:
      points_file: the file; it need not exist.
      images: as returned by `list_folder`.

    Raises:
      ValueError: no image, or more than one.
    """
    candidates = images.get(fold_name(points_file.stem), ())
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


def source_image_of(stem: str) -> str:
    """Name of the image that a face belongs to, from the stem of its files.

    AFW, HELEN, IBUG and MERL-RAV number the faces of an image (`134212_1`, `134212_2`, `image_003_1`).
    LFPW and the 300W test sets number the images (`image_0001`, `indoor_001`).
    """
    numbered_face = re.fullmatch(r"(.*\d)\s*_\d+\s*", stem)
    return numbered_face[1] if numbered_face else stem


def require_file_inside(src: Path, path: Path) -> None:
    """Reject pipes and devices, which may never end, and links to files outside the dataset.

    Raises:
      ValueError: the path is one of these.
    """
    if not path.is_file():
        raise ValueError(f"{path.name!r} is not a file")
    # The folder of a subset may itself be a link.
    if not (lies_within(path, src) or lies_within(path, path.parent)):
        raise ValueError(f"{path.name!r} is a link that leaves {path.parent.name}/")

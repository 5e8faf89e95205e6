"""Readers of custom landmarks: CSV files with one row per face, and COCO keypoints JSON."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from lcgcn_jax.data.annotations import AnnotationList
from lcgcn_jax.data.formats import (
    AnnotationPaths,
    coco_keypoints,
    csv_tables,
    each_file,
    identify,
    label_studio,
    require_format,
)
from lcgcn_jax.data.formats.image_paths import ImageFinder
from lcgcn_jax.data.raw_faces import SPLITS, UNSTATED, Entry, add_faces
from lcgcn_jax.landmarks import LandmarkScheme

__all__ = ["SPLITS", "UNSTATED", "read_coco", "read_csv"]


def read_csv(
    src: Path, files: AnnotationPaths, scheme: LandmarkScheme, *, count_from: int | float = 0
) -> AnnotationList:
    """Read CSV files with one row per face.

    The separator is a comma, semicolon, tab or vertical bar. Columns, in any order and case:

    - `image`: path of the image (see `ImageFinder`).
    - `x_NAME` and `y_NAME` for each landmark, or `x_0` and `y_0`, counting from 0.
    - `x0`, `y0`, `x1`, `y1` (optional): face box; the cells may be empty.
    - `split` (optional): one of `SPLITS`.
    - `group` (optional): for example the person; validation keeps a group together. Default: the image.
    - `subset` (optional): a part of the dataset that is evaluated separately.
    - `normalizer`: pixels; required if the normalizer of the scheme is `given`.

    Other columns are ignored with a note, unless they look like a misspelled one. A point is missing if
    its cells are empty, `NA`, `nan`, `null`, `None` or similar, or if it is at (0, 0) or (-1, -1).

    Lists of HRNet-Facial (`image_name`, `scale`, `center_w`, `center_h`, `original_0_x`, `original_0_y`
    and so on) are also read.

    Args:
      src: the folder of the images.
      files: the files, by split, or under `UNSTATED`.
      count_from: coordinate of the center of the first pixel: 0, 1, or 0.5 if its corner is at 0.

    Raises:
      InputError: a file cannot be read, or its columns do not fit.
    """

    def entries(path: Path, notes: list[str]) -> Iterable[Entry]:
        require_format(path, identify.CSV)
        return csv_tables.read_table(path, scheme, notes)

    return _read("csv", entries, ImageFinder(src), files, scheme, count_from)


def read_coco(
    src: Path, files: AnnotationPaths, scheme: LandmarkScheme, *, count_from: int | float = 0
) -> AnnotationList:
    """Read COCO keypoints JSON: every annotation with labeled keypoints is a face.

    `keypoints` are x, y, v per point, with v = 0 (or null, (0, 0), (-1, -1)) for a missing one. `bbox` is
    the face box. A field `normalizer` is the normalizing distance if that of the scheme is `given`.
    Keypoints are matched by the names in their category, which may have more of them. If the category has
    none of the scheme's names, keypoints count in order.

    The arguments are those of `read_csv`.

    Raises:
      InputError: a file cannot be read, is not COCO keypoints JSON, or contradicts itself.
    """

    def entries(path: Path, notes: list[str]) -> Iterable[Entry]:
        require_format(path, identify.COCO)
        return coco_keypoints.read_annotations(path, scheme, notes)

    # COCO files are also exported by Label Studio, which changes the names of images.
    return _read("coco", entries, label_studio.image_finder(src), files, scheme, count_from)


def _read(
    kind: str,
    read_entries: Callable[[Path, list[str]], Iterable[Entry]],
    finder: ImageFinder,
    files: AnnotationPaths,
    scheme: LandmarkScheme,
    count_from: int | float,
) -> AnnotationList:
    annotations = AnnotationList(kind, scheme, (), [], [], [], has_custom_landmarks=True)

    def find_image(text: str) -> Path:
        """Find an image, and raise ValueError for a path that leaves the folder of the images."""
        slashed = text.replace("\\", "/")
        path = Path(os.path.normpath(finder.folder / slashed))
        # An absolute path of another machine is no file here.
        if finder.root_of(path) is None and (not slashed.startswith("/") or os.path.isfile(path)):
            raise ValueError(f"the image path {text!r} leaves {finder.folder.name}/")
        return finder.find(text)

    for split, path in each_file(files):
        entries = read_entries(path, annotations.notes)
        add_faces(
            annotations, path, split, entries, find_image, finder.folder, count_from=count_from
        )
    annotations.notes.extend(finder.notes())
    return annotations

"""Preparation of datasets: from official layouts and annotation files to records."""

import collections
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcgcn_jax.data import records
from lcgcn_jax.data.annotations import AnnotationList
from lcgcn_jax.data.formats import (
    custom,
    cvat,
    dlib,
    each_file,
    label_studio,
    labelme,
    merl_rav,
    w300,
    wflw,
)
from lcgcn_jax.data.records import PrepareReport
from lcgcn_jax.errors import InputError, count_of, printable
from lcgcn_jax.landmarks import get_scheme

OFFICIAL_READERS = {"wflw": wflw.read, "300w": w300.read, "merl-rav": merl_rav.read}
"""Readers of the layouts in which datasets are distributed."""

_MAX_BAD = 20  # unusable records in the printed report


@dataclasses.dataclass(frozen=True)
class CustomFormat:
    """A file format of custom landmarks: its reader, and texts for the help."""

    title: str
    read: Callable[..., AnnotationList]
    description: str
    example: str  # of `--annotations`


CUSTOM_FORMATS = {
    "csv": CustomFormat(
        "CSV",
        custom.read_csv,
        """\
Read a CSV file with a header and one row per face. Columns, in any order:

  image           path of the image below --src
  x_NAME, y_NAME  for each landmark of the scheme (or x_0, y_0, counting from 0);
                  missing: both empty, NA, nan or None, or both 0, or both -1
  x0, y0, x1, y1  optional: face box, tight around the face
  split           optional: train, validation or test
  group           optional: such as the person; validation keeps groups together
  subset          optional: part of the data that eval measures separately
  normalizer      pixels by which NME divides, if the scheme has
                  `normalizer: given`

The separator is a comma, semicolon, tab or vertical bar. Column names may be in
any case, and have the form NAME_x. Other columns are ignored. Coordinates are
pixels. Paths may contain backslashes, or be absolute paths of files below --src.

Lists of HRNet-Facial (image_name, scale, center_w, center_h, original_0_x, ...)
are also supported.""",
        "points.csv",
    ),
    "coco": CustomFormat(
        "COCO keypoints JSON",
        custom.read_coco,
        """\
Read COCO keypoints JSON; each annotation with labeled keypoints is a face. A
keypoint of visibility 0, or at (0, 0) or (-1, -1), is missing; 1 is occluded and
2 visible. bbox (x, y, width, height) is the face box. The field `normalizer` is
the distance by which NME divides, if the scheme has `normalizer: given`.
Keypoints are matched by the names of their category, or by order. Crowds are
skipped, and so are categories other than the one that names the landmarks.""",
        "train=train.json test=test.json",
    ),
    "cvat": CustomFormat(
        "CVAT XML",
        cvat.read,
        """\
Read the export "CVAT for images 1.1". A face is a skeleton, or the points of an
image or group_id, each labeled with the name of a landmark, or one points shape
with all landmarks in order. A point that is `outside` is missing. The subsets
Train, Validation and Test of a project are splits.""",
        "annotations.xml",
    ),
    "dlib": CustomFormat(
        "dlib XML (imglab)",
        dlib.read,
        """\
Read the XML of dlib's imglab; each box with parts is a face. Parts are named
after the landmarks of the scheme, or numbered (00 to 67). Boxes with ignore='1'
and boxes without parts are skipped.""",
        "train=train.xml test=test.xml",
    ),
    "label-studio": CustomFormat(
        "Label Studio JSON",
        label_studio.read,
        """\
Read the exports JSON and JSON-MIN with key points (KeyPointLabels). The key
points of a task are one face. For several faces, each is a box
(RectangleLabels) with its key points as children or inside. The file of 'lcgcn
predict --format label-studio' is read as well, with a note.""",
        "project.json",
    ),
    "labelme": CustomFormat(
        "LabelMe JSON files",
        labelme.read,
        """\
Read LabelMe JSON, one file per image; FILE can also be a folder of them, or a
quoted pattern. The point shapes of a file are one face, or one face per
group_id; a rectangle of the same group is the face box. The flags of an image
are attributes of its faces.""",
        "train=labels_train/ test=labels_test/",
    ),
}
"""Formats of custom landmarks."""


def prepare(
    layout: str,
    src: Path,
    out: Path,
    *,
    overwrite: bool = False,
    stored_pixels: bool = False,
    **options: Any,
) -> PrepareReport:
    """Write the records of a dataset (`records.prepare`).

    Args:
      layout: one of `OFFICIAL_READERS` or `CUSTOM_FORMATS`.
      src: folder of the official files, or of the images.
      overwrite: whether a dataset in this folder may be replaced.
      stored_pixels: whether the annotations refer to the images without their EXIF orientation.
      **options: options of an official reader; for custom landmarks `annotations`
        (`parse_annotations`), `scheme` (name or file) and `count_from` (0, 0.5 or 1).

    Raises:
      InputError: the data cannot be used; nothing was written.
    """
    if not src.is_dir():
        raise InputError(f"{src}: no such folder; --src is the folder of the faces")
    _check_outside(src, out, "--src")
    if layout in OFFICIAL_READERS:
        faces = OFFICIAL_READERS[layout](src, **options)
    else:
        faces = _read_custom(layout, src, out, **options)
    return records.prepare(faces, out, overwrite=overwrite, stored_pixels=stored_pixels)


def _read_custom(
    layout: str,
    src: Path,
    out: Path,
    *,
    annotations: Sequence[str],
    scheme: str,
    count_from: int | float,
) -> AnnotationList:
    landmark_scheme = get_scheme(scheme)
    files = parse_annotations(annotations)
    for _, path in each_file(files):
        _check_outside(path, out, "--annotations")
    faces = CUSTOM_FORMATS[layout].read(src, files, landmark_scheme, count_from=count_from)
    if not faces.faces and not faces.bad:
        names = ", ".join(dict.fromkeys(str(path) for _, path in each_file(files)))
        raise InputError(
            f"{names}: no faces with landmarks; check that the annotations are complete"
        )
    if landmark_scheme.mirror == tuple(range(landmark_scheme.num_landmarks)):
        faces.notes.append(
            f"{landmark_scheme.name} has no mirror pairs, so left and right points keep their names in "
            "mirrored faces; add `mirror_pairs` to the scheme, or train with "
            "--config.data.augment.mirror=0"
        )
    return faces


def parse_annotations(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Parse `FILE` (of the split `custom.UNSTATED`) or `SPLIT=FILE`, once for each file.

    Raises:
      InputError: some files have a split and others not, or a file occurs twice.
    """
    files: dict[str, list[Path]] = collections.defaultdict(list)
    for text in texts:
        split, equals, path = text.partition("=")
        if not (equals and split in custom.SPLITS):
            split, path = custom.UNSTATED, text
        files[split].append(Path(path))
    if custom.UNSTATED in files and len(files) > 1:
        raise InputError(
            f"--annotations {' '.join(texts)}: some files have a split and others not; give "
            f"{' '.join(f'{name}=FILE' for name in custom.SPLITS)}"
        )
    counts = collections.Counter(path for paths in files.values() for path in paths)
    if repeated := [path for path, count in counts.items() if count > 1]:
        raise InputError(f"--annotations {repeated[0]}: given more than once; give each file once")
    return dict(files)


def _check_outside(source: Path, out: Path, option: str) -> None:
    # Replacing `out` would delete a source in it.
    if Path(os.path.realpath(source)).is_relative_to(os.path.realpath(out)):
        raise InputError(f"{out}: {option} lies within it; choose another --out")


def format_report(report: PrepareReport, out: Path) -> str:
    """Format the outcome of a preparation as text."""
    subsets = {name: count for name, count in report.subsets.items() if name}
    total = f"{report.kind}: {count_of(sum(report.num_faces.values()), 'face')}"
    lines = [f"{total}: {_format_counts(subsets)}" if subsets else total]
    if report.absent:
        lines.append(f"absent: {', '.join(report.absent)}")
    lines += [f"note: {printable(note)}" for note in report.notes]
    lines += [f"bad: {bad}" for bad in report.bad[:_MAX_BAD]]
    if len(report.bad) > _MAX_BAD:
        lines.append(f"... and {len(report.bad) - _MAX_BAD:,} more in {records.REPORT}")
    return "\n".join([*lines, f"{out}: {_format_counts(report.num_faces)}"])


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())

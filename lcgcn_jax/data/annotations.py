"""Annotated faces, as the readers of annotation formats return them before any image is decoded."""

import dataclasses
import enum
import math
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Bool, Float, Int8

from lcgcn_jax.errors import count_of, printable
from lcgcn_jax.landmarks import LandmarkScheme

_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.gz|rar|7z)(\.\d+)?$", re.IGNORECASE)
_SYSTEM_FILES = frozenset({".ds_store", "__macosx", "thumbs.db", "desktop.ini"})

SPLITS = ("train", "validation", "common", "challenge", "test")
"""Splits of a prepared dataset, in their order."""

MISSING_POINTS = ((0.0, 0.0), (-1.0, -1.0))
"""Coordinates that tools write for a missing point."""


class Visibility(enum.IntEnum):
    """Visibility label of a landmark."""

    UNKNOWN = -1
    VISIBLE = 0
    EXTERNALLY_OCCLUDED = 1  # by another object; its location is annotated
    SELF_OCCLUDED = 2  # by the face itself, in MERL-RAV without a location


@dataclasses.dataclass(frozen=True)
class FaceAnnotation:
    """One annotated face.

    Attributes:
      name: unique and stable name, relative to the dataset folder, such as `helen/trainset/100032540_1.jpg`.
      subset: part of the dataset, such as `helen/train`; `""` without parts.
      split: one of `SPLITS`. If no face of a list is in validation, a part of train becomes validation.
      group: the image or person, as far as file names identify it; validation keeps a group together.
      image_path: image file.
      landmarks: pixels of the image, counting from 0; NaN if not annotated.
      visible: which landmarks are annotated.
      provided_box: the face box of the dataset, or None.
      attributes: values of the list's `attribute_names`.
      normalizer: normalizing distance of NME in pixels, if the dataset provides it; else NaN.
      stated_size: width and height of the image as stated in the annotation file, or None.
      visibility: value of `Visibility` per landmark, or None if all are unknown. `visible` is about the
        location of a landmark; `visibility` is about whether it can be seen.
    """

    name: str
    subset: str
    split: str
    group: str
    image_path: Path
    landmarks: Float[np.ndarray, "k 2"]
    visible: Bool[np.ndarray, "k"]
    provided_box: Float[np.ndarray, "4"] | None
    attributes: tuple[bool, ...]
    normalizer: float = math.nan
    stated_size: tuple[int, int] | None = None
    visibility: Int8[np.ndarray, "k"] | None = None

    def __post_init__(self):
        """Reject names that cannot be encoded in UTF-8, the encoding of records.

        Raises:
          ValueError: a file name is in another encoding.
        """
        for text in (self.name, self.subset, self.group):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(f"{text!r} is not a name in UTF-8") from error


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """Record that cannot be used, and the reason; non-printable characters are escaped."""

    name: str
    reason: str

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, printable(getattr(self, field.name)))

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class AnnotationList:
    """Annotated faces of a dataset.

    Attributes:
      kind: layout of the source, such as `300w`.
      scheme: landmarks of the faces.
      attribute_names: names of the attributes of faces.
      faces: the usable faces, in a fixed order.
      bad: the records that cannot be used.
      absent: subsets of the layout that the folder does not have.
      notes: one-line notes for the user, printed by prepare.
      has_validation: whether a part of train becomes the validation split if no face is in validation.
      has_custom_landmarks: whether the scheme is defined by the user, so that prepare checks its mirror
        pairs against the faces.
    """

    kind: str
    scheme: LandmarkScheme
    attribute_names: tuple[str, ...]
    faces: list[FaceAnnotation]
    bad: list[BadRecord]
    absent: list[str]
    notes: list[str] = dataclasses.field(default_factory=list)
    has_validation: bool = True
    has_custom_landmarks: bool = False


def image_inside(images: Path, image: str) -> Path:
    """Path of an image in a folder; an untrusted list cannot read files outside of it.

    Raises:
      ValueError: the image does not exist, or lies outside.
    """
    relative = PurePosixPath(image)
    path = images / relative
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"the image path {image!r} leaves {images.name}/")
    if not os.path.isfile(path):  # unlike Path.is_file, it accepts any text
        raise ValueError(f"no image {image!r} in {images.name}/")
    if not lies_within(path, images):
        raise ValueError(f"the image {image!r} is a link that leaves {images.name}/")
    return path


def lies_within(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder or below it after links are resolved."""
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)


def archives(folder: Path) -> list[str]:
    """Names of the archives (.zip, .tar.gz, .7z, ...) in a folder."""
    return sorted(
        path.name
        for path in folder.glob("*")
        if _ARCHIVE.search(path.name) and not is_system_file(path.name) and path.is_file()
    )


def marked_missing(points: Float[np.ndarray, "k 2"]) -> Bool[np.ndarray, "k"]:
    """Which points are at exactly one of `MISSING_POINTS`.

    Args:
      points: as in the annotation file.
    """
    return np.logical_or.reduce([(points == marker).all(axis=1) for marker in MISSING_POINTS])


def note_of_missing_points(faces: Iterable[FaceAnnotation]) -> list[str]:
    """Note with the number of missing points, for layouts that mark them as in `marked_missing`."""
    partial = [face for face in faces if not face.visible.all()]
    if not partial:
        return []
    count = sum(int((~face.visible).sum()) for face in partial)
    return [
        f"{count_of(count, 'point')} at (0, 0) or (-1, -1) treated as missing, in "
        f"{count_of(len(partial), 'face')}, such as {partial[0].name}"
    ]


def fold_name(name: str) -> str:
    """Normalize the case and the Unicode form of a file name, which differ between operating systems."""
    return unicodedata.normalize("NFC", name).casefold()


def is_system_file(name: str) -> bool:
    """Whether macOS or Windows adds files of this name to folders."""
    return name.startswith("._") or name.lower() in _SYSTEM_FILES

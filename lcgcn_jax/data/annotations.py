"""What the readers hand on: annotated faces, before any image is read."""

import dataclasses
import enum
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Bool, Float, Int8

from lcgcn_jax.errors import printable
from lcgcn_jax.landmarks import LandmarkScheme

_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.gz|rar|7z)(\.\d+)?$", re.IGNORECASE)
_SYSTEM_FILES = frozenset({".ds_store", "__macosx", "thumbs.db", "desktop.ini"})

MISSING_POINTS = ((0.0, 0.0), (-1.0, -1.0))
"""Coordinates that tools write for a missing point."""


class Visibility(enum.IntEnum):
    """Whether a landmark can be seen in the image."""

    UNKNOWN = -1
    VISIBLE = 0
    EXTERNALLY_OCCLUDED = 1  # by another object; its location is annotated
    SELF_OCCLUDED = 2  # by the face itself, in MERL-RAV without a location


@dataclasses.dataclass(frozen=True)
class FaceAnnotation:
    """One annotated face.

    Attributes:
      name: unique and stable, relative to the data's folder, e.g. `helen/trainset/100032540_1.jpg`.
      subset: the part of the data it comes from, e.g. `helen/train`; `""` where there are no parts.
      split: storage split: train, validation, common, challenge or test. Where no face of a list is
        said to be of validation, a part of train becomes it.
      group: the image (or person) as far as names tell; validation keeps a group together.
      image_path: the image.
      landmarks: pixels of the image, counting from 0; NaN where not annotated.
      visible: which landmarks are annotated.
      provided_box: the face box that the data comes with, or None.
      attributes: one truth value for each of the list's `attribute_names`.
      normalizer: what NME divides by, in pixels, where it comes with the data; else NaN.
      stated_size: width and height of the image as the annotation file states them, or None.
      visibility: one of the values of `Visibility` for each landmark, or None if all are unknown. Unlike
        `visible`, which is where a landmark is located, it says whether the landmark can be seen.
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
        """Refuses names that records, which are in UTF-8, cannot hold.

        Raises:
          ValueError: a name of a file is in another encoding.
        """
        for text in (self.name, self.subset, self.group):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(f"{text!r} is not a name in UTF-8") from error


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used, and why; each in one line, whatever a file's name holds."""

    name: str
    reason: str

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, printable(getattr(self, field.name)))

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class AnnotationList:
    """Everything a reader found in a folder.

    Attributes:
      kind: the layout, e.g. `300w`.
      scheme: what the landmarks mean.
      attribute_names: names of the faces' attributes.
      faces: the usable faces, in a fixed order.
      bad: the records left out.
      absent: subsets of the layout that the folder does not hold.
      notes: one-line remarks for the user, printed by prepare.
      has_validation: whether a part of train becomes the validation split where no face is of one.
      has_custom_landmarks: whether the user states what the landmarks mean, so that prepare compares
        the scheme's mirror pairs with the faces.
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
    """The path of an image in a folder; a list made by somebody else must not read files outside of it.

    Raises:
      ValueError: there is no such image, or it lies outside.
    """
    relative = PurePosixPath(image)
    path = images / relative
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"the image path {image!r} leaves {images.name}/")
    if not os.path.isfile(path):  # unlike Path.is_file, it takes any text for a path
        raise ValueError(f"no image {image!r} in {images.name}/")
    if not lies_within(path, images):
        raise ValueError(f"the image {image!r} is a link that leaves {images.name}/")
    return path


def lies_within(path: Path, folder: Path) -> bool:
    """Whether a file is in a folder or below it once all links are followed."""
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)


def archives(folder: Path) -> list[str]:
    """Names of the archives (.zip, .tar.gz, .7z, ...) in a folder: data that are still packed."""
    return sorted(
        path.name
        for path in folder.glob("*")
        if _ARCHIVE.search(path.name) and not is_system_file(path.name) and path.is_file()
    )


def marked_missing(points: Float[np.ndarray, "k 2"]) -> Bool[np.ndarray, "k"]:
    """Which points are at exactly one of `MISSING_POINTS`.

    Args:
      points: as an annotation file states them.
    """
    return np.logical_or.reduce([(points == place).all(axis=1) for place in MISSING_POINTS])


def note_of_missing_points(faces: Iterable[FaceAnnotation]) -> list[str]:
    """A note that counts the missing points of faces, for layouts that mark them by `marked_missing`."""
    partial = [face for face in faces if not face.visible.all()]
    if not partial:
        return []
    count = sum(int((~face.visible).sum()) for face in partial)
    return [
        f"{count:,} points at (0, 0) or (-1, -1) count as missing, in {len(partial):,} faces, such as "
        f"{partial[0].name}"
    ]


def is_system_file(name: str) -> bool:
    """Whether a file of this name is one that macOS or Windows adds to folders by itself."""
    return name.startswith("._") or name.lower() in _SYSTEM_FILES

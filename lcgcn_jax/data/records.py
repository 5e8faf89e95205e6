"""What the readers of the official layouts hand on: annotated faces, before any image is read."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from lcgcn_jax.landmarks import LandmarkScheme


@dataclasses.dataclass(frozen=True)
class FaceAnnotation:
    """One annotated face.

    Attributes:
      name: unique and stable, relative to the data's folder, e.g. `helen/trainset/100032540_1.jpg`.
      subset: the part of the data it comes from, e.g. `helen/train`; `""` where there are no parts.
      split: storage split before validation is taken out: train, common, challenge or test.
      group: the photograph (or person) as far as names tell; validation keeps a group together.
      image_path: the photograph.
      landmarks: pixels of the photograph, counting from 0.
      visible: which landmarks are annotated.
      provided_box: the face box that the data comes with, or None.
      attributes: one truth value for each of the list's `attribute_names`.
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


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used, and why."""

    name: str
    reason: str

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
    """

    kind: str
    scheme: LandmarkScheme
    attribute_names: tuple[str, ...]
    faces: list[FaceAnnotation]
    bad: list[BadRecord]
    absent: list[str]

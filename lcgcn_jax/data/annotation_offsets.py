"""Annotation offsets: systematic differences between the landmarks of two datasets.

Datasets place the same landmark differently: the brows of MERL-RAV lie higher than those of 300W. The offset
of a landmark is the median of (annotated - predicted) over many faces, with a model that was trained on the
other dataset. It is fitted in the canonical frame, where each face is aligned to the mean face by a
similarity, in units of the outer eye distance of the mean face.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex, Float

from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.storage import as_path

_MIN_LOCATED = 8  # in schemes with 16 landmarks or more
_ROUNDS = 5  # of Procrustes alignment


@dataclasses.dataclass(frozen=True)
class AnnotationOffsets:
    """Offsets of the landmarks of a dataset from another annotation style, by group of faces.

    Attributes:
      scheme: name of the landmark scheme.
      mean_face: the canonical frame; its outer eye distance (`unit_length`) is 1.
      default: offsets of faces in no group, or in several.
      groups: attribute of faces, such as a pose -> their offsets.
      provenance: data and model of the fit, for readers of the file; `about` in the file.

    Raises:
      ValueError: a value is not finite, or the mean face has no extent.
    """

    scheme: str
    mean_face: Float[np.ndarray, "k 2"]
    default: Float[np.ndarray, "k 2"]
    groups: Mapping[str, Float[np.ndarray, "k 2"]]
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, values in (
            ("mean_face", self.mean_face),
            ("default", self.default),
            *self.groups.items(),
        ):
            if not np.isfinite(values).all():
                raise ValueError(f"{name}: a value is not finite")
        if np.ptp(self.mean_face, axis=0).max(initial=0.0) <= 0:
            raise ValueError("mean_face: has no extent")

    @property
    def min_located(self) -> int:
        """Minimum number of located landmarks; faces with fewer are not changed."""
        return min_located(len(self.mean_face))

    def of(self, groups: Sequence[str]) -> Float[np.ndarray, "k 2"]:
        """Offsets for a face, in the canonical frame."""
        known = [name for name in groups if name in self.groups]
        return self.groups[known[0]] if len(known) == 1 else self.default

    def remove(
        self,
        landmarks: Float[np.ndarray, "k 2"],
        located: Bool[np.ndarray, "k"],
        groups: Sequence[str] = (),
    ) -> Float[np.ndarray, "k 2"]:
        """Move landmarks to the other annotation style.

        The offsets are rotated and scaled by the similarity from the mean face to the located landmarks.

        Args:
          landmarks: pixels of any frame without mirroring; NaN is allowed if not located.
          located: which landmarks have a location.

        Returns:
          The landmarks; unchanged if not located, and for faces with fewer than `min_located`.
        """
        if located.sum() < self.min_located:
            return landmarks
        factor = similarity_factor(self.mean_face, landmarks, located)
        moved = landmarks - to_pairs(factor * to_complex(self.of(groups)))
        return np.where(located[:, None], moved, landmarks).astype(landmarks.dtype)

    @property
    def digest(self) -> str:
        """SHA-256 of the fields that affect landmarks."""
        fields = self.to_dict()
        del fields["about"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON; `from_dict` reads them."""
        return {
            "scheme": self.scheme,
            "about": dict(self.provenance),
            "mean_face": self.mean_face.tolist(),
            "default": self.default.tolist(),
            "groups": {name: values.tolist() for name, values in self.groups.items()},
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "AnnotationOffsets":
        """Build offsets from plain types.

        Raises:
          KeyError: a field is missing.
          TypeError: a field has another type.
          ValueError: as the class states.
        """

        def points(name: str, values: Any) -> np.ndarray:
            array, shape = np.array(values, np.float64), (len(fields["mean_face"]), 2)
            if array.shape != shape:
                raise ValueError(f"{name}: expected an array {shape}, got {array.shape}")
            return array

        return cls(
            scheme=str(fields["scheme"]),
            mean_face=points("mean_face", fields["mean_face"]),
            default=points("default", fields["default"]),
            groups={str(name): points(name, values) for name, values in fields["groups"].items()},
            provenance=dict(fields.get("about") or {}),
        )


def read_offsets(path: Path | str, scheme: LandmarkScheme) -> AnnotationOffsets:
    """Read a file written by `lcgcn research fit-offsets`.

    Raises:
      InputError: it cannot be read, is corrupt, or is for another scheme.
    """
    path = as_path(path)
    try:
        offsets = AnnotationOffsets.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}; 'lcgcn research fit-offsets' writes a file of offsets"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: not a file of annotation offsets: {one_line(error)}; write one with "
            "'lcgcn research fit-offsets'"
        ) from error
    if (offsets.scheme, len(offsets.mean_face)) != (scheme.name, scheme.num_landmarks):
        raise InputError(
            f"{path}: offsets of {len(offsets.mean_face)} landmarks ({offsets.scheme}), but the data "
            f"has {scheme.num_landmarks} ({scheme.name}); fit offsets on data of that scheme"
        )
    return offsets


def min_located(num_landmarks: int) -> int:
    """Minimum number of located landmarks to align a face to the mean face: half of them, at most 8."""
    return max(2, min(_MIN_LOCATED, num_landmarks // 2))


def similarity_factor(
    frame: Float[np.ndarray, "k 2"],
    landmarks: Float[np.ndarray, "k 2"],
    located: Bool[np.ndarray, "k"],
) -> complex:
    """Scale and rotation of the least-squares similarity from a frame to a face, as a complex number."""
    source, target = (
        to_complex(points[located].astype(np.float64)) for points in (frame, landmarks)
    )
    source, target = source - source.mean(), target - target.mean()
    size = (abs(source) ** 2).sum()
    return complex(np.vdot(source, target) / size) if size > 0 else 0j


def mean_face(
    faces: Float[np.ndarray, "n k 2"], scheme: LandmarkScheme
) -> Float[np.ndarray, "k 2"]:
    """Mean face by generalized Procrustes alignment with similarities, centered, with unit length 1.

    With mirror pairs it is symmetric about x = 0, otherwise upright if the faces are upright.
    """
    mean = faces[0]
    located = np.ones(len(mean), bool)
    aligned = faces - faces.mean(axis=1, keepdims=True)
    aligned = aligned / np.sqrt((aligned**2).sum(axis=(1, 2), keepdims=True))
    for _ in range(_ROUNDS):
        mean = aligned.mean(axis=0)
        if has_mirror_pairs(scheme):
            mean = (mean + mirrored(mean, scheme)) / 2
        aligned = np.stack(
            [
                to_pairs(to_complex(face) * similarity_factor(face, mean, located))
                for face in aligned
            ]
        )
    return mean / unit_length(mean, scheme)


def unit_length(face: Float[np.ndarray, "k 2"], scheme: LandmarkScheme) -> float:
    """Unit of the canonical frame: the outer eye distance, or the box size in schemes without one."""
    located, absent = np.ones(len(face), bool), np.array(np.nan)
    if isinstance(scheme.normalizer, str):
        scheme = dataclasses.replace(scheme, normalizer="box")
    return float(scheme.normalizing_distance(face, located, absent))


def has_mirror_pairs(scheme: LandmarkScheme) -> bool:
    """Whether a scheme has mirror pairs."""
    return any(i != j for i, j in enumerate(scheme.mirror))


def mirrored(
    points: Float[np.ndarray, "*b k 2"], scheme: LandmarkScheme
) -> Float[np.ndarray, "*b k 2"]:
    """Mirror points or offsets, in a frame whose y axis is the axis of symmetry."""
    return points[..., list(scheme.mirror), :] * np.array([-1.0, 1.0])


def to_complex(points: Float[np.ndarray, "*b 2"]) -> Complex[np.ndarray, "*b"]:
    """Points as complex numbers x + iy."""
    return points[..., 0] + 1j * points[..., 1]


def to_pairs(values: Complex[np.ndarray, "*b"]) -> Float[np.ndarray, "*b 2"]:
    """The inverse of `to_complex`."""
    return np.stack([np.real(values), np.imag(values)], axis=-1)

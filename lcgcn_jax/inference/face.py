"""Predicted landmarks of one face."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from lcgcn_jax.errors import InputError
from lcgcn_jax.geometry import Affine
from lcgcn_jax.image_arrays import ImageInput, is_path, rgb_image
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference import face_geometry
from lcgcn_jax.inference.face_geometry import ARCFACE_SIZE, EyeOpenness, HeadPose, Template
from lcgcn_jax.landmarks import LandmarkScheme


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Face:
    """A face in an image. All coordinates are in pixels of the image; equality is identity.

    Attributes:
      box: face box (x0, y0, x1, y1), from the caller or the face detector.
      landmarks: landmarks of the graph stage, or of the heatmap stage for a model without a graph.
      confidence: peak of each heatmap, in 0..1.
      heatmap_landmarks: landmarks of the heatmap stage.
      edges: edge weights of the graph, with the incoming edges of landmark i in row i; None for a model
        without a graph.
      predicted_error_percent: predicted error of each of `landmarks`, in percent of the normalizing distance
        (`LandmarkScheme.normalizer`: the distance between the outer eye corners for 68 and 98 landmarks).
        It is about 90 for the outer landmarks if the model has failed on the face, for example because the
        box contains no face. None for a model without predicted errors (`lcgcn research calibrate`).
      visibility: probability that each landmark is visible: occluded neither by another object nor by
        the face; None for a model without a visibility head.
      score: score of the face detector, in 0..1; None for a box from the caller.
      predicted_error: predicted error of each of `landmarks`, in pixels of the image; None if
        `predicted_error_percent` is None, and for a scheme with the normalizer `given`.
      scheme: landmark scheme.
      reliable: False if the predicted error is so large that the box probably contains no face or the
        model has failed on it (`robust_crops.is_reliable`); None for a model without predicted errors.
      track: number of the face in a video (`LandmarkModel.track`); None for an image.
      crop: affine from the image to the crop in which the landmarks were predicted.
    """

    box: Float[np.ndarray, "4"]
    landmarks: Float[np.ndarray, "k 2"]
    confidence: Float[np.ndarray, "k"]
    heatmap_landmarks: Float[np.ndarray, "k 2"]
    edges: Float[np.ndarray, "k k"] | None = None
    predicted_error_percent: Float[np.ndarray, "k"] | None = None
    visibility: Float[np.ndarray, "k"] | None = None
    score: float | None = None
    predicted_error: Float[np.ndarray, "k"] | None = None
    scheme: LandmarkScheme | None = None
    reliable: bool | None = None
    track: int | None = None
    crop: Float[np.ndarray, "2 3"] | None = None

    def __repr__(self) -> str:
        box = ", ".join(f"{value:.1f}" for value in self.box)
        parts = [f"box=({box})", f"{len(self.landmarks)} landmarks"]
        if self.score is not None:
            parts.append(f"score={self.score:.3g}")
        fields = {"reliable": self.reliable, "track": self.track}
        parts += [f"{name}={value}" for name, value in fields.items() if value is not None]
        return f"Face({', '.join(parts)})"

    def to_dict(self, *, geometry: bool = False) -> dict[str, Any]:
        """Convert to plain types, as in the JSON of `lcgcn predict`; `track` only for a face of a video.

        `expected_error` (percent), `predicted_error` (pixels) and `reliable` are left out if the model is not
        calibrated, and `visibility` if it has no visibility head.

        Args:
          geometry: add head pose, eye openness and mouth openness as `geometry`, if the face has a scheme.

        Raises:
          InputError: with `geometry`, the face does not have the landmarks of its scheme.
        """
        fields: dict[str, Any] = {} if self.track is None else {"track": self.track}
        fields |= {
            "box": np.round(self.box, 3).tolist(),
            "score": None if self.score is None else round(float(self.score), 4),
            "landmarks": np.round(self.landmarks, 3).tolist(),
            "confidence": np.round(self.confidence.astype(float), 4).tolist(),
            "heatmap_landmarks": np.round(self.heatmap_landmarks, 3).tolist(),
        }
        if self.predicted_error_percent is not None:
            fields["expected_error"] = np.round(self.predicted_error_percent, 2).tolist()
        if self.visibility is not None:
            fields["visibility"] = np.round(self.visibility.astype(float), 4).tolist()
        if self.predicted_error is not None:
            fields["predicted_error"] = np.round(self.predicted_error, 3).tolist()
        if self.reliable is not None:
            fields["reliable"] = self.reliable
        if geometry and self.scheme is not None:
            fields["geometry"] = face_geometry.describe_geometry(self.landmarks, self._known_scheme)
        return fields

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the `k` landmarks; empty without a scheme."""
        return () if self.scheme is None else self.scheme.names

    def align(
        self, image: ImageInput, size: int = ARCFACE_SIZE, *, template: Template | None = None
    ) -> UInt8[np.ndarray, "size size 3"]:
        """Aligned RGB crop, for face recognition and similar models; black outside the image.

        Args:
          image: the image of the face: RGB array, PIL image or path.
          size: side of the crop in pixels.
          template: landmark or part (its mean) -> (x, y) in pixels of the crop. Default: the five points of
            ArcFace, multiplied by `size / 112`.

        Raises:
          InputError: the scheme lacks a landmark of the template, a landmark is NaN, or the face lies
            outside the image.
        """
        pixels = read_image(image) if is_path(image) else rgb_image(image)
        return face_geometry.align(pixels, self.landmarks, self._known_scheme, size, template)

    def align_transform(
        self, size: int = ARCFACE_SIZE, *, template: Template | None = None
    ) -> Affine:
        """Affine from the image to the crop of `align`; `lcgcn_jax.geometry.invert` maps back."""
        return face_geometry.align_transform(self.landmarks, self._known_scheme, size, template)

    def head_pose(self) -> HeadPose:
        """Yaw, pitch and roll in degrees: positive if the nose points right, down, and for clockwise roll.

        Right and down are those of the image. See `face_geometry.head_pose`.

        Raises:
          InputError: the scheme is neither `IBUG68` nor `WFLW98`, or the landmarks coincide.
        """
        return face_geometry.head_pose(self.landmarks, self._known_scheme)

    def eye_openness(self) -> EyeOpenness:
        """Aspect ratios of the left and the right eye of the viewer: about 0.3 if open, near 0 if closed.

        Raises:
          InputError: the scheme has no closed contours `left_eye` and `right_eye`.
        """
        return face_geometry.eye_openness(self.landmarks, self._known_scheme)

    def mouth_openness(self) -> float:
        """Aspect ratio of the inner lips: about 0 for a closed mouth.

        Raises:
          InputError: the scheme has no closed contour `inner_lips`.
        """
        return face_geometry.mouth_openness(self.landmarks, self._known_scheme)

    @property
    def _known_scheme(self) -> LandmarkScheme:
        if self.scheme is None:
            raise InputError("the face has no landmark scheme; construct it with scheme=...")
        if len(self.landmarks) != self.scheme.num_landmarks:
            raise InputError(
                f"the face has {len(self.landmarks)} landmarks, and its scheme {self.scheme.name} "
                f"{self.scheme.num_landmarks}; construct it with all of them"
            )
        return self.scheme

    @property
    def expected_error(self) -> Float[np.ndarray, "k"] | None:
        """Deprecated name of `predicted_error_percent`."""
        return self.predicted_error_percent

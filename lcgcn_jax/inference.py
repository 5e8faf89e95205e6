"""A trained model for photographs: faces in, landmarks in the photograph's pixels out."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from lcgcn_jax import geometry
from lcgcn_jax.calibration import Calibration
from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.detection import FaceDetector
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.bundles import Bundle, load_bundle
from lcgcn_jax.models.folding import fold_batch_norm
from lcgcn_jax.models.lcgcn import LCGCNOutput, normalize_images
from lcgcn_jax.models.weights import merge_weights
from lcgcn_jax.photographs import read_photograph

# Faces at a time, at most. The maps of a few faces fit into a CPU's caches: of `w300-lcgcn-small` a face took
# 14.0 ms of processor time alone, 12.5 in fours, 16.8 in eights and 18.0 in batches of 32 (AMD EPYC).
_BATCHES = {"cpu": 4}
_BATCH_ELSEWHERE = 32


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in a photograph, in its pixels.

    Attributes:
      box: the face box (x0, y0, x1, y1) that was given or detected.
      landmarks: of the graph stage; of the heatmap stage where the model has no graph.
      confidence: probability at each landmark's heatmap peak.
      heatmap_landmarks: of the heatmap stage.
      edges: the graph's weights, how much row i hears of column j; None for a model without a graph.
      expected_error: how far off each of `landmarks` is to be expected, in percent of what NME divides by
        (`LandmarkScheme.normalizer`; the distance between the outer eye corners for 68 and 98 landmarks);
        None for a model that is not calibrated (`lcgcn calibrate`).
    """

    box: Float[np.ndarray, "4"]
    landmarks: Float[np.ndarray, "k 2"]
    confidence: Float[np.ndarray, "k"]
    heatmap_landmarks: Float[np.ndarray, "k 2"]
    edges: Float[np.ndarray, "k k"] | None = None
    expected_error: Float[np.ndarray, "k"] | None = None


class LandmarkModel:
    """A trained model, ready to predict; `load` makes one.

    Attributes:
      scheme: what the landmarks mean.
      config: the model's configuration.
      image_size: side s of the crops that it takes, in pixels.
      calibration: from peaks and spreads of heatmaps to expected errors, or None.
      mirror_offset: how far to the right all points lie (`models.bundles.Bundle`).
    """

    def __init__(self, bundle: Bundle, detector_model: str | Path | None = None):
        graphdef, params, batch_stats = fold_batch_norm(*bundle.create())
        self.scheme: LandmarkScheme = bundle.scheme
        self.config: dict[str, Any] = dict(bundle.model)
        self.image_size: int = bundle.image_size
        self.calibration: Calibration | None = bundle.calibration
        self.mirror_offset: float = bundle.mirror_offset
        self._detector_model = detector_model

        def forward(images):
            return merge_weights(graphdef, params, batch_stats)(images)

        options = compiler_options()
        self._forward = jax.jit(forward, compiler_options=options)
        self._forward_bytes = jax.jit(
            lambda images: forward(normalize_images(images)), compiler_options=options
        )

    @functools.cached_property
    def detector(self) -> FaceDetector:
        """What finds the faces where no boxes are given; loaded, or fetched, when first used."""
        return FaceDetector(self._detector_model)

    def forward(self, images: Float[Array, "b s s 3"]) -> LCGCNOutput:
        """Runs the model on normalised crops (`models.lcgcn.normalize_images`); in crop pixels."""
        return self._forward(jnp.asarray(images, jnp.float32))

    def predict_crops(self, crops: UInt8[np.ndarray, "b s s 3"]) -> LCGCNOutput:
        """Runs the model on RGB crops of any number; NumPy arrays, in crop pixels.

        Batches are filled up to a power of two, so that few programs are compiled.
        """
        outputs = []
        largest = _BATCHES.get(jax.default_backend(), _BATCH_ELSEWHERE)
        for start in range(0, len(crops), largest):
            part = crops[start : start + largest]
            size = 1 << math.ceil(math.log2(len(part)))
            padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])
            output = self._forward_bytes(padded)
            outputs.append(jax.tree.map(np.asarray, output))
        # Only the last batch is filled up.
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(crops)], *outputs)

    def predict(
        self,
        image: UInt8[np.ndarray, "h w 3"] | str | Path,
        boxes: Iterable[Iterable[int | float]] | None = None,
    ) -> list[Face]:
        """Finds the landmarks of the faces in a photograph.

        Args:
          image: RGB bytes, or an image file.
          boxes: face boxes (x0, y0, x1, y1) in pixels: tight around the face, chin to brows, as the
            bounding box of the landmarks is. By default the face detector's, the surest first.

        Returns:
          A face for each box, in order.

        Raises:
          InputError: the file cannot be read, a box is empty or outside the picture, or there is no
            face detector.
        """
        return self.predict_batch([image], None if boxes is None else [boxes])[0]

    def predict_batch(
        self,
        images: Sequence[UInt8[np.ndarray, "_h _w 3"] | str | Path],
        boxes: Sequence[Iterable[Iterable[int | float]]] | None = None,
    ) -> list[list[Face]]:
        """Finds the landmarks of the faces in some photographs, all faces in common batches.

        Args:
          images: photographs of any sizes, as `predict` takes them.
          boxes: for each photograph its face boxes, as `predict` takes them.

        Returns:
          For each photograph its faces.

        Raises:
          InputError: as `predict`.
        """
        crops, affines, face_boxes, counts = [], [], [], []
        for i, image in enumerate(images):
            pixels = image if isinstance(image, np.ndarray) else read_photograph(image)
            if boxes is None:
                found = list(self.detector.face_boxes(pixels))
            else:
                name = "image" if isinstance(image, np.ndarray) else image
                found = check_boxes(boxes[i], pixels.shape[1], pixels.shape[0], name)
            for box in found:
                affine = geometry.crop_transform(box, self.image_size)
                crops.append(geometry.warp(pixels, affine, self.image_size))
                affines.append(geometry.invert(affine))
            face_boxes += found
            counts.append(len(found))
        if not crops:
            return [[] for _ in images]
        output = self.predict_crops(np.stack(crops))
        expected = None
        if self.calibration is not None:
            expected = self.calibration.expected_error(output.confidence, output.spread)

        def in_photograph(landmarks, i):
            return geometry.transform_points(affines[i], landmarks[i].astype(np.float64))

        faces = [
            Face(
                box=box,
                landmarks=in_photograph(output.landmarks, i),
                confidence=output.confidence[i],
                heatmap_landmarks=in_photograph(output.heatmap_landmarks, i),
                edges=None if output.edges is None else output.edges[i],
                expected_error=None if expected is None else expected[i],
            )
            for i, box in enumerate(face_boxes)
        ]
        ends = np.cumsum(counts).tolist()
        return [faces[end - count : end] for end, count in zip(ends, counts, strict=True)]


def load(model: str | Path, *, detector_model: str | Path | None = None) -> LandmarkModel:
    """Loads a model for prediction.

    Args:
      model: a bundle's folder, or a training workdir (its best validation is taken).
      detector_model: YuNet's ONNX file, for photographs without boxes; by default it is fetched once
        from the OpenCV zoo into the cache folder, when it is first needed.

    Raises:
      InputError: there is no such model, or its files are damaged.
    """
    return LandmarkModel(load_bundle(model), detector_model)


def check_boxes(
    boxes: Iterable[Iterable[int | float]], width: int, height: int, name: str | Path
) -> list[geometry.Box]:
    """The face boxes that somebody gave for a picture, as arrays.

    Args:
      boxes: the boxes (x0, y0, x1, y1).
      width: of the picture.
      height: of the picture.
      name: of the picture, for the message.

    Raises:
      InputError: a box can be no face's in the picture (`geometry.check_box`).
    """
    return [_checked_box(box, width, height, name) for box in boxes]


def _checked_box(
    box: Iterable[int | float], width: int, height: int, name: str | Path
) -> geometry.Box:
    values = np.asarray(list(box), np.float64)
    text = ",".join(f"{value:g}" for value in values)
    if values.shape != (4,):
        raise InputError(f"{name}: box {text}: a box is four numbers x0,y0,x1,y1 in pixels")
    try:
        geometry.check_box(values, width, height)
    except ValueError as error:
        raise InputError(f"{name}: box {text}: {error}") from error
    return values

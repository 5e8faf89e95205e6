"""A trained model for photographs: faces in, landmarks in the photograph's pixels out."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from lcgcn_jax import geometry
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.bundles import Bundle, load_bundle
from lcgcn_jax.models.folding import fold_batch_norm
from lcgcn_jax.models.lcgcn import LCGCNOutput, normalize_images
from lcgcn_jax.models.weights import merge_weights
from lcgcn_jax.photographs import read_photograph

_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in a photograph, in its pixels.

    Attributes:
      box: the face box that was given (x0, y0, x1, y1).
      landmarks: of the graph stage; of the heatmap stage where the model has no graph.
      confidence: probability at each landmark's heatmap peak.
      heatmap_landmarks: of the heatmap stage.
    """

    box: Float[np.ndarray, "4"]
    landmarks: Float[np.ndarray, "k 2"]
    confidence: Float[np.ndarray, "k"]
    heatmap_landmarks: Float[np.ndarray, "k 2"]


class LandmarkModel:
    """A trained model, ready to predict; `load` makes one.

    Attributes:
      scheme: what the landmarks mean.
      config: the model's configuration.
      image_size: side s of the crops that it takes, in pixels.
    """

    def __init__(self, bundle: Bundle):
        graphdef, params, batch_stats = fold_batch_norm(*bundle.create())
        self.scheme: LandmarkScheme = bundle.scheme
        self.config: dict[str, Any] = dict(bundle.model)
        self.image_size: int = bundle.image_size

        def forward(images):
            return merge_weights(graphdef, params, batch_stats)(images)

        self._forward = jax.jit(forward)
        self._forward_bytes = jax.jit(lambda images: forward(normalize_images(images)))

    def forward(self, images: Float[Array, "b s s 3"]) -> LCGCNOutput:
        """Runs the model on normalised crops (`models.lcgcn.normalize_images`); in crop pixels."""
        return self._forward(jnp.asarray(images, jnp.float32))

    def predict_crops(self, crops: UInt8[np.ndarray, "b s s 3"]) -> LCGCNOutput:
        """Runs the model on RGB crops of any number; NumPy arrays, in crop pixels.

        Batches are filled up to a power of two, so that few programs are compiled.
        """
        outputs = []
        for start in range(0, len(crops), _BATCH):
            part = crops[start : start + _BATCH]
            size = 1 << math.ceil(math.log2(len(part)))
            padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])
            output = self._forward_bytes(padded)
            outputs.append(jax.tree.map(np.asarray, output))
        # Only the last batch is filled up.
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(crops)], *outputs)

    def predict(
        self,
        image: UInt8[np.ndarray, "h w 3"] | str | Path,
        boxes: Iterable[Iterable[int | float]],
    ) -> list[Face]:
        """Finds the landmarks of the faces in a photograph.

        Args:
          image: RGB bytes, or an image file.
          boxes: face boxes (x0, y0, x1, y1) in pixels: tight around the face, chin to brows, as the
            bounding box of the landmarks is.

        Returns:
          A face for each box, in order.

        Raises:
          InputError: the file cannot be read, or a box is empty or outside the picture.
        """
        pixels = image if isinstance(image, np.ndarray) else read_photograph(image)
        boxes = [_checked_box(box, pixels.shape, image) for box in boxes]
        if not boxes:
            return []
        affines = [geometry.crop_transform(box, self.image_size) for box in boxes]
        crops = np.stack([geometry.warp(pixels, affine, self.image_size) for affine in affines])
        output = self.predict_crops(crops)
        faces = []
        for i, (box, affine) in enumerate(zip(boxes, affines, strict=True)):
            back = geometry.invert(affine)
            faces.append(
                Face(
                    box,
                    geometry.transform_points(back, output.landmarks[i].astype(np.float64)),
                    output.confidence[i],
                    geometry.transform_points(back, output.heatmap_landmarks[i].astype(np.float64)),
                )
            )
        return faces


def load(model: str | Path) -> LandmarkModel:
    """Loads a model for prediction.

    Args:
      model: a bundle's folder, or a training workdir (its best validation is taken).

    Raises:
      InputError: there is no such model, or its files are damaged.
    """
    return LandmarkModel(load_bundle(model))


def _checked_box(
    box: Iterable[int | float], shape: tuple[int, ...], image: np.ndarray | str | Path
) -> geometry.Box:
    name = "image" if isinstance(image, np.ndarray) else image
    values = np.asarray(list(box), np.float64)
    text = ",".join(f"{value:g}" for value in values)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise InputError(f"{name}: box {text}: a box is four numbers x0,y0,x1,y1 in pixels")
    x0, y0, x1, y1 = values
    if x1 <= x0 or y1 <= y0:
        raise InputError(f"{name}: box {text}: x1 and y1 have to be larger than x0 and y0")
    height, width = shape[:2]
    if not (0 <= (x0 + x1) / 2 < width and 0 <= (y0 + y1) / 2 < height):
        raise InputError(
            f"{name}: box {text}: its centre is outside the picture, which is {width} x {height}"
        )
    return values

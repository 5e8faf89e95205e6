"""Checked inputs of a model: images with their face boxes."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lcgcn_jax import geometry
from lcgcn_jax.errors import InputError
from lcgcn_jax.image_arrays import ImageInput, describe_value, is_path

BoxInput = Any
"""A face box (x0, y0, x1, y1): four numbers of any sequence type, in pixels."""

_BATCH_FACES = 32  # largest batch of a model on an accelerator
_BATCH_PIXELS = 50_000_000


@dataclasses.dataclass(frozen=True)
class BoxedImage:
    """An image and the face boxes in it.

    Attributes:
      pixels: the image.
      boxes: face boxes, in pixels.
      scores: score of the face detector for each box; None for a box from the caller.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    boxes: Sequence[geometry.Box]
    scores: Sequence[float | None]


def is_full_batch(images: Sequence[BoxedImage]) -> bool:
    """Whether images have enough faces to run the model, or too many pixels to wait for more."""
    num_faces = sum(len(image.boxes) for image in images)
    num_pixels = sum(image.pixels.size // 3 for image in images)
    return num_faces >= _BATCH_FACES or num_pixels >= _BATCH_PIXELS


def check_boxes(
    boxes: Iterable[BoxInput], width: int, height: int, name: str | os.PathLike
) -> list[geometry.Box]:
    """Convert the face boxes of an image to arrays.

    Args:
      boxes: face boxes (x0, y0, x1, y1).
      width: width of the image.
      height: height of the image.
      name: name of the image, for the error message.

    Raises:
      InputError: a value is not a box, or is not a possible face box in the image (`geometry.check_box`).
    """
    boxes = as_list(f"{name}: boxes", boxes)
    if boxes and all(isinstance(v, int | float) or getattr(v, "ndim", 1) == 0 for v in boxes):
        raise InputError(
            f"{name}: boxes: {describe_value(boxes)}; give a list of boxes, [(x0, y0, x1, y1), ...]"
        )
    return [_check_box(box, width, height, name) for box in boxes]


def _check_box(box: BoxInput, width: int, height: int, name: str | os.PathLike) -> geometry.Box:
    try:
        values = np.asarray(box if hasattr(box, "shape") else list(box))
    except (TypeError, ValueError):
        values = np.asarray(None)
    if isinstance(box, str) or values.dtype.kind not in "iuf" or values.ndim != 1:
        raise InputError(
            f"{name}: box {describe_value(box)}: a box is four numbers x0,y0,x1,y1 in pixels"
        )
    values = values.astype(np.float64)
    text = ",".join(f"{value:g}" for value in values)
    if values.shape != (4,):
        raise InputError(f"{name}: box {text}: a box is four numbers x0,y0,x1,y1 in pixels")
    try:
        geometry.check_box(values, width, height)
    except ValueError as error:
        raise InputError(f"{name}: box {text}: {error}") from error
    return values


def list_images(images: Iterable[ImageInput]) -> list[ImageInput]:
    """Convert a batch of images to a list.

    Raises:
      InputError: the value is not a list of images, for example a single image.
    """
    if is_path(images) or isinstance(images, bytes) or getattr(images, "ndim", 4) != 4:
        raise InputError(
            f"images: {describe_value(images)} is not a list of images; call predict for one image"
        )
    return as_list("images", images)


def as_list(name: str, values: Any) -> list:
    """Convert an iterable other than a text or a mapping to a list.

    Raises:
      InputError: the value is not such an iterable.
    """
    if isinstance(values, str | bytes | Mapping):
        raise InputError(f"{name}: {describe_value(values)}; give a list")
    try:
        return list(values)
    except TypeError as error:
        raise InputError(f"{name}: {describe_value(values)}; give a list") from error

"""Checked inputs of a model: images with their face boxes."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lcgcn_jax import geometry
from lcgcn_jax.errors import InputError, choose
from lcgcn_jax.image_arrays import ImageInput, describe_value, is_path

BoxInput = Any
"""A face box: four numbers of any sequence type, in pixels, in one of `geometry.BOX_FORMATS`."""

_BATCH_FACES = 32  # largest batch of a model on an accelerator
_BATCH_PIXELS = 50_000_000


@dataclasses.dataclass(frozen=True)
class BoxedImage:
    """An image and the face boxes in it.

    Attributes:
      boxes: face boxes, in pixels.
      scores: score of the face detector for each box; None for a box from the caller.
      crops: affine to the first crop of each face, for example `robust_crops.crop_around` the landmarks in
        the previous frame; None for the upright crop around the box.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    boxes: Sequence[geometry.Box]
    scores: Sequence[float | None]
    crops: Sequence[geometry.Affine | None] | None = None


def is_full_batch(images: Sequence[BoxedImage]) -> bool:
    """Whether images have enough faces to run the model, or too many pixels to wait for more."""
    num_faces = sum(len(image.boxes) for image in images)
    num_pixels = sum(image.pixels.size // 3 for image in images)
    return num_faces >= _BATCH_FACES or num_pixels >= _BATCH_PIXELS


def check_boxes(
    boxes: Iterable[BoxInput],
    width: int,
    height: int,
    name: str | os.PathLike,
    box_format: str = "xyxy",
) -> list[geometry.Box]:
    """Convert the face boxes of an image to arrays (x0, y0, x1, y1).

    Args:
      name: name of the image, for the error message.
      box_format: one of `geometry.BOX_FORMATS`.

    Raises:
      InputError: a value is not a box, or is not a possible face box in the image (`geometry.check_box`).
    """
    choose("box_format", box_format, geometry.BOX_FORMATS)
    boxes = as_list(f"{name}: boxes", boxes)
    if boxes and all(isinstance(v, int | float) or getattr(v, "ndim", 1) == 0 for v in boxes):
        form = geometry.BOX_FORMATS[box_format].replace(",", ", ")
        raise InputError(
            f"{name}: boxes: {describe_value(boxes)}; give a list of boxes, [({form}), ...]"
        )
    return [_check_box(box, width, height, name, box_format) for box in boxes]


def _check_box(
    box: BoxInput, width: int, height: int, name: str | os.PathLike, box_format: str
) -> geometry.Box:
    try:
        values = np.asarray(box if hasattr(box, "shape") else list(box))
    except (TypeError, ValueError):
        values = np.asarray(None)
    numbers = f"a box is four numbers {geometry.BOX_FORMATS[box_format]} in pixels"
    if isinstance(box, str) or values.dtype.kind not in "iuf" or values.ndim != 1:
        raise InputError(f"{name}: box {describe_value(box)}: {numbers}")
    values = values.astype(np.float64)
    text = ",".join(f"{value:g}" for value in values)
    if values.shape != (4,):
        raise InputError(f"{name}: box {text}: {numbers}")
    is_size = box_format == "xywh"
    if is_size and not (values[2:] > 0).all():
        raise InputError(f"{name}: box {text}: width and height have to be positive")
    try:
        corners = np.concatenate([values[:2], values[:2] + values[2:]]) if is_size else values
        geometry.check_box(corners, width, height)
    except ValueError as error:
        other = "" if is_size else "; for boxes x,y,width,height, set the box format xywh"
        raise InputError(f"{name}: box {text}: {error}{other}") from error
    return corners


def check_fraction(name: str, value: float) -> None:
    """Check that the value of an argument is in 0..1.

    Raises:
      InputError: it is not.
    """
    if not (isinstance(value, int | float | np.number) and 0 <= value <= 1):
        raise InputError(f"{name}: {describe_value(value)}; give a number from 0 to 1")


def list_images(images: Iterable[ImageInput]) -> list[ImageInput]:
    """Convert a batch of images to a list.

    Raises:
      InputError: the value is not a list of images, for example a single image.
    """
    # Arrays and pandas series of paths have one dimension.
    num_axes = getattr(images, "ndim", 4)
    is_list = num_axes == 4 or (num_axes == 1 and all(map(is_path, images)))
    if is_path(images) or isinstance(images, bytes) or not is_list:
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

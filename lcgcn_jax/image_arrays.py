"""Conversion of arrays and PIL images to 8-bit RGB arrays; ambiguous inputs are rejected.

All functions of the Python API that accept pixels follow these rules:

- `uint8` RGB `[h w 3]` is used unchanged, with any memory layout. OpenCV's `cv2.imread` returns BGR, which
  cannot be distinguished from RGB: convert it first.
- Grayscale `[h w]` or `[h w 1]`, RGBA `[h w 4]` (alpha is dropped) and PIL images of any mode (rotated by
  their EXIF orientation) are converted like image files.
- Other integer types are converted if all values are in 0..255, except `uint16`, which usually means
  16-bit images.
- Floating-point and boolean arrays, bytes of files and all other objects are rejected.
"""

import os
import reprlib
import struct
import sys
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lcgcn_jax.errors import InputError, one_line

RGB = UInt8[np.ndarray, "h w 3"]

ImageInput = Any
"""A path, an array or a PIL image, by the rules of this module. `Any`, since the rules give better errors."""

_CHANNELS = (1, 3, 4)


def rgb_image(image: ImageInput, name: str = "image") -> RGB:
    """Convert an image to a contiguous 8-bit RGB array.

    Args:
      image: array, nested list or PIL image; see the rules of this module.

    Raises:
      InputError: the type, shape or range of the image is ambiguous.
    """
    expected = "an RGB uint8 array [h w 3]"
    if _is_pil(image):
        return _from_pil(image, name)
    array = _bytes_of(image, name, expected)
    if array.ndim == 3 and array.shape[0] in _CHANNELS and array.shape[2] not in _CHANNELS:
        raise InputError(
            f"{name}: {_describe(array)} has its channels first; give {expected}: "
            "np.moveaxis(image, 0, -1)"
        )
    if array.ndim == 4:
        raise InputError(
            f"{name}: {_describe(array)} is more than one image; give {expected}, or call predict_batch"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS):
        raise InputError(f"{name}: {_describe(array)} is not an image; give {expected}")
    if array.size == 0:
        raise InputError(f"{name}: {_describe(array)} has no pixels; give {expected}")
    return _to_rgb(array if array.ndim == 3 else array[..., None])


def rgb_crops(crops: ImageInput, size: int) -> UInt8[np.ndarray, "b size size 3"]:
    """Convert a batch of square face crops to an 8-bit RGB array.

    Args:
      crops: array `[b size size 3]`, or a list of crops as in `rgb_image`.
      size: input size of the model, in pixels.

    Raises:
      InputError: as `rgb_image`, or the crops have another size.
    """
    expected = f"RGB uint8 crops [b {size} {size} 3]"
    if _is_pil(crops):
        raise InputError(f"crops: one PIL image; give a list of them, or {expected}")
    if isinstance(crops, list | tuple):
        images = [rgb_image(crop, f"crop {i}") for i, crop in enumerate(crops)]
        for i, image in enumerate(images):
            if image.shape != (size, size, 3):
                raise InputError(f"crop {i}: {_describe(image)}; give {expected}")
        return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
    if len(getattr(crops, "shape", ())) > 1 and crops.shape[0] == 0:
        return np.zeros((0, size, size, 3), np.uint8)
    array = _bytes_of(crops, "crops", expected)
    if array.shape == (size, size, 3):
        raise InputError(f"crops: {_describe(array)} is one crop; give {expected}: crops[None]")
    if array.ndim == 3 and array.shape[1:] == (size, size):
        array = array[..., None]
    if array.ndim != 4 or array.shape[1:3] != (size, size) or array.shape[3] not in _CHANNELS:
        raise InputError(f"crops: {_describe(array)}; give {expected}")
    return _to_rgb(array)


def is_path(image: Any) -> bool:
    """Whether an image is the path of a file."""
    return isinstance(image, str | os.PathLike)


def describe_value(value: Any) -> str:
    """Describe a value of any type briefly, for error messages of one line."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _describe(value)
    return " ".join(reprlib.repr(value).split())


def _bytes_of(values: Any, name: str, expected: str) -> np.ndarray:
    """Convert values to a uint8 array of any shape."""
    if values is None:
        raise InputError(
            f"{name}: None; give {expected} (cv2.imread returns None for a file that it cannot read)"
        )
    if isinstance(values, bytes | bytearray):
        raise InputError(
            f"{name}: {len(values):,} bytes; give a path, {expected}, or PIL.Image.open(io.BytesIO(...))"
        )
    if hasattr(values, "read"):
        raise InputError(
            f"{name}: a file object ({type(values).__name__}); give a path, {expected}, or "
            "PIL.Image.open(file)"
        )
    if np.ma.is_masked(values):
        raise InputError(f"{name}: a masked array; give {expected}: image.filled(0)")
    try:
        array = np.asarray(values)
    except Exception as error:  # conversions of other libraries raise errors of many types
        raise InputError(
            f"{name}: {type(values).__name__} cannot become an array: {one_line(error)[:100]}; "
            f"give {expected}"
        ) from error
    if array.dtype == np.uint8:
        return array
    if array.ndim == 0 or array.dtype.kind not in "iufb" or array.size == 0:
        raise InputError(f"{name}: {describe_value(values)}; give {expected}")
    if array.dtype.kind == "b":
        fix = "255 * image.astype(np.uint8)"
        raise InputError(f"{name}: {_describe(array)}; give {expected}: {fix}")
    low, high = array.min(), array.max()
    uint16 = array.dtype.newbyteorder("=") == np.uint16
    if array.dtype.kind in "iu" and not uint16 and low >= 0 and high <= 255:
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        unit = low >= 0 and high <= 1
        fix = "(255 * image).round()" if unit else "image.round().clip(0, 255)"
    elif uint16 and high > 255:
        fix = "(image >> 8)"
    else:
        fix = "image" if low >= 0 and high <= 255 else "image.clip(0, 255)"
    raise InputError(
        f"{name}: {_describe(array)} with values {low:g} to {high:g}; give {expected} with values 0 to 255, "
        f"such as {fix}.astype(np.uint8)"
    )


def _to_rgb(array: UInt8[np.ndarray, "*b h w c"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """Repeat a single channel, or drop alpha."""
    if array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    return np.ascontiguousarray(array[..., :3])


def _describe(array: Any) -> str:
    return f"{getattr(array.dtype, 'name', array.dtype)} array [{' '.join(map(str, array.shape))}]"


def _is_pil(image: Any) -> bool:
    # Without an import of PIL anywhere, the image cannot be a PIL image.
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(image, pil.Image)


def _from_pil(image: Any, name: str) -> RGB:
    """Convert a PIL image like the same file: upright, without alpha, and the high bytes of 16 bits."""
    from PIL import ImageOps

    try:
        format = image.format
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            return rgb_image((np.asarray(image) >> 8).astype(np.uint8), name)
        if image.mode in ("I", "F"):
            array = np.asarray(image)
            if image.mode == "I" and format == "PPM":  # which has at most 16 bits
                array = (array >> 8).astype(np.uint8)
            return rgb_image(array, name)
        return rgb_image(np.asarray(image.convert("RGB")), name)
    except (InputError, MemoryError):
        raise
    # PIL decodes lazily, so that corrupt files raise errors of the decoder here.
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, struct.error) as error:
        raise InputError(
            f"{name}: PIL image of mode {image.mode} cannot be decoded: {one_line(error)[:100]}"
        ) from error

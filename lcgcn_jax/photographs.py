"""Reading photographs that people give."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from lcgcn_jax.errors import InputError


def read_photograph(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image file as 8-bit RGB, turned as its EXIF orientation says.

    Raises:
      InputError: there is no such file, or it is no whole picture.
    """
    path = Path(path)
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        check_complete(encoded)
        return decode_image(encoded, cv2.IMREAD_COLOR_RGB)
    except ValueError as error:
        raise InputError(f"{path}: {error}; give a whole JPEG or PNG file") from error


def decode_image(encoded: bytes, flags: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file with OpenCV's flags.

    Raises:
      ValueError: the bytes are no picture.
    """
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:
        raise ValueError("the image cannot be decoded") from error
    if image is None:
        raise ValueError("the image cannot be decoded")
    return image


def check_complete(encoded: bytes) -> None:
    """Refuses JPEG and PNG files that end early: OpenCV fills the rest with grey and says nothing.

    Raises:
      ValueError: the file is empty or truncated.
    """
    if not encoded:
        raise ValueError("the image file is empty")
    if encoded.startswith(b"\x89PNG"):
        complete = b"IEND" in encoded
    elif encoded.startswith(b"\xff\xd8"):
        # Within the scan's data neither marker can occur, and a thumbnail comes before the scan:
        # so the last end of image follows the last start of scan, whatever padding comes after.
        complete = encoded.rfind(b"\xff\xd9") > encoded.rfind(b"\xff\xda")
    else:
        complete = True  # other formats: the decoder notices
    if not complete:
        raise ValueError("the image file is truncated")

"""Reading photographs that people give."""

import struct
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from lcgcn_jax.errors import InputError

MAX_PIXELS = 1 << 28
"""Pixels of the largest picture that is read, such as 16,384 x 16,384: 0.8 GB in memory."""

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 .. SOF15
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xDA)})  # markers without a length behind them


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
      ValueError: the bytes are no picture, or claim one of more than `MAX_PIXELS`.
    """
    # Before the decoder takes memory: a flipped bit in a JPEG's header may cost it gigabytes.
    width, height = claimed_size(encoded) or (0, 0)
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"the image claims {width} x {height} pixels, and at most {MAX_PIXELS:,} are read"
        )
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


def claimed_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height that the header of a JPEG, PNG or GIF file states; None: it has none, or is another's.

    Decoders of the other formats take their memory as the data come.
    """
    try:
        if encoded.startswith(b"\x89PNG"):
            return struct.unpack_from(">II", encoded, 16) if encoded[12:16] == b"IHDR" else None
        if encoded.startswith(b"GIF8"):
            return struct.unpack_from("<HH", encoded, 6)
        if encoded.startswith(b"\xff\xd8"):
            return _jpeg_size(encoded)
    except (struct.error, IndexError):  # the file ends before it
        pass
    return None


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    place = 2
    while True:
        # As libjpeg does, skip what is no marker, and the bytes that may fill up before one.
        while encoded[place] != 0xFF or encoded[place + 1] in (0x00, 0xFF):
            place += 1
        marker = encoded[place + 1]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", encoded, place + 5)
            return width, height
        if marker == 0xDA:  # the scan: a frame's header would have come before it
            return None
        place += 2
        if marker not in _JPEG_BARE:
            place += struct.unpack_from(">H", encoded, place)[0]

"""Limits and checks of uploaded files. All messages name the file without its folder."""

import math
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from lcgcn_jax.errors import InputError, printable
from lcgcn_jax.image_io import decode_image, read_header

SAMPLE = Path(__file__).parent / "sample.jpg"
"""Image of a face: Eileen Collins, NASA, public domain."""

MAX_IMAGE_BYTES = 30_000_000
MAX_IMAGE_PIXELS = 50_000_000
MAX_VIDEO_BYTES = 200_000_000
MAX_VIDEO_PIXELS = 3840 * 2160  # of a frame
MAX_VIDEO_FRAMES = 1800  # one minute at 30 frames per second


def read_upload(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read an uploaded image as upright RGB.

    Raises:
      InputError: the file is too large or not a complete image.
    """
    encoded = _checked_size(path, MAX_IMAGE_BYTES).read_bytes()
    try:
        width, height = read_header(encoded).size if encoded else (0, 0)
        if width * height > MAX_IMAGE_PIXELS:
            raise ValueError(
                f"the image has {width} x {height} pixels; the limit is {MAX_IMAGE_PIXELS // 10**6} "
                "megapixels"
            )
        return decode_image(encoded)
    except ValueError as error:
        fix = "" if ";" in str(error) else "; upload a complete JPEG or PNG file"
        raise InputError(f"{display_name(path)}: {error}{fix}") from error


def check_video(path: Path) -> None:
    """Check the size and the length of an uploaded video.

    Raises:
      InputError: the file is too large, too long, or not a video.
    """
    name = display_name(_checked_size(path, MAX_VIDEO_BYTES))
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.grab():
            raise InputError(
                f"{name}: no frame of a video can be read; upload a complete MP4 or WebM file"
            )
        width, height = (
            capture.get(cv2.CAP_PROP_FRAME_WIDTH),
            capture.get(cv2.CAP_PROP_FRAME_HEIGHT),
        )
        if width * height > MAX_VIDEO_PIXELS:
            raise InputError(
                f"{name}: the frames have {width:.0f} x {height:.0f} pixels; the limit is 3840 x 2160"
            )
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if not (math.isfinite(count) and count > 0):  # files of browsers do not state it
            count = 1
            while count <= MAX_VIDEO_FRAMES and capture.grab():
                count += 1
        if count > MAX_VIDEO_FRAMES:
            raise InputError(
                f"{name}: the video has more than {MAX_VIDEO_FRAMES} frames; upload a shorter one, or run "
                "'lcgcn predict' on it"
            )
    finally:
        capture.release()


def display_name(path: Path) -> str:
    """Name of an uploaded file in messages and results."""
    return printable(path.name)


def _checked_size(path: Path, limit: int) -> Path:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:  # the page may stay open for longer than its files
        raise InputError(f"{display_name(path)}: has been deleted; upload it again") from error
    if size > limit:
        raise InputError(
            f"{display_name(path)}: has {size / 1e6:.0f} MB; the limit is {limit // 10**6} MB"
        )
    return path

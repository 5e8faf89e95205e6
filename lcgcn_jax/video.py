"""Reading and writing videos, by OpenCV's FFmpeg."""

import contextlib
import dataclasses
import errno
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from lcgcn_jax.errors import InputError

MAX_RATE = 1000.0
"""Frames a second from which on a file's rate is a time base, and no rate."""

CODEC = "mp4v"


@dataclasses.dataclass(frozen=True)
class Video:
    """A video file that is open for reading.

    Attributes:
      path: the file.
      frames_per_second: its rate.
      num_frames: how many frames it says that it has; 0 where it says nothing.
      frames: the RGB frames, in order.
    """

    path: Path
    frames_per_second: float
    num_frames: int
    frames: Iterator[UInt8[np.ndarray, "h w 3"]]


@contextlib.contextmanager
def open_video(path: Path, *, frames_per_second: float | None = None) -> Iterator[Video]:
    """Opens a video file for reading.

    Args:
      path: the file.
      frames_per_second: the rate to take instead of the file's.

    Raises:
      InputError: it cannot be read, has no frame, or its rate is not known.
    """
    if not path.is_file():
        raise InputError(f"{path}: cannot be read: no such file")
    capture = cv2.VideoCapture(str(path))
    try:
        readable, first = capture.read()
        if not readable:
            raise InputError(f"{path}: no frame of a video can be read; give a whole video file")
        rate = frames_per_second or capture.get(cv2.CAP_PROP_FPS)
        if not (math.isfinite(rate) and 0 < rate <= MAX_RATE):
            raise InputError(f"{path}: the frame rate is not known; give it by --fps")
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        num_frames = int(count) if math.isfinite(count) and count > 0 else 0
        yield Video(path, float(rate), num_frames, _frames(capture.read, first))
    finally:
        capture.release()


def _frames(
    read: Callable[[], tuple[bool, np.ndarray | None]], frame: np.ndarray
) -> Iterator[UInt8[np.ndarray, "_h _w 3"]]:
    more = True
    while more:
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        more, frame = read()


class VideoWriter(contextlib.AbstractContextManager):
    """Writes RGB frames of one size to an MP4 file (MPEG-4 part 2).

    The codec takes even sizes alone: an odd width or height grows by a pixel, a copy of the last.
    """

    def __init__(self, path: Path, *, frames_per_second: float):
        """The file is made with the first frame."""
        self._path = path
        self._rate = frames_per_second
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: UInt8[np.ndarray, "_h _w 3"]) -> None:
        """Adds a frame.

        Raises:
          OSError: the file cannot be written.
        """
        bottom, right = frame.shape[0] % 2, frame.shape[1] % 2
        even = cv2.copyMakeBorder(frame, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        if self._writer is None:
            codec = cv2.VideoWriter.fourcc(*CODEC)
            size = (even.shape[1], even.shape[0])
            self._writer = cv2.VideoWriter(str(self._path), codec, self._rate, size)
            if not self._writer.isOpened():
                raise OSError(errno.EIO, "the video cannot be encoded", str(self._path))
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))

    def __exit__(self, *raised: object) -> None:
        if self._writer is not None:
            self._writer.release()

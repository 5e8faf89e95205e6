"""Reading and writing of videos with OpenCV's FFmpeg."""

import contextlib
import dataclasses
import errno
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from lcgcn_jax.errors import InputError

MAX_RATE = 240.0
"""Maximum frame rate. A higher one in a file is a time base, such as 1000 in WebM files of browsers."""

CODEC = "mp4v"

# Maximum difference of frame durations at a constant rate, as a fraction of the median duration.
_DURATION_TOLERANCE = 0.02


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
      time: time stamp in seconds from the start of the video, later than that of the previous frame.
      pixels: RGB.
    """

    time: float
    pixels: UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class Video:
    """A video file that is open for reading.

    Attributes:
      path: path of the file.
      frames_per_second: frame rate; the mean rate if it varies.
      num_frames: number of frames that the file states; 0 if it states none.
      frames: iterator over the frames.
    """

    path: Path
    frames_per_second: float
    num_frames: int
    frames: Iterator[Frame]


@contextlib.contextmanager
def open_video(path: Path, *, frames_per_second: float | None = None) -> Iterator[Video]:
    """Open a video file for reading.

    Frames have the time stamps of the file. If a time stamp is missing or not later than the previous one,
    the frame follows the previous one at the frame rate.

    Args:
      path: path of the file.
      frames_per_second: frame rate to use instead of the rate and the time stamps of the file.

    Raises:
      InputError: the file cannot be read, has no frame, or has no frame rate.
    """
    if not path.is_file():
        raise InputError(f"{path}: cannot be read: no such file")
    capture = cv2.VideoCapture(str(path))
    try:
        frames = _stamped_frames(capture)
        first = list(itertools.islice(frames, 2))
        if not first:
            raise InputError(f"{path}: no frame of a video can be read; give a complete video file")
        rate = frames_per_second or _rate(capture, [frame.time for frame in first])
        if rate is None:
            raise InputError(f"{path}: the frame rate is unknown; give it with --fps")
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        num_frames = int(count) if math.isfinite(count) and count > 0 else 0
        frames = itertools.chain(first, frames)
        if frames_per_second:
            frames = (frame._replace(time=i / rate) for i, frame in enumerate(frames))
        else:
            frames = _increasing(frames, 1 / rate)
        yield Video(path, float(rate), num_frames, frames)
    finally:
        capture.release()


def varies(times: Sequence[float]) -> bool:
    """Whether frame times have a variable frame rate."""
    steps = np.diff(times)
    # Some containers round times to milliseconds.
    return len(steps) > 0 and bool(
        np.ptp(steps) > max(_DURATION_TOLERANCE * np.median(steps), 0.002)
    )


def _stamped_frames(capture: Any) -> Iterator[Frame]:
    """Frames with the time stamps of the file, which may be invalid."""
    while True:
        readable, pixels = capture.read()
        if not readable:
            return
        stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        yield Frame(stamp, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def _rate(capture: Any, times: list[float]) -> float | None:
    """Frame rate that the file states, or else that of its first two frames."""
    step = times[-1] - times[0]
    for rate in (capture.get(cv2.CAP_PROP_FPS), 1 / step if step > 0 else 0.0):
        if math.isfinite(rate) and 0 < rate <= MAX_RATE:
            return rate
    return None


def _increasing(frames: Iterable[Frame], step: float) -> Iterator[Frame]:
    """Frames with increasing times: a time that does not increase shifts all later ones."""
    previous, shift = -math.inf, 0.0
    for frame in frames:
        time = frame.time + shift
        if not math.isfinite(time) or time <= previous:
            time = previous + step if math.isfinite(previous) else 0.0
            shift = time - frame.time if math.isfinite(frame.time) else shift
        previous = time
        yield frame._replace(time=time)


class VideoWriter(contextlib.AbstractContextManager):
    """Writer of RGB frames of one size to an MP4 file (MPEG-4 part 2) at a constant rate.

    The codec requires even sizes: an odd width or height is increased by replicating the last pixel.
    """

    def __init__(self, path: Path, *, frames_per_second: float):
        """Set up the writer; the first frame creates the file."""
        self._path = path
        self._rate = frames_per_second
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: UInt8[np.ndarray, "_h _w 3"]) -> None:
        """Write a frame.

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

    def close(self) -> None:
        """Finish the file.

        Raises:
          OSError: the file is not complete. OpenCV does not report this.
        """
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            if not _is_complete_mp4(self._path):
                raise OSError(
                    errno.ENOSPC, "the video is not complete; is the disk full?", str(self._path)
                )

    def __exit__(self, kind: object, *raised: object) -> None:
        if kind is None:
            self.close()
        elif self._writer is not None:
            self._writer.release()


def _is_complete_mp4(path: Path) -> bool:
    """Whether a file ends with the end of its last box, and contains the index (`moov`)."""
    kinds = set()
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        position = 0
        while position < end:
            file.seek(position)
            header = file.read(16)
            if len(header) < 8:
                return False
            size = int.from_bytes(header[:4])
            if size == 1:  # a 64-bit size follows
                size = int.from_bytes(header[8:16])
            if size < 8:
                return False
            kinds.add(header[4:8])
            position += size
    return position == end and {b"moov", b"mdat"} <= kinds

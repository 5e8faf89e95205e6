"""Reading and writing of videos with OpenCV."""

import collections
import contextlib
import dataclasses
import errno
import itertools
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from jaxtyping import UInt8

from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.streams import camera_number, display_name, is_stream, open_stream
from lcgcn_jax.interrupts import deferred

MIN_RATE, MAX_RATE = 0.01, 240.0
"""Minimum frame rate of a written video, and maximum frame rate of a file.

A higher one in a file is a time base, such as 1000 in WebM files of browsers.
"""

CODEC = "mp4v"

# Maximum difference of frame durations at a constant rate, as a fraction of the median duration.
_DURATION_TOLERANCE = 0.02

_NUM_QUEUED = 3  # frames that wait between two threads
_NUM_TIMED = 10  # frames of a camera from which its frame rate is measured

T = TypeVar("T")


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
    """A video that is open for reading.

    Attributes:
      frames_per_second: frame rate; the mean rate if it varies.
      num_frames: number of frames that the file states; 0 if it states none, as streams do.
      frames: iterator over the frames, which another thread reads ahead.
    """

    frames_per_second: float
    num_frames: int
    frames: Iterator[Frame]


@contextlib.contextmanager
def open_video(
    source: str | os.PathLike, *, frames_per_second: float | None = None
) -> Iterator[Video]:
    """Open a video file, a camera or a network stream for reading.

    Frames have the time stamps of the file or stream, and those of a camera the time at which they are
    read. If a time stamp is missing or not later than the previous one, the frame follows the previous one
    at the frame rate.

    Args:
      source: path of the file, or a stream (`streams.is_stream`).
      frames_per_second: frame rate to use instead of the rate and the time stamps of the file.

    Raises:
      InputError: the video cannot be read, has no frame, or has no frame rate.
    """
    source = os.fspath(source)
    is_file = os.path.isfile(source)
    if not is_file and not is_stream(source):
        reason = "it is a folder" if os.path.isdir(source) else "no such file"
        raise InputError(f"{source}: cannot be read: {reason}; give a video, or a stream")
    name = source if is_file else display_name(source)
    capture = cv2.VideoCapture(opencv_path(source)) if is_file else open_stream(source)
    is_camera = not is_file and camera_number(source) is not None
    frames = _read_ahead(_camera_frames(capture) if is_camera else _stamped_frames(capture))
    try:
        first = list(itertools.islice(frames, _NUM_TIMED if is_camera else 2))
        if not first:
            raise InputError(f"{name}: no frame of a video can be read; give a complete video")
        rates = (capture.get(cv2.CAP_PROP_FPS), _rate([frame.time for frame in first]))
        possible = (rate for rate in (rates[::-1] if is_camera else rates) if 0 < rate <= MAX_RATE)
        rate = frames_per_second or next(possible, None)
        if rate is None:
            raise InputError(f"{name}: the frame rate is unknown; give it with --fps")
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        # Without a number of frames in the file, OpenCV multiplies its duration by its rate.
        is_count = math.isfinite(count) and count > 0 and 0 < rates[0] <= MAX_RATE
        num_frames = int(count) if is_count else 0
        stamped = itertools.chain(first, frames)
        if frames_per_second:
            stamped = (frame._replace(time=i / rate) for i, frame in enumerate(stamped))
        else:
            stamped = _increasing(stamped, 1 / rate)
        yield Video(float(rate), num_frames, stamped)
    finally:
        frames.close()  # before the capture, which another thread may be reading
        capture.release()


def opencv_path(path: str | os.PathLike) -> str:
    """Absolute path of a video for OpenCV.

    FFmpeg takes the start of a relative path such as `a:b.mp4` for a protocol.

    Raises:
      InputError: the path is not valid UTF-8, for which OpenCV 5.0 ends the process.
    """
    absolute = os.path.abspath(path)
    try:
        absolute.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(
            f"{os.fspath(path)}: a video needs a path in UTF-8; rename the file or its folder"
        ) from None
    return absolute


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


def _camera_frames(capture: Any) -> Iterator[Frame]:
    """Frames with the time at which they were read: cameras state unreliable time stamps."""
    start = None
    while True:
        readable, pixels = capture.read()
        if not readable:
            return
        now = time.monotonic()
        start = now if start is None else start
        yield Frame(now - start, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def _rate(times: list[float]) -> float:
    """Frame rate of the first frames; 0 if it is unknown."""
    steps = np.diff(times)
    step = float(np.median(steps)) if len(steps) else 0.0
    return 1 / step if step > 0 else 0.0


def _read_ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """Items of an iterator that another thread reads in advance."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="video-reader")
    try:
        pending = collections.deque(pool.submit(next, items, None) for _ in range(_NUM_QUEUED))
        while (item := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, items, None))
            yield item
    finally:
        with deferred():  # the thread uses the capture, which is released next
            pool.shutdown(cancel_futures=True)


class OrderedWorker(contextlib.AbstractContextManager):
    """Thread that runs calls in order, while the caller prepares the next ones.

    A call that raises an error is the last one; `submit` or the end of the block raises the error.
    """

    def __init__(self):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="video-writer")
        self._pending: collections.deque[Future] = collections.deque()
        self._has_failed = False

    def submit(self, function: Callable[..., object], *arguments: object) -> None:
        """Run a function in the thread; waits while several calls are waiting."""
        self._pending.append(self._pool.submit(self._run, function, *arguments))
        while len(self._pending) > _NUM_QUEUED:
            self._pending.popleft().result()

    def _run(self, function: Callable[..., object], *arguments: object) -> None:
        if self._has_failed:
            return
        try:
            function(*arguments)
        except BaseException:
            self._has_failed = True
            raise

    def __exit__(self, kind: object, *raised: object) -> None:
        """Wait for the calls; also after an error or a signal in the block, which takes precedence."""
        with deferred():
            self._pool.shutdown()
        errors = [error for future in self._pending if (error := future.exception())]
        if errors and (kind is None or isinstance(raised[0], KeyboardInterrupt)):
            raise errors[0]


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
    """Writer of RGB frames to an MP4 file (MPEG-4 part 2) at a constant rate.

    The codec requires even sizes: an odd width or height is increased by replicating the last pixel. Frames
    of another size than the first one are resized.
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
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        if bottom or right:
            bgr = cv2.copyMakeBorder(bgr, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        if self._writer is None:
            codec = cv2.VideoWriter.fourcc(*CODEC)
            self._size = (bgr.shape[1], bgr.shape[0])
            path = opencv_path(self._path)
            self._writer = cv2.VideoWriter(path, codec, max(self._rate, MIN_RATE), self._size)
            if not self._writer.isOpened():
                raise OSError(errno.EIO, "the video cannot be encoded", str(self._path))
        if self._size != (bgr.shape[1], bgr.shape[0]):  # OpenCV would leave out the frame
            bgr = cv2.resize(bgr, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(bgr)

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

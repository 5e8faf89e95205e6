import errno
import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.video import OrderedWorker, VideoWriter, open_video, opencv_path, varies

COLORS = [(230, 30, 30), (30, 200, 30), (40, 40, 220), (120, 120, 120)]


def write_video(path, *, width=96, height=64, rate=12.5, colors=COLORS):
    """Write a video of single-color frames."""
    with VideoWriter(path, frames_per_second=rate) as writer:
        for color in colors:
            writer.write(np.full((height, width, 3), color, np.uint8))
    return path


@pytest.mark.parametrize(
    ("width", "height", "even"), [(96, 64, (64, 96, 3)), (97, 63, (64, 98, 3))]
)
def test_written_video_can_be_read(tmp_path, width, height, even):
    path = write_video(tmp_path / "clip.mp4", width=width, height=height)
    with open_video(path) as video:
        assert video.num_frames == 4
        assert video.frames_per_second == 12.5
        frames = list(video.frames)
    assert len(frames) == 4
    assert frames[0].pixels.shape == even
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(4) / 12.5, atol=1e-9)
    for frame, color in zip(frames, COLORS, strict=True):
        assert np.abs(frame.pixels.mean(axis=(0, 1)) - color).max() < 8


def test_colon_in_a_relative_path_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_video(write_video(Path("a:b.mp4"))) as video:
        assert len(list(video.frames)) == 4


def test_rate_of_the_caller_is_used(tmp_path):
    with open_video(write_video(tmp_path / "clip.mp4"), frames_per_second=30.0) as video:
        assert video.frames_per_second == 30.0
        np.testing.assert_allclose([frame.time for frame in video.frames], np.arange(4) / 30)


class Capture:
    """Capture with known time stamps. Subclasses of OpenCV's class are freed incorrectly."""

    def __init__(self, stamps, rate):
        self._stamps, self._rate, self._next = stamps, rate, 0

    def read(self):
        self._next += 1
        return self._next <= len(self._stamps), np.zeros((20, 30, 3), np.uint8)

    def get(self, field):
        return {
            cv2.CAP_PROP_FPS: self._rate,
            cv2.CAP_PROP_FRAME_COUNT: -1.0,
            cv2.CAP_PROP_POS_MSEC: self._stamps[min(self._next, len(self._stamps)) - 1],
        }[field]

    def release(self):
        pass


def read_times(tmp_path, monkeypatch, stamps, rate):
    """Frame rate and frame times of a capture with these time stamps in milliseconds."""
    (tmp_path / "clip.mp4").touch()
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: Capture(stamps, rate))
    with open_video(tmp_path / "clip.mp4") as video:
        return video.frames_per_second, [round(frame.time, 6) for frame in video.frames]


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([0, 40, 80, 1080, 2080], [0, 0.04, 0.08, 1.08, 2.08]),
        ([500, 540, 580], [0.5, 0.54, 0.58]),
        ([0, 0, 0, 0], [0, 0.1, 0.2, 0.3]),
        ([0, 40, 40, 120], [0, 0.04, 0.14, 0.22]),
        ([0, 40, 80, 0, 40, 80], [0, 0.04, 0.08, 0.18, 0.22, 0.26]),
        ([float("nan")] * 3, [0, 0.1, 0.2]),
        ([0, 40, float("nan"), 120], [0, 0.04, 0.14, 0.24]),
        ([-40, 0, 40], [-0.04, 0, 0.04]),
        ([0], [0]),
    ],
    ids=[
        "variable",
        "late start",
        "constant",
        "duplicate",
        "restart",
        "nan",
        "one nan",
        "negative",
        "one frame",
    ],
)
def test_times_of_frames_increase(tmp_path, monkeypatch, stamps, expected):
    assert read_times(tmp_path, monkeypatch, stamps, 10.0) == (10.0, expected)


@pytest.mark.parametrize("rate", [0.0, float("nan"), 1000.0, -1.0])
def test_missing_rate_is_that_of_the_first_frames(tmp_path, monkeypatch, rate):
    assert read_times(tmp_path, monkeypatch, [0, 40, 100], rate) == (25.0, [0, 0.04, 0.1])


@pytest.mark.parametrize("stamps", [[0], [0, 0, 0], [float("nan")] * 2])
def test_unknown_rate_is_an_error(tmp_path, monkeypatch, stamps):
    with pytest.raises(
        InputError, match=r"clip\.mp4: the frame rate is unknown; give it with --fps"
    ):
        read_times(tmp_path, monkeypatch, stamps, 0.0)
    with open_video(tmp_path / "clip.mp4", frames_per_second=25.0) as video:
        assert (video.frames_per_second, video.num_frames) == (25.0, 0)
        assert len(list(video.frames)) == len(stamps)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mov", ".mjpeg", ".mpg"])
def test_times_in_other_containers(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    codec = "MJPG" if suffix in (".avi", ".mjpeg") else "MPEG" if suffix == ".mpg" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25, (96, 64))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write it")
    for color in COLORS:
        writer.write(np.full((64, 96, 3), color, np.uint8))
    writer.release()
    with open_video(path) as video:
        times = [frame.time for frame in video.frames]
        rate = video.frames_per_second
    np.testing.assert_allclose(times, np.arange(4) / rate, atol=1e-3)
    assert not varies(times)


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv"])
def test_variable_frame_rate(shared, name):
    with open_video(shared / "cases/variable_frame_rate" / name) as video:
        times = [frame.time for frame in video.frames]
    np.testing.assert_allclose(times, [0, 0.04, 0.08, 0.12, 1.12, 2.12, 3.12, 4.12], atol=1e-6)
    assert varies(times)


def test_rounded_times_have_a_constant_rate():
    assert not varies([round(i / 29.97, 3) for i in range(90)])
    assert not varies([0.0])


def test_truncated_output_is_an_error(tmp_path, monkeypatch):
    complete = write_video(tmp_path / "complete.mp4").read_bytes()
    for cut in (1, 100, len(complete) // 2, len(complete) - 40):
        path = tmp_path / "clip.mp4"
        writer = VideoWriter(path, frames_per_second=25.0)
        writer.write(np.zeros((64, 96, 3), np.uint8))

        class Cut:
            def release(self, path=path, cut=cut):
                path.write_bytes(complete[:-cut])

        writer._writer = Cut()
        with pytest.raises(OSError, match="is the disk full"):
            writer.close()


@pytest.mark.parametrize("content", [b"", b"not a video" * 99, None])
def test_invalid_video_is_an_error(tmp_path, content):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"clip\.mp4: (no frame of a video|cannot be read)"):
        open_video(path).__enter__()


def test_video_without_frames_is_an_error(tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes()[:48])
    with pytest.raises(InputError, match="no frame of a video can be read"):
        open_video(path).__enter__()


def test_missing_output_folder_is_an_error(tmp_path):
    with pytest.raises(OSError, match="cannot be encoded"):
        write_video(tmp_path / "nowhere" / "clip.mp4")


def test_frames_of_another_size_are_resized(tmp_path):
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, frames_per_second=25.0) as writer:
        for size, color in zip([(64, 96), (32, 48), (65, 97)], COLORS, strict=False):
            writer.write(np.full((*size, 3), color, np.uint8))
    with open_video(path) as video:
        frames = list(video.frames)
    assert [frame.pixels.shape for frame in frames] == [(64, 96, 3)] * 3
    for frame, color in zip(frames, COLORS, strict=False):
        assert np.abs(frame.pixels.mean(axis=(0, 1)) - color).max() < 8


def test_reading_thread_ends_with_the_video(tmp_path):
    before = threading.active_count()
    with open_video(write_video(tmp_path / "clip.mp4", colors=COLORS * 5)) as video:
        next(video.frames)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_worker_runs_calls_in_order_and_raises_the_first_error():
    calls = []

    def call(number):
        calls.append(number)
        if number == 5:
            raise OSError(errno.ENOSPC, "full")

    def run(numbers, error=None):
        with OrderedWorker() as worker:
            for number in numbers:
                worker.submit(call, number)
            if error is not None:
                raise error

    with pytest.raises(OSError, match="full"):
        run(range(1000))
    assert calls == list(range(6))
    with pytest.raises(OSError, match="full"):
        run([5])
    with pytest.raises(KeyError):
        run([5], KeyError())


def test_path_that_is_not_utf_8_is_an_error(tmp_path):
    path = tmp_path / os.fsdecode(b"m\xe9.mp4")
    try:
        path.touch()
    except OSError:
        pytest.skip("the file system has only names in UTF-8")
    for call in (lambda: open_video(path).__enter__(), lambda: opencv_path(path)):
        with pytest.raises(InputError, match="a video needs a path in UTF-8; rename"):
            call()


def test_folder_is_no_video(tmp_path):
    with pytest.raises(InputError, match="cannot be read: it is a folder; give a video"):
        open_video(tmp_path).__enter__()

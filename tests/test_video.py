import cv2
import numpy as np
import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.video import VideoWriter, open_video

COLOURS = [(230, 30, 30), (30, 200, 30), (40, 40, 220), (120, 120, 120)]


def make(path, *, width=96, height=64, rate=12.5, colours=COLOURS):
    """A video of one-coloured frames."""
    with VideoWriter(path, frames_per_second=rate) as writer:
        for colour in colours:
            writer.write(np.full((height, width, 3), colour, np.uint8))
    return path


@pytest.mark.parametrize(
    ("width", "height", "even"), [(96, 64, (64, 96, 3)), (97, 63, (64, 98, 3))]
)
def test_what_is_written_can_be_read(tmp_path, width, height, even):
    path = make(tmp_path / "clip.mp4", width=width, height=height)
    with open_video(path) as video:
        assert video.num_frames == 4
        assert video.frames_per_second == 12.5
        frames = list(video.frames)
    assert len(frames) == 4
    assert frames[0].shape == even
    for frame, colour in zip(frames, COLOURS, strict=True):
        assert np.abs(frame.mean(axis=(0, 1)) - colour).max() < 8


def test_rate_that_is_given_is_taken(tmp_path):
    with open_video(make(tmp_path / "clip.mp4"), frames_per_second=30.0) as video:
        assert video.frames_per_second == 30.0


class Rateless:
    """A capture of one frame that knows no rate. OpenCV's own class frees its subclasses wrongly."""

    def __init__(self, path):
        self.left = 1

    def read(self):
        self.left -= 1
        return self.left >= 0, np.zeros((20, 30, 3), np.uint8)

    def get(self, field):
        return {cv2.CAP_PROP_FPS: 0.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}[field]

    def release(self):
        pass


def test_unknown_rate_is_asked_for(tmp_path, monkeypatch):
    path = make(tmp_path / "clip.mp4")
    monkeypatch.setattr(cv2, "VideoCapture", Rateless)
    with pytest.raises(
        InputError, match=r"clip\.mp4: the frame rate is not known; give it by --fps"
    ):
        open_video(path).__enter__()
    with open_video(path, frames_per_second=25.0) as video:
        assert (video.frames_per_second, video.num_frames) == (25.0, 0)
        assert len(list(video.frames)) == 1


@pytest.mark.parametrize("content", [b"", b"no video at all" * 99, None])
def test_what_is_no_video_is_named(tmp_path, content):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"clip\.mp4: (no frame of a video|cannot be read)"):
        open_video(path).__enter__()


def test_video_without_a_frame_is_named(tmp_path):
    path = make(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes()[:48])
    with pytest.raises(InputError, match="no frame of a video can be read"):
        open_video(path).__enter__()


def test_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match="cannot be encoded"):
        make(tmp_path / "nowhere" / "clip.mp4")

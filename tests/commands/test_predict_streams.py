"""`lcgcn predict` for cameras and network streams, with a fake model and camera."""

import json
import os
import signal

import cv2
import numpy as np
import pytest
import rtsp_server

from lcgcn_jax.app.uploads import SAMPLE
from lcgcn_jax.commands import predict
from lcgcn_jax.commands.main import main
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.inference.video import open_video
from lcgcn_jax.landmarks import LandmarkScheme

SCHEME = LandmarkScheme.from_dict({"name": "three", "names": ["tip", "left", "right"]})
VideoCapture = cv2.VideoCapture


class Model(LandmarkModel):
    """Fake model with three points in each box."""

    def __init__(self):
        self.scheme, self.config, self.image_size, self.crops = SCHEME, {"graph": None}, 64, []

    def predict_crops(self, crops):
        self.crops.append(crops)

    def predict_boxed(self, images, **_):
        points = np.array([[10.0, 10.0], [20.0, 10.0], [15.0, 20.0]])
        return [
            [Face(box, points, np.ones(3, np.float32), points) for box in image.boxes]
            for image in images
        ]


class Camera:
    """Endless camera, which can raise a signal at a frame."""

    stop_at = None

    def __init__(self, number):
        assert number == 0
        self.count = 0

    def isOpened(self):
        return True

    def read(self):
        self.count += 1
        if self.count == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return True, np.full((64, 96, 3), self.count % 250, np.uint8)

    def get(self, field):
        return -1.0

    def release(self):
        pass


@pytest.fixture
def model(monkeypatch):
    model = Model()
    monkeypatch.setattr(predict, "load_model", lambda *args, **kwargs: model)
    return model


@pytest.fixture
def run(tmp_path, model, monkeypatch, capsys):
    """Function that runs `lcgcn predict camera:0`; returns the exit code and the last line of errors."""

    def open_capture(source, *arguments):
        return Camera(source) if source == 0 else VideoCapture(source, *arguments)

    monkeypatch.setattr(cv2, "VideoCapture", open_capture)

    def run(*arguments):
        fixed = ["predict", "--model", "m", "--whole-image", "--out", tmp_path / "out"]
        code = main([str(a) for a in (*fixed, *arguments)])
        return code, capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1:]

    before = signal.getsignal(signal.SIGINT)
    yield run
    signal.signal(signal.SIGINT, before)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def count_frames(path):
    with open_video(path) as video:
        return len(list(video.frames))


def test_camera_ends_after_the_maximum_number_of_frames(run, model, tmp_path):
    assert run("camera:0", "--max-frames", 12, "--fps", 25)[0] == 0
    lines = lines_of(tmp_path / "out/camera0.jsonl")
    assert [line["time"] for line in lines] == [i / 25 for i in range(12)]
    assert [line["faces"][0]["track"] for line in lines] == [0] * 12
    assert count_frames(tmp_path / "out/camera0.mp4") == 12
    assert model.crops[0].shape == (1, 64, 64, 3), "compiled before the camera is opened"


def test_interrupted_camera_has_its_usual_files(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Camera, "stop_at", 30)
    code, (message,) = run("camera:0", "--fps", 25)
    out = tmp_path / "out"
    assert code == 130
    lines = lines_of(out / "camera0.jsonl")
    assert message == (
        f"lcgcn: stopped by SIGINT; 0 of 1 inputs are finished; camera:0: {len(lines)} frames "
        f"in {out}/camera0.jsonl and {out}/camera0.mp4"
    )
    assert count_frames(out / "camera0.mp4") == len(lines) > 0
    assert sorted(path.name for path in out.iterdir()) == ["camera0.jsonl", "camera0.mp4"]


def test_rtsp_stream_with_a_password(run, tmp_path):
    images = [np.full((64, 96, 3), 20 * i, np.uint8) for i in range(10)]
    with rtsp_server.serve(images, rate=12.5, user="me:secret") as address:
        assert run(address)[0] == 0
        assert run(address, "--max-frames", 3, "--out", tmp_path / "first")[0] == 0
    lines = lines_of(tmp_path / "out/127.0.0.1_live.jsonl")
    times = [line["time"] for line in lines]
    np.testing.assert_allclose(times, np.arange(10) / 12.5, atol=1e-3)
    assert count_frames(tmp_path / "out/127.0.0.1_live.mp4") == 10
    assert len(lines_of(tmp_path / "first/127.0.0.1_live.jsonl")) == 3


@pytest.mark.slow
def test_faces_of_an_rtsp_stream_are_tracked(tmp_path, detector_model):
    image = cv2.resize(read_image(SAMPLE), (480, 480), interpolation=cv2.INTER_AREA)
    images = [np.roll(image, 4 * i, axis=1) for i in range(12)]
    with rtsp_server.serve(images) as address:
        command = ["predict", address, "--out", tmp_path, "--detector-model", detector_model]
        assert main([*map(str, command)]) == 0
    lines = lines_of(tmp_path / "127.0.0.1_live.jsonl")
    assert [[face["track"] for face in line["faces"]] for line in lines] == [[0]] * 12
    x = [line["faces"][0]["landmarks"][30][0] for line in lines]
    np.testing.assert_allclose(np.diff(x), 4, atol=2)


@pytest.mark.parametrize("source", ["camera:99", "http://me:secret@127.0.0.1:9/clip.mp4"])
def test_stream_that_cannot_be_opened(run, tmp_path, source):
    code, (message,) = run(source)
    assert code == 2
    name = source.replace("me:secret@", "")
    assert message.startswith(f"lcgcn: error: {name}: cannot be opened; check ")
    assert not (tmp_path / "out").exists()


def test_video_ends_after_the_maximum_number_of_frames(run, tmp_path):
    assert run("camera:0", "--max-frames", 5, "--fps", 10)[0] == 0
    clip = (tmp_path / "out/camera0.mp4").rename(tmp_path / "clip.mp4")
    assert run(clip, "--max-frames", 3)[0] == 0
    assert len(lines_of(tmp_path / "out/clip.jsonl")) == 3

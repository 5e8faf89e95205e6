"""Webcam frames of one browser session."""

import numpy as np
import pytest

from lcgcn_jax.app import webcam
from lcgcn_jax.app.webcam import Webcam
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.landmarks import LandmarkScheme

SCHEME = LandmarkScheme.from_dict({"name": "three", "names": ["tip", "left", "right"]})
POINTS = np.array([[20.0, 60.0], [40.0, 60.0], [30.0, 80.0]])


class Model(LandmarkModel):
    """Model that is not used."""

    def __init__(self):
        pass


class Tracker:
    """Tracker that returns as many faces as it has got frames, and records their sizes and times."""

    def __init__(self, model, **options):
        self.model, self.frames, self.times, self.options = model, [], [], options

    def update(self, image, time):
        self.frames.append(image)
        self.times.append(time)
        return [
            Face(np.array([20.0, 60, 40, 80]) + 40 * i, POINTS + 40 * i, np.ones(3, np.float32),
                 POINTS, scheme=SCHEME, track=i + 3)
            for i in range(len(self.times))
        ]  # fmt: skip


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that advances by 0.1 s per frame, and a fake tracker."""
    times = iter(np.arange(1, 1000) / 10)
    monkeypatch.setattr(webcam.time, "monotonic", lambda: float(next(times)))
    monkeypatch.setattr(webcam, "FaceTracker", Tracker)


def test_a_session_keeps_its_tracker():
    session, model = Webcam(), Model()
    frame = np.zeros((240, 320, 4), np.uint8)
    texts = [session.predict(frame, model)[1] for _ in range(2)]
    assert texts == [
        "1 face (track 3), 0.0 frames per second",
        "2 faces (tracks 3, 4), 10.0 frames per second",
    ]
    assert session._tracker.options == {"smooth": True}
    assert session._tracker.times == [0.1, 0.2]
    # Another session, and another model, have their own tracks.
    assert Webcam().predict(frame, model)[1].startswith("1 face (track 3), 0.0 ")
    assert session.predict(frame, Model())[1].startswith("1 face (track 3), 0.0 ")
    for _ in range(50):
        session.predict(frame, session._tracker.model)
    assert len(session._times) == 10


def test_large_frames_are_scaled_down_and_several_faces_have_numbers():
    session, model = Webcam(), Model()
    frame = np.zeros((1080, 1920, 3), np.uint8)
    one, _ = session.predict(frame, model)
    two, _ = session.predict(frame, model)
    assert one.shape == two.shape == (540, 960, 3)
    number = slice(40, 56), slice(20, 34)  # above the first face
    assert not one[number].any()
    assert two[number].any()

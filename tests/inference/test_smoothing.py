import numpy as np
import pytest

from lcgcn_jax.inference.smoothing import OneEuroFilter


def smooth_track(landmarks, rate=25.0, side=100.0):
    one_euro = OneEuroFilter()
    return np.stack(
        [one_euro(points, time=i / rate, side=side) for i, points in enumerate(landmarks)]
    )


def test_jitter_of_a_face_at_rest_is_reduced():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 100, (1, 20, 2))
    noisy = truth + rng.normal(0, 0.5, (100, 20, 2))
    smooth = smooth_track(noisy)
    np.testing.assert_array_equal(smooth[0], noisy[0])
    assert (
        np.abs(np.diff(smooth[20:], axis=0)).mean() < 0.35 * np.abs(np.diff(noisy, axis=0)).mean()
    )
    assert np.abs(smooth[20:] - truth).mean() < 0.7 * np.abs(noisy[20:] - truth).mean()


FACE = np.random.default_rng(2).uniform(-50, 50, (20, 2))


def rotation(degrees):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, sin], [-sin, cos]])


@pytest.mark.parametrize(
    ("motion", "limit"),
    [
        (lambda t: FACE + 100 * t, 0.1),  # 1.4 face sides per second
        (lambda t: FACE @ rotation(12 * t), 0.1),
        (lambda t: FACE * 1.2**t, 0.1),
        (lambda t: FACE + 50 * np.sin(3.5 * t), 3.5),
    ],
    ids=["translation", "rotation", "scale", "oscillation"],
)
def test_moving_face_has_little_lag(motion, limit):
    truth = np.stack([motion(i / 25) for i in range(100)])
    lag = np.linalg.norm(smooth_track(truth) - truth, axis=-1)[40:].max()
    assert lag < limit


def test_face_that_stops_is_not_overshot():
    truth = np.stack([FACE + 100 * min(i / 25, 2) for i in range(100)])
    error = np.linalg.norm(smooth_track(truth) - truth, axis=-1).max(axis=1)
    assert error[50:].max() < 4
    assert error[65:].max() < 0.5


def test_one_landmark_that_moves_is_followed():
    """For example of an eyelid: it is not part of the rigid motion."""
    truth = np.tile(FACE, (50, 1, 1))
    truth[25:, 0] += 5
    result = smooth_track(truth)
    assert np.abs(result[35:, 0] - truth[35:, 0]).max() < 0.5
    assert np.abs(result[:, 1:] - truth[:, 1:]).max() < 1


def test_coinciding_landmarks_are_smoothed():
    assert np.isfinite(smooth_track(np.ones((5, 3, 2)) * np.arange(5)[:, None, None])).all()


def test_smoothing_does_not_depend_on_the_resolution():
    rng = np.random.default_rng(1)
    track = np.cumsum(rng.normal(0, 2, (30, 5, 2)), axis=0)
    np.testing.assert_allclose(smooth_track(3 * track, side=300.0), 3 * smooth_track(track))


def test_results_of_the_filter_are_copies():
    one_euro = OneEuroFilter()
    first = one_euro(np.zeros((3, 2)), time=0.0, side=10.0)
    one_euro(np.ones((3, 2)), time=0.1, side=10.0)
    assert not first.any()

import numpy as np

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


def test_lag_of_a_moving_face_is_limited():
    """At one face side per second, the lag is below 3 % of a side, and larger with a constant cutoff."""
    truth = np.linspace(0, 400, 101)[:, None, None] * np.ones((1, 5, 2)) / np.sqrt(2)
    lag = np.linalg.norm(smooth_track(truth) - truth, axis=-1)[25:].max()
    assert lag < 3
    slow = np.linalg.norm(smooth_track(truth, side=1e6) - truth, axis=-1)[25:].max()
    assert slow > 8


def test_smoothing_does_not_depend_on_the_resolution():
    rng = np.random.default_rng(1)
    track = np.cumsum(rng.normal(0, 2, (30, 5, 2)), axis=0)
    np.testing.assert_allclose(smooth_track(3 * track, side=300.0), 3 * smooth_track(track))


def test_results_of_the_filter_are_copies():
    one_euro = OneEuroFilter()
    first = one_euro(np.zeros((3, 2)), time=0.0, side=10.0)
    one_euro(np.ones((3, 2)), time=0.1, side=10.0)
    assert not first.any()

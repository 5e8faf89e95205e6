import numpy as np
import pytest

from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.track_matching import (
    Track,
    assign,
    is_same,
    shape_distance,
    side_of,
)

RNG = np.random.default_rng(0)
SHAPES = RNG.uniform(0, 100, (2, 20, 2))


def face(center, shape=0, side=100.0):
    points = SHAPES[shape] - SHAPES[shape].mean(axis=0)
    points = np.array(center) + side / side_of(points) * points
    return Face(np.zeros(4), points, np.ones(20), points)


def followed(centers, rate=25.0, **options):
    """Track that was updated by a face at each center, in successive frames."""
    track = Track(0, face(centers[0], **options), 0.0)
    for i, center in enumerate(centers[1:], start=1):
        track.predict(i / rate)
        track.update(face(center, **options))
    return track


def test_motion_is_extrapolated():
    track = followed([(10.0 * i, 5.0 * i) for i in range(8)])
    track.predict(8 / 25)
    expected = face((80.0, 40.0)).landmarks
    np.testing.assert_allclose(track.landmarks(), expected, atol=3)


def test_growing_face_is_extrapolated():
    track = Track(0, face((0, 0)), 0.0)
    for i in range(1, 8):
        track.predict(i / 25)
        track.update(face((0, 0), side=100 * 1.03**i))
    track.predict(8 / 25)
    assert side_of(track.landmarks()) == pytest.approx(100 * 1.03**8, rel=0.015)


def test_uncertainty_increases_without_observations():
    track = followed([(0, 0)] * 5)
    uncertainties = []
    for i in range(5, 30):
        track.predict(i / 25)
        uncertainties.append(track.uncertainty)
    assert (np.diff(uncertainties) > 0).all()
    assert uncertainties[0] < 0.1
    assert 0.5 < uncertainties[-1] < 3


def test_noise_is_relative_to_the_size():
    small, large = (followed([(s * i, 0.0) for i in range(5)], side=10.0 * s) for s in (1, 20))
    for track in (small, large):
        track.predict(5 / 25)
    costs = [
        track.cost(face((s * 5.5, 0.3 * s), side=10.5 * s))
        for track, s in ((small, 1), (large, 20))
    ]
    assert costs[0] == pytest.approx(costs[1])


def test_crossing_faces_keep_their_tracks():
    """At the crossing, IoU would assign each face to the other track."""
    first = followed([(20.0 * i, 0) for i in range(6)])
    second = followed([(200 - 20.0 * i, 0) for i in range(6)], shape=1)
    for track in (first, second):
        track.predict(6 / 25)
    faces = [face((80, 0), shape=1), face((120, 0))]
    assert assign([first, second], faces) == [1, 0]


def test_shape_decides_between_faces_at_one_place():
    tracks = [followed([(0, 0)] * 5, shape=shape) for shape in (0, 1)]
    for track in tracks:
        track.predict(5 / 25)
    assert assign(tracks, [face((1, 0), shape=1)]) == [1]
    assert assign(tracks, [face((1, 0), shape=1), face((-1, 0))]) == [1, 0]


def test_uncertain_track_does_not_attract_the_faces_of_others():
    missing = followed([(30, 0)] * 5)
    live = followed([(0, 0)] * 15)
    for track in (missing, live):
        track.predict(15 / 25)
    assert assign([missing, live], [face((10, 0))]) == [1]


def test_distant_and_unlike_faces_have_no_track():
    track = followed([(0, 0)] * 5)
    track.predict(5 / 25)
    assert assign([track], [face((90, 0))]) == [None]
    assert assign([track], [face((0, 0), side=200)]) == [None]
    assert assign([track], [face((0, 0), shape=1)]) == [None]
    assert assign([track], []) == []
    assert assign([], [face((0, 0))]) == [None]


def test_shape_distance_ignores_similarities():
    first, second = SHAPES
    turned = 3 * first @ np.array([[0.6, -0.8], [0.8, 0.6]]) + 50
    assert shape_distance(first, turned) == pytest.approx(0, abs=1e-6)
    assert shape_distance(first, second) == pytest.approx(shape_distance(turned, second))
    assert shape_distance(first, second) > 0.5
    mirrored = first * [-1, 1]
    assert shape_distance(first, mirrored) > 0.3
    assert shape_distance(first[:1], second[:1]) == 0.0


def test_predictions_of_one_face():
    assert is_same(face((0, 0)).landmarks, face((20, 0)).landmarks)
    assert not is_same(face((0, 0)).landmarks, face((40, 0)).landmarks)

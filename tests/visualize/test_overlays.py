"""Tests of `visualize.overlays`."""

import numpy as np
import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.face import Face
from lcgcn_jax.landmarks import IBUG68, LandmarkScheme
from lcgcn_jax.visualize import overlays
from lcgcn_jax.visualize.landmark_details import draw_incoming_edges

NO_LINES = LandmarkScheme.from_dict({"name": "points", "num_landmarks": 68})


def faces_of(*positions):
    """Faces with random landmarks in a square of 60 px at each of the positions."""
    unit = np.random.default_rng(0).uniform(0, 60, (68, 2))
    return [unit + np.array(position, float) for position in positions]


def test_one_face_or_any_iterable_of_faces_is_drawn():
    points = np.random.default_rng(0).uniform(10, 50, (68, 2)).astype(np.float32)
    face = Face(np.array([5.0, 5, 55, 55]), points, np.ones(68, np.float32), points, scheme=IBUG68)
    image = np.zeros((60, 60, 3), np.uint8)
    expected = overlays.draw(image, [face])
    assert expected.any()
    np.testing.assert_array_equal(overlays.draw(image, face), expected)
    np.testing.assert_array_equal(overlays.draw(image, iter([face])), expected)


def test_points_are_colored_by_confidence():
    image = np.full((400, 600, 3), 128, np.uint8)
    landmarks = np.stack(np.meshgrid(np.arange(17) * 30, np.arange(4) * 40), -1).reshape(-1, 2)
    landmarks = landmarks + np.array([60.0, 20.0])
    confidence = np.linspace(0, 1, 68, dtype=np.float32)
    drawn = overlays.draw_faces(image, [landmarks], [confidence], IBUG68, sides=[300.0])
    first, last = (drawn[int(y), int(x)].astype(int) for x, y in (landmarks[0], landmarks[67]))
    # Both ends of viridis: dark violet and yellow.
    assert np.abs(first - (68, 1, 84)).max() <= 6
    assert np.abs(last - (253, 231, 37)).max() <= 6
    assert (image == 128).all(), "the input must not change"


def test_each_contour_has_a_different_color():
    assert len(set(overlays.CONTOUR_COLORS)) == len(overlays.CONTOUR_COLORS) >= len(IBUG68.contours)
    image = np.zeros((400, 400, 3), np.uint8)
    landmarks = np.zeros((68, 2))
    landmarks[:17, 0], landmarks[:17, 1] = np.linspace(50, 350, 17), 100.0
    drawn = overlays.draw_faces(
        image, [landmarks], [np.ones(68, np.float32)], IBUG68, sides=[100.0]
    )
    # Between two points of the jaw.
    assert np.abs(drawn[100, 60].astype(int) - overlays.CONTOUR_COLORS[0]).max() < 25


def test_the_strongest_edges_are_drawn():
    image = np.zeros((600, 600, 3), np.uint8)
    landmarks = np.random.default_rng(3).uniform(20, 160, (68, 2))
    landmarks[5], landmarks[9] = (300.0, 500.0), (560.0, 500.0)
    weights = np.full((68, 68), 0.001, np.float32)
    np.fill_diagonal(weights, 0.9)
    weights[5, 9] = 0.5
    arguments = ([landmarks], [np.ones(68, np.float32)], IBUG68)
    plain = overlays.draw_faces(image, *arguments, sides=[90.0])
    drawn = overlays.draw_faces(image, *arguments, sides=[90.0], edges=[weights])
    assert not plain[500, 430].any()
    assert (drawn[500, 430] > 200).all()


def test_edges_of_landmarks_without_a_position_are_not_drawn():
    image = np.zeros((200, 200, 3), np.uint8)
    landmarks = np.full((68, 2), np.nan)
    landmarks[0] = 150.0
    weights = np.full((68, 68), 1 / 68, np.float32)
    arguments = ([landmarks], [np.ones(68, np.float32)], IBUG68)
    plain = overlays.draw_faces(image, *arguments, sides=[90.0])
    drawn = overlays.draw_faces(image, *arguments, sides=[90.0], edges=[weights])
    np.testing.assert_array_equal(drawn, plain)
    edges = [(1, 0.5), (2, 0.3)]
    for landmark, changed in ((0, True), (1, False)):
        detail = draw_incoming_edges(image, landmarks, landmark, edges)
        assert detail.any() == changed  # the circle around the landmark
        assert not detail[:100, :100].any()


@pytest.mark.parametrize("width", [60, 170, 300, 2000])
def test_legend_is_below_the_image(width):
    image = np.full((40, width, 3), 200, np.uint8)
    drawn = overlays.draw_faces(image, [], [], IBUG68, sides=[])
    assert drawn.shape[1] == width
    np.testing.assert_array_equal(drawn[:40], image)
    if width < 100:
        assert len(drawn) == 40
    else:
        colors = {tuple(pixel) for pixel in drawn[40:].reshape(-1, 3).tolist()}
        assert colors >= set(overlays.CONTOUR_COLORS[: len(IBUG68.contours)])


def test_landmarks_far_outside_the_image_are_not_drawn():
    image = np.zeros((50, 50, 3), np.uint8)
    for landmarks in faces_of((1e9, 0), (-1e9, 1e12)):
        drawn = overlays.draw_faces(
            image, [landmarks], [np.ones(68, np.float32)], IBUG68, sides=[40.0]
        )
        assert not drawn[:50].any()


def test_landmarks_that_are_not_visible_are_rings():
    image = np.full((400, 600, 3), 128, np.uint8)
    landmarks = np.full((68, 2), np.nan)
    landmarks[:] = np.stack(np.meshgrid(np.arange(17) * 30, np.arange(4) * 90), -1).reshape(-1, 2)
    landmarks = landmarks + np.array([60.0, 50.0])
    visibility = np.ones(68, np.float32)
    visibility[[3, 40]] = 0.49
    arguments = ([landmarks], [np.ones(68, np.float32)], NO_LINES)
    drawn = overlays.draw_faces(image, *arguments, sides=[300.0], visibility=[visibility])
    for i, (x, y) in enumerate(landmarks.astype(int)):
        is_hollow = i in (3, 40)
        assert (drawn[y, x] == 128).all() == is_hollow
        # The rim has the color of the confidence.
        neighborhood = drawn[y - 6 : y + 7, x - 6 : x + 7].reshape(-1, 3).astype(int)
        assert (np.abs(neighborhood - (253, 231, 37)).max(axis=1) < 60).any()
    legends = [
        overlays.draw_faces(image, *arguments, sides=[300.0], visibility=values)[400:]
        for values in (None, [None], [visibility])
    ]
    np.testing.assert_array_equal(legends[0], legends[1])
    assert legends[0].shape != legends[2].shape or not np.array_equal(legends[0], legends[2])


@pytest.mark.parametrize("scheme", [IBUG68, NO_LINES])
def test_face_that_is_not_reliable_is_dashed(scheme):
    """Its lines have gaps, and the box of its landmarks is drawn."""
    image = np.zeros((300, 300, 3), np.uint8)
    landmarks = np.zeros((68, 2))
    angle = np.linspace(0, 2 * np.pi, 68)
    landmarks[:] = 150 + 100 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    landmarks[3] = np.nan
    arguments = ([landmarks], [np.ones(68, np.float32)], scheme)
    solid, same, dashed = (
        overlays.draw_faces(image, *arguments, sides=[150.0], reliable=reliable)
        for reliable in (None, [True], [False])
    )
    np.testing.assert_array_equal(solid, same)
    edge = dashed[50, 60:240].max(axis=1) > 128  # upper edge of the box
    assert 0.2 < edge.mean() < 0.8
    assert np.count_nonzero(np.diff(edge.astype(int))) >= 10
    assert not solid[50, 60:120].any()
    assert len(dashed) >= len(solid)


def test_dashes_follow_a_line():
    corner = np.array([[0.0, 0], [10, 0], [10, 10]])
    expected = [[[0, 0], [4, 0]], [[8, 0], [10, 0], [10, 2]], [[10, 6], [10, 10]]]
    assert [dash.tolist() for dash in overlays._dashes(corner, 4.0)] == expected
    assert overlays._dashes(np.full((3, 2), np.nan), 4.0) == []
    assert overlays._dashes(np.array([[0, 0], [1e9, 0]]), 4.0) == []


@pytest.mark.parametrize("place", [(100.0, 100.0), (-1e9, 1e9), (np.nan, np.nan)])
def test_tracks_of_several_faces_are_numbered(place):
    image, confidence = np.zeros((200, 200, 3), np.uint8), np.ones(68)
    faces = [np.full((68, 2), 30.0), np.full((68, 2), 1.0) * place]
    arguments = (image, faces, [confidence] * 2, IBUG68)
    plain = overlays.draw_faces(*arguments, sides=[50.0] * 2)
    assert (overlays.draw_faces(*arguments, sides=[50.0] * 2, tracks=[None, None]) == plain).all()
    numbered = overlays.draw_faces(*arguments, sides=[50.0] * 2, tracks=[7, 8])
    is_changed = (numbered != plain).any(axis=2)
    assert is_changed[12:30, 28:45].any()
    assert is_changed.sum() < 600
    one = (image, faces[:1], [confidence], IBUG68)
    assert (
        overlays.draw_faces(*one, sides=[50.0], tracks=[7])
        == overlays.draw_faces(*one, sides=[50.0])
    ).all()


@pytest.mark.parametrize("faces", [None, [[]], ["face"], 5])
@pytest.mark.usefixtures("without_type_checks")
def test_other_values_than_faces_are_errors(faces):
    with pytest.raises(InputError, match=r"draw: .*give"):
        overlays.draw(np.zeros((60, 60, 3), np.uint8), faces)

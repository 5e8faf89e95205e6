"""Tests of `visualize.faces`."""

import cv2
import numpy as np
import pytest

from lcgcn_jax.landmarks import IBUG68
from lcgcn_jax.visualize.faces import draw_landmarks, draw_text, enlarge


@pytest.mark.parametrize("point", [(20.0, 30.0), (20.5, 30.25)])
def test_landmarks_are_drawn_with_subpixel_precision(point):
    image = np.zeros((60, 60, 3), np.uint8)
    landmarks = np.tile(point, (68, 1))
    drawn = draw_landmarks(image, landmarks, IBUG68, radius=3.0, contours=False)
    weight = drawn.astype(float).sum(axis=2)
    ys, xs = np.mgrid[:60, :60]
    center = (weight * xs).sum() / weight.sum(), (weight * ys).sum() / weight.sum()
    np.testing.assert_allclose(center, point, atol=0.1)
    assert not image.any(), "the input must not change"


def test_enlarge_keeps_points_on_their_pixels():
    image = np.zeros((20, 20, 3), np.uint8)
    image[7, 5] = 255
    large, points = enlarge(image, np.array([[5.0, 7.0]]), 4)
    ys, xs = np.mgrid[:80, :80]
    weight = large[..., 0].astype(float)
    center = (weight * xs).sum() / weight.sum(), (weight * ys).sum() / weight.sum()
    np.testing.assert_allclose(points[0], center, atol=0.1)


def test_missing_landmarks_are_not_drawn():
    image = np.zeros((60, 60, 3), np.uint8)
    landmarks = np.full((68, 2), np.nan)
    assert not draw_landmarks(image, landmarks, IBUG68).any()
    # Of the jaw contour, only the segment between two located neighbors is drawn.
    landmarks[[3, 4, 6]] = [[10, 10], [30, 10], [50, 50]]
    drawn = draw_landmarks(image, landmarks, IBUG68, radius=1.0).any(axis=2)
    assert drawn[10, 10:31].all()
    assert drawn[50, 50]
    assert not drawn[15:45].any()


def test_outline_of_a_long_text_is_at_its_characters():
    canvas = np.full((60, 400, 3), 120, np.uint8)
    draw_text(canvas, "a long text (with many characters)", (6, 30), 0.5)
    white, changed = (canvas > 130).all(axis=2), (canvas != 120).any(axis=2)
    near = cv2.dilate(white.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
    assert white.any()
    assert not (changed & ~near).any()

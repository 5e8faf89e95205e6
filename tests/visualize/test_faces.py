import numpy as np
import pytest

from lcgcn_jax import visualize
from lcgcn_jax.landmarks import IBUG68


@pytest.mark.parametrize("point", [(20.0, 30.0), (20.5, 30.25)])
def test_landmark_is_drawn_where_it_is(point):
    image = np.zeros((60, 60, 3), np.uint8)
    landmarks = np.tile(point, (68, 1))
    drawn = visualize.draw_landmarks(image, landmarks, IBUG68, radius=3.0, contours=False)
    weight = drawn.astype(float).sum(axis=2)
    ys, xs = np.mgrid[:60, :60]
    centre = (weight * xs).sum() / weight.sum(), (weight * ys).sum() / weight.sum()
    np.testing.assert_allclose(centre, point, atol=0.1)
    assert not image.any(), "the picture given is left as it is"


def test_enlarging_keeps_points_on_their_pixels():
    image = np.zeros((20, 20, 3), np.uint8)
    image[7, 5] = 255
    large, points = visualize.enlarge(image, np.array([[5.0, 7.0]]), 4)
    ys, xs = np.mgrid[:80, :80]
    weight = large[..., 0].astype(float)
    centre = (weight * xs).sum() / weight.sum(), (weight * ys).sum() / weight.sum()
    np.testing.assert_allclose(points[0], centre, atol=0.1)

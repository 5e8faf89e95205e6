import cv2
import numpy as np

from lcgcn_jax.evaluation.predictions import with_flip_test
from lcgcn_jax.landmarks import WFLW98
from lcgcn_jax.models.lcgcn import LCGCNOutput

MIRROR = np.array(WFLW98.mirror)
RNG = np.random.default_rng(0)
LANDMARKS = RNG.uniform(0, 64, (1, 98, 2)).astype(np.float32)
IMAGE = RNG.integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)


def make_predict(error, bias=0.0):
    """A model that predicts equivariant landmarks, shifted by `error` and `bias` in both views.

    With the bias, the annotations are shifted to the right by this number of pixels, in mirrored faces too.
    """
    bias = np.array([bias, 0.0], np.float32)

    def predict(images):
        points = LANDMARKS - bias
        if not np.array_equal(images, IMAGE):
            np.testing.assert_array_equal(images[0], cv2.flip(IMAGE[0], 1))
            points = np.stack([63 - points[..., 0], points[..., 1]], axis=-1)[:, MIRROR]
        points = points + bias + np.float32(error)
        ones = np.ones((1, 98), np.float32)
        return LCGCNOutput(np.zeros((1, 2, 2, 98), np.float32), points, ones, None, points)

    return predict


def test_horizontal_errors_of_both_views_cancel():
    output = with_flip_test(make_predict((1.0, 2.0)), WFLW98)(IMAGE)
    expected = LANDMARKS + np.float32([0, 2])
    np.testing.assert_allclose(output.landmarks, expected, atol=1e-4)
    np.testing.assert_allclose(output.heatmap_landmarks, expected, atol=1e-4)


def test_flip_bias_is_preserved():
    predict = make_predict((0.0, 0.0), bias=0.05 * 64)
    output = with_flip_test(predict, WFLW98, 0.05)(IMAGE)
    np.testing.assert_allclose(output.landmarks, LANDMARKS, atol=1e-4)
    output = with_flip_test(predict, WFLW98)(IMAGE)
    np.testing.assert_allclose(output.landmarks, LANDMARKS - np.float32([3.2, 0]), atol=1e-4)

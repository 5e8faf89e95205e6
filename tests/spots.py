"""Images of a Gaussian spot, to test that points follow the pixels."""

import numpy as np


def spot(point, shape=(300, 300), sigma=4.0):
    """A white Gaussian spot on black, its center at the point."""
    y, x = np.indices(shape)
    value = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * sigma**2))
    return np.repeat(np.rint(255 * value).astype(np.uint8)[..., None], 3, axis=2)


def centroid(image):
    """Position of the spot in pixels; the center of the first pixel is 0."""
    weight = image.reshape(*image.shape[:2], -1)[..., 0].astype(float)
    y, x = np.indices(weight.shape)
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()

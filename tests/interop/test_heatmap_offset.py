"""Where the public codes place a heatmap's cells: their targets, drawn by their formulas and read by us.

Each target is of a point whose place in the crop is known, or is measured in the crop's pixels where the code
cuts and resizes the image in a way of its own.
"""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax.interop.torch_weights import AUTHORS_OFFSET, HRNET_FACE, MMPOSE_0, MMPOSE_1
from lcgcn_jax.models.config import ModelConfig
from lcgcn_jax.models.lcgcn import LCGCN

SIDE, CROP = 64, 256
HALF_CELL = CROP / SIDE / 2


class Drawn(nnx.Module):
    """Stands in for a heatmap model: gives heat that was drawn before."""

    stride, feature_channels, activation = CROP // SIDE, 1, "linear"

    def __init__(self, heat):
        self.heat = nnx.Variable(heat)

    def __call__(self, images, *, train):
        return self.heat[...], self.heat[..., :1]


def read(centers, sigma, origin, decode):
    """Landmarks `[n 2]` that a model of that origin finds in Gaussians about cells `[n 2]`."""
    cells = np.arange(SIDE)[:, None]
    x, y = (np.exp(-((cells - centers[:, axis]) ** 2) / (2 * sigma**2)) for axis in (0, 1))
    heat = np.einsum("yk,xk->yxk", y, x)[None].astype(np.float32)
    model = LCGCN(
        Drawn(jnp.asarray(heat)),
        len(centers),
        ModelConfig(decode, graph=None, heatmap_offset=origin),
        rngs=nnx.Rngs(0),
    )
    return np.asarray(model(jnp.zeros((1, CROP, CROP, 3))).landmarks[0])


def evenly_spread():
    """Points whose places within their cells are all equally frequent."""
    places = 40 + (np.arange(640) + 0.5) / 4
    return np.stack([places, np.random.default_rng(0).permutation(places)], axis=-1)


@pytest.mark.parametrize("decode", ["argmax", "quarter"])
@pytest.mark.parametrize("layout", [MMPOSE_0, MMPOSE_1])
def test_mmpose_rounds_to_the_nearest_cell(layout, decode):
    """`MSRAHeatmap`: mu = floor(x / 4 + 0.5), sigma 2."""
    points = evenly_spread()
    found = read(np.floor(points / 4 + 0.5), 2, layout.heatmap_offset, decode)
    assert np.abs(found - points).max() <= HALF_CELL
    np.testing.assert_allclose((found - points).mean(axis=0), 0, atol=1e-3)


def test_mmpose_for_dark_does_not_round():
    """`MSRAHeatmap(unbiased=True)`: mu = x / 4."""
    points = evenly_spread()
    found = read(points / 4, 2, MMPOSE_1.heatmap_offset, "dark")
    np.testing.assert_allclose(found, points, atol=0.05)


def blob(shape, point):
    """A image of a point."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * 3.0**2)).astype(np.float32)


def place_of(crop):
    """Where the point is seen, in pixels, the middle of the first one at 0."""
    y, x = np.mgrid[: crop.shape[0], : crop.shape[1]]
    return np.array([(crop * x).sum(), (crop * y).sum()]) / crop.sum()


def resized(image, size):
    """About the middles of pixels, as Pillow and OpenCV do it."""
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def hrnet_pixel(point, center, width, size, *, inverse=False):
    """`transform_pixel` without rotation: counted from 1 on both sides, truncated."""
    scale, middle = size / width, size / 2
    point = point - 1
    moved = (point - middle) / scale + center if inverse else (point - center) * scale + middle
    return np.trunc(moved) + 1


def hrnet_example(rng):
    """What HRNet-Facial-Landmark-Detection makes of a point: where it is seen, and its target's cell."""
    width = 1.25 * rng.integers(60, 300)  # the crop's; from 512 on the image is made smaller first
    center = rng.integers(800, 1000, 2) / 2
    point = center + rng.uniform(-0.3, 0.3, 2) * width
    low = hrnet_pixel(np.zeros(2), center, width, CROP, inverse=True).astype(int)
    high = hrnet_pixel(np.full(2, CROP), center, width, CROP, inverse=True).astype(int)
    crop = blob((1000, 1000), point)[low[1] : high[1], low[0] : high[0]]
    cell = hrnet_pixel(point + 1, center, width, SIDE) - 1
    return place_of(resized(crop, (CROP, CROP))), cell, 0.5 * CROP / width


@pytest.mark.slow
def test_hrnet_facial_truncates_and_cuts_at_whole_pixels():
    rng = np.random.default_rng(0)
    seen, cells, cuts = map(np.array, zip(*[hrnet_example(rng) for _ in range(400)], strict=True))
    for decode in ("argmax", "quarter"):
        # `generate_target`: sigma 1.5 in its configs, on the cell's middle.
        found = read(cells, 1.5, HRNET_FACE.heatmap_offset, decode)
        # The cut is up to half a pixel of the image off at each end.
        assert (np.abs(found - seen) <= HALF_CELL + 2 * cuts[:, None]).all()
        np.testing.assert_allclose((found - seen).mean(axis=0), 0, atol=0.15)


def authors_example(rng, side):
    """What the LCGCN authors' code makes of a point of a square face: where it is seen, and its cell."""
    point = rng.uniform(0.15, 0.85, 2) * side
    enlarged = CROP / side
    seen = place_of(resized(blob((side, side), point), (CROP, CROP)))
    # `Resize`: the point times how much it enlarges; `draw_umich_gaussian`: int(x / 4).
    return seen, np.trunc(point * enlarged / 4)


@pytest.mark.parametrize(("side", "added"), [(CROP, 0.0), (CROP // 2, 0.5)])
def test_the_lcgcn_authors_truncate(side, added):
    """Faces that are not enlarged are read without bias, others as the import's docstring says."""
    rng = np.random.default_rng(0)
    seen, cells = map(np.array, zip(*[authors_example(rng, side) for _ in range(600)], strict=True))
    radius = 4
    found = read(cells, (2 * radius + 1) / 6, AUTHORS_OFFSET, "argmax")
    assert np.abs(found + added - seen).max() <= HALF_CELL + 0.01
    np.testing.assert_allclose((found + added - seen).mean(axis=0), 0, atol=0.15)

"""Heatmap offsets of the public codes: targets drawn with their formulas decode to the right points.

The position of a point in the crop is known, or is measured in the crop where a code crops and resizes the
image differently.
"""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from spots import centroid

from lcgcn_jax.interop.torch_layouts import AUTHORS_OFFSET, HRNET_FACE, MMPOSE_0, MMPOSE_1
from lcgcn_jax.models.config import ModelConfig
from lcgcn_jax.models.lcgcn import LCGCN

SIDE, CROP = 64, 256
HALF_PIXEL = CROP / SIDE / 2  # half a heatmap pixel, in crop pixels


class ConstantHeatmapModel(nnx.Module):
    """Heatmap model that returns constant heatmaps."""

    stride, feature_channels, activation = CROP // SIDE, 1, "linear"

    def __init__(self, heatmaps):
        self.heatmaps = nnx.Variable(heatmaps)

    def __call__(self, images, *, train):
        return self.heatmaps[...], self.heatmaps[..., :1]


def read(centers, sigma, offset, decode):
    """Decode Gaussians around heatmap pixels `[n 2]` to landmarks `[n 2]`, with a heatmap offset."""
    pixels = np.arange(SIDE)[:, None]
    x, y = (np.exp(-((pixels - centers[:, axis]) ** 2) / (2 * sigma**2)) for axis in (0, 1))
    heatmaps = np.einsum("yk,xk->yxk", y, x)[None].astype(np.float32)
    model = LCGCN(
        ConstantHeatmapModel(jnp.asarray(heatmaps)),
        len(centers),
        ModelConfig(decode=decode, graph=None, heatmap_offset=offset),
        rngs=nnx.Rngs(0),
    )
    return np.asarray(model(jnp.zeros((1, CROP, CROP, 3))).landmarks[0])


def uniform_points():
    """Points with uniformly distributed positions within their heatmap pixels."""
    positions = 40 + (np.arange(160) + 0.5)
    return np.stack([positions, np.random.default_rng(0).permutation(positions)], axis=-1)


@pytest.mark.parametrize("decode", ["argmax", "quarter"])
@pytest.mark.parametrize("layout", [MMPOSE_0, MMPOSE_1])
def test_mmpose_rounds_to_the_nearest_heatmap_pixel(layout, decode):
    """`MSRAHeatmap`: mu = floor(x / 4 + 0.5), sigma 2."""
    points = uniform_points()
    decoded = read(np.floor(points / 4 + 0.5), 2, layout.heatmap_offset, decode)
    assert np.abs(decoded - points).max() <= HALF_PIXEL
    np.testing.assert_allclose((decoded - points).mean(axis=0), 0, atol=1e-3)


def test_unbiased_mmpose_does_not_round():
    """`MSRAHeatmap(unbiased=True)`: mu = x / 4."""
    points = uniform_points()
    decoded = read(points / 4, 2, MMPOSE_1.heatmap_offset, "dark")
    np.testing.assert_allclose(decoded, points, atol=0.05)


def blob(shape, point):
    """Image of a Gaussian blob at a point."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * 3.0**2)).astype(np.float32)


def resized(image, size):
    """Resize around pixel centers, as Pillow and OpenCV do."""
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def hrnet_pixel(point, center, width, size, *, inverse=False):
    """`transform_pixel` without rotation: one-based input and output, truncated."""
    scale, middle = size / width, size / 2
    point = point - 1
    moved = (point - middle) / scale + center if inverse else (point - center) * scale + middle
    return np.trunc(moved) + 1


def hrnet_example(rng):
    """Position of a point in a crop of HRNet-Facial-Landmark-Detection, and the pixel of its target."""
    width = 1.25 * rng.integers(
        60, 300
    )  # of the crop; from 512 on, the code downsamples the image first
    center = rng.integers(800, 1000, 2) / 2
    point = center + rng.uniform(-0.3, 0.3, 2) * width
    low = hrnet_pixel(np.zeros(2), center, width, CROP, inverse=True).astype(int)
    high = hrnet_pixel(np.full(2, CROP), center, width, CROP, inverse=True).astype(int)
    crop = blob((1000, 1000), point)[low[1] : high[1], low[0] : high[0]]
    pixel = hrnet_pixel(point + 1, center, width, SIDE) - 1
    return centroid(resized(crop, (CROP, CROP))), pixel, 0.5 * CROP / width


@pytest.mark.slow
def test_hrnet_facial_truncates_and_crops_at_integer_pixels():
    rng = np.random.default_rng(0)
    points, pixels, cuts = map(
        np.array, zip(*[hrnet_example(rng) for _ in range(400)], strict=True)
    )
    for decode in ("argmax", "quarter"):
        # `generate_target`: sigma 1.5 in its configs, around the center of the heatmap pixel.
        decoded = read(pixels, 1.5, HRNET_FACE.heatmap_offset, decode)
        # The crop is off by up to half an image pixel on each side.
        assert (np.abs(decoded - points) <= HALF_PIXEL + 2 * cuts[:, None]).all()
        np.testing.assert_allclose((decoded - points).mean(axis=0), 0, atol=0.15)


def authors_example(rng, side):
    """Position of a point in a square face resized by the LCGCN authors' code, and its heatmap pixel."""
    point = rng.uniform(0.15, 0.85, 2) * side
    position = centroid(resized(blob((side, side), point), (CROP, CROP)))
    # `Resize`: the point times the scale; `draw_umich_gaussian`: int(x / 4).
    return position, np.trunc(point * CROP / side / 4)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "added"), [(CROP, 0.0), (CROP // 2, 0.5)])
def test_lcgcn_authors_truncate(side, added):
    """Faces that are not resized are decoded without bias, others with the bias of `torch_layouts`."""
    rng = np.random.default_rng(0)
    points, pixels = map(
        np.array, zip(*[authors_example(rng, side) for _ in range(600)], strict=True)
    )
    radius = 4
    decoded = read(pixels, (2 * radius + 1) / 6, AUTHORS_OFFSET, "argmax")
    assert np.abs(decoded + added - points).max() <= HALF_PIXEL + 0.01
    np.testing.assert_allclose((decoded + added - points).mean(axis=0), 0, atol=0.15)

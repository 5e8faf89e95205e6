"""Lighting of the face texture: Lambert shading, cast shadows, skin noise."""

import cv2
import numpy as np

from lcgcn_jax.synthetic.canvas import REGION, Canvas, polygon_mask
from lcgcn_jax.synthetic.painting import hair_region
from lcgcn_jax.synthetic.relief import RELIEF_SHAPE, Relief, View
from lcgcn_jax.synthetic.traits import Traits


def light_face(
    texture: Canvas, traits: Traits, relief: Relief, view: View, rng: np.random.Generator
) -> None:
    """Multiply the texture by the light on the relief and by the noise of the skin."""
    height, slope = relief.height, relief.slope
    light = view.rotation.T @ traits.light
    length = np.sqrt(1 + (slope**2).sum(-1))
    lambert = (light[2] - slope @ light[:2].astype(np.float32)) / length
    lambert = np.clip(0.8 * lambert + 0.2, 0, None) * _shadow(height, light, relief)
    hollow = np.clip(height - cv2.GaussianBlur(height, (0, 0), 5), -0.1, 0.05)
    shade = traits.ambient * (1 + 3 * hollow) + traits.diffuse * lambert
    shade *= 1 + 0.02 * _noise(rng, RELIEF_SHAPE, 3) + 0.012 * _noise(rng, RELIEF_SHAPE, 1)
    shade = cv2.merge([shade] * 3)
    shade += _speckles(rng, traits)[..., None] * np.array([0.5, 0.8, 1.0], np.float32)
    shade += (0.1 * np.clip(lambert, 0, 1) ** 10)[..., None]
    region = hair_region(traits)
    if region is not None:
        mask = polygon_mask(RELIEF_SHAPE, (region - REGION[0]) * relief.scale - 0.5)
        streaks = _noise(rng, (6, 68), 1)
        streaks = cv2.resize(streaks, RELIEF_SHAPE[::-1], interpolation=cv2.INTER_CUBIC)
        shade += (mask / np.float32(255) * 0.16 * streaks)[..., None]
    rows, columns = texture.pixels.shape[:2]
    shade = cv2.resize(shade.astype(np.float32), (columns, rows), interpolation=cv2.INTER_LINEAR)
    texture.pixels = cv2.multiply(texture.pixels, shade, dtype=cv2.CV_8U)


def _shadow(height: np.ndarray, light: np.ndarray, relief: Relief) -> np.ndarray:
    """Cast shadow: 1 in the light, less where the relief towards the light blocks its rays."""
    shadow = np.ones_like(height)
    flat = max(np.hypot(*light[:2]), 1e-6)
    rise, direction = light[2] / flat, light[:2] / flat
    for distance in (0.08, 0.16, 0.26):
        dx, dy = direction * distance * relief.scale
        translation = np.array([[1, 0, dx], [0, 1, dy]])
        towards = cv2.warpAffine(
            height, translation, height.shape[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        blocked = towards - height - rise * distance
        shadow = np.minimum(shadow, np.clip(1 - 6 * blocked, 0.35, 1))
    return cv2.GaussianBlur(shadow, (0, 0), 1.5)


def _noise(rng: np.random.Generator, shape: tuple[int, int], grain: int) -> np.ndarray:
    """Normal noise that is smooth over `grain` pixels."""
    coarse = rng.standard_normal((-(-shape[0] // grain), -(-shape[1] // grain)), np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _speckles(rng: np.random.Generator, traits: Traits) -> np.ndarray:
    """Freckles across nose and cheeks, as a negative offset of the light."""
    if not traits.freckles:
        return np.zeros(RELIEF_SHAPE, np.float32)
    spots = (rng.random(RELIEF_SHAPE, np.float32) < 0.05 * traits.freckles).astype(np.float32)
    rows, columns = np.indices(RELIEF_SHAPE, np.float32)
    density = np.exp(-(((columns - 67.5) / 40) ** 2) - ((rows - 103) / 18) ** 2)
    return -0.9 * cv2.GaussianBlur(spots, (0, 0), 0.7) * density

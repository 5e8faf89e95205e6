"""Image corruptions: occluding rectangles, blur, low light and noise."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from lcgcn_jax.fields import interval, number

Image = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class CorruptionConfig:
    """Probability and strength of each corruption; the defaults apply none.

    Attributes:
      occlusion: probability of one or two rectangles over the crop.
      occlusion_side: minimum and maximum side of a rectangle, as a fraction of the crop side.
      blur: probability of a Gaussian blur.
      blur_sigma: minimum and maximum sigma, as a fraction of the crop side.
      noise: probability of Gaussian noise.
      noise_sigma: minimum and maximum sigma, in gray levels.
      low_light: probability of a darkened crop.
      low_light_factor: minimum and maximum factor on all gray levels.
    """

    occlusion: float = number(0.0, 0, 1)
    occlusion_side: tuple[float, float] = interval((0.23, 0.47), 0, 1)
    blur: float = number(0.0, 0, 1)
    blur_sigma: tuple[float, float] = interval((0.016, 0.039), 0, 0.5, above=True)
    noise: float = number(0.0, 0, 1)
    noise_sigma: tuple[float, float] = interval((5.0, 25.0), 0, 255)
    low_light: float = number(0.0, 0, 1)
    low_light_factor: tuple[float, float] = interval((0.15, 0.5), 0, 1)


CORRUPTIONS = {
    "none": CorruptionConfig(),
    "occlude": CorruptionConfig(occlusion=1.0),
    "blur": CorruptionConfig(blur=1.0),
    "low_light": CorruptionConfig(low_light=1.0),
    "noise": CorruptionConfig(noise=1.0),
}
"""Corruption for evaluation -> its config, which applies it to every face.

- `occlude`: one or two rectangles with sides of 23-47 % of the crop, of one random color with noise of
  sigma 15.
- `blur`: Gaussian, sigma 1.6-3.9 % of the crop side.
- `low_light`: all gray levels times 0.15-0.5.
- `noise`: Gaussian, sigma 5-25 gray levels.
"""


def corrupt(image: Image, config: CorruptionConfig, rng: np.random.Generator) -> tuple[Image, Mask]:
    """Darken, occlude, blur and add noise to a square crop, each with its probability.

    Returns:
      The image, and which of its pixels are occluded.
    """
    covered = np.zeros(image.shape[:2], bool)
    darkened, occluded, blurred, noisy = rng.random(4) < (
        config.low_light, config.occlusion, config.blur, config.noise,
    )  # fmt: skip
    if darkened:
        image = cv2.convertScaleAbs(image, alpha=rng.uniform(*config.low_light_factor))
    if occluded:
        image, covered = occlude(image, config.occlusion_side, rng)
    if blurred:
        image = blur(image, config.blur_sigma, rng)
    if noisy:
        image = _add_noise(image, rng.uniform(*config.noise_sigma), rng)
    return image, covered


def occlude(
    image: Image, sides: tuple[float, float], rng: np.random.Generator
) -> tuple[Image, Mask]:
    """Draw one or two rectangles of one random color with noise (sigma 15) over a square crop.

    Args:
      image: the crop; it is not modified.
      sides: minimum and maximum side of a rectangle, as a fraction of the crop side.

    Returns:
      The image, and which of its pixels are occluded.
    """
    size = image.shape[0]
    image = image.copy()
    covered = np.zeros(image.shape[:2], bool)
    color = rng.integers(0, 256, 3, np.uint8)
    for _ in range(rng.integers(1, 3)):
        width, height = (size * rng.uniform(*sides, 2)).astype(int)
        x, y = rng.integers(0, (size - width + 1, size - height + 1))
        patch = np.broadcast_to(color, (height, width, 3))
        image[y : y + height, x : x + width] = _add_noise(patch, 15.0, rng)
        covered[y : y + height, x : x + width] = True
    return image, covered


def blur(image: Image, sigmas: tuple[float, float], rng: np.random.Generator) -> Image:
    """Blur a square crop.

    Args:
      sigmas: minimum and maximum sigma of the Gaussian, as a fraction of the crop side.
    """
    return cv2.GaussianBlur(image, (0, 0), image.shape[0] * rng.uniform(*sigmas))


def _add_noise(image: Image, sigma: float, rng: np.random.Generator) -> Image:
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(sigma)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)

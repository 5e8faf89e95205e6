"""Synthetic face of a seed: sample the traits, paint, light, project, and apply the camera."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.synthetic.canvas import Canvas
from lcgcn_jax.synthetic.curves import FRONTAL_LANDMARKS, Curves
from lcgcn_jax.synthetic.lighting import light_face
from lcgcn_jax.synthetic.painting import paint_face
from lcgcn_jax.synthetic.relief import Relief, View
from lcgcn_jax.synthetic.scene import background, paint_behind, paint_in_front
from lcgcn_jax.synthetic.traits import Traits, sample_traits

_SUPERSAMPLE = 2


@dataclasses.dataclass(frozen=True)
class SyntheticFace:
    """Synthetic face image with its annotation.

    Attributes:
      image: RGB image.
      landmarks: landmarks in image pixels, in the order of the scheme.
      attributes: the six WFLW attributes by name.
      occluded: True for landmarks behind an occluder.
    """

    image: UInt8[np.ndarray, "h w 3"]
    landmarks: Float[np.ndarray, "k 2"]
    attributes: dict[str, bool]
    occluded: Bool[np.ndarray, "k"]


def draw_face(seed: int, scheme: LandmarkScheme, size: int = 192) -> SyntheticFace:
    """Draw the synthetic face of a seed.

    Args:
      scheme: `WFLW98` or `IBUG68`. The image is the same for both.
      size: side of the image in pixels. The face is the same at any size.

    Raises:
      ValueError: the scheme is not supported.
    """
    if scheme.name not in FRONTAL_LANDMARKS:
        raise ValueError(f"no synthetic faces with scheme {scheme.name!r}; use wflw98 or ibug68")
    rng = np.random.default_rng(seed)
    traits = sample_traits(rng)
    curves = Curves(traits)
    relief = Relief(traits, curves)
    view = View(traits, curves, relief)

    texture, cover = paint_face(traits, curves, size)
    light_face(texture, traits, relief, view, rng)
    scene = Canvas.of_image(background(rng, _SUPERSAMPLE * size))
    hidden = Canvas.of_image(np.zeros((scene.side, scene.side), np.uint8))
    paint_behind(scene, traits, curves, view)
    window, maps, opacity = view.unwrap(texture, curves, scene.side)
    face = cv2.remap(texture.pixels, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    scene.pixels[window] = cv2.blendLinear(face, scene.pixels[window], opacity, 1 - opacity)
    if cover.pixels.any():
        covered = cv2.remap(cover.pixels, *maps, cv2.INTER_LINEAR)
        hidden.pixels[window] = np.where(opacity > 0.5, covered, 0)
    paint_in_front(scene, hidden, traits, view)

    points = view.landmarks(FRONTAL_LANDMARKS[scheme.name](curves))
    return SyntheticFace(
        image=_finish(scene.pixels, traits, size, rng),
        landmarks=points * size - 0.5,
        attributes=dict(traits.attributes),
        occluded=hidden.sample(points) > 127,
    )


def _finish(pixels: np.ndarray, traits: Traits, size: int, rng: np.random.Generator) -> np.ndarray:
    """Apply the camera: downsampling, blur, exposure, color of the light, and noise."""
    image = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
    sigma = traits.blur * size
    if np.isfinite(traits.motion):
        image = cv2.filter2D(image, -1, _motion_kernel(4 * sigma, traits.motion))
    elif sigma > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    gain = traits.gain * traits.tint
    noise = rng.standard_normal((size, size, 1), np.float32) * np.float32(rng.uniform(0.5, 3))
    return np.clip(image * gain.astype(np.float32) + noise, 0, 255).round().astype(np.uint8)


def _motion_kernel(length: float, angle: float) -> np.ndarray:
    side = 2 * int(np.ceil(length / 2)) + 1
    kernel = np.zeros((side, side), np.uint8)
    arm = length / 2 * np.array([np.cos(angle), np.sin(angle)])
    ends = np.round((side // 2 + np.array([-arm, arm])) * 16).astype(int)
    cv2.line(kernel, tuple(map(int, ends[0])), tuple(map(int, ends[1])), 255, 1, cv2.LINE_AA, 4)
    return (kernel / kernel.sum()).astype(np.float32)

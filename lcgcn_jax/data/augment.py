"""From a stored record to a face crop: varied for training, plain for evaluation.

All geometry is one affine and one warp from the stored picture. Landmarks that leave the crop stay
`visible`: their coordinates are known, and the coordinate loss uses them; heatmaps do without.

`visible` is whether a landmark has a location; the labels `visibility` (`records.Visibility`) say whether it
can be seen. Landmarks under an artificial occluder become externally occluded where they have a label. In
training, the label of a landmark outside the crop becomes unknown, since nothing in the crop shows it.
"""

import dataclasses
import zlib
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Int8, UInt8

from lcgcn_jax import compat, geometry
from lcgcn_jax.data.annotations import Visibility
from lcgcn_jax.data.records import decode_image
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import LandmarkScheme

Image = UInt8[np.ndarray, "h w 3"]
Record = dict[str, Any]
Labels = Int8[np.ndarray, "k"]
Mask = Bool[np.ndarray, "h w"]

BOXES = {"gt": "box", "rect": "provided_box"}
"""Name of a face box -> the record's field."""

_LUMA = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How a training face is varied; the defaults are the paper's, without damage.

    Attributes:
      rotation: largest turn either way, in degrees.
      zoom: smallest and largest factor on the face's size.
      shift: largest move either way, as a part of the crop's side.
      mirror: probability of mirroring.
      flip_bias: how far to the right the annotators put all points, as a part of the crop's side. A
        mirrored face has its points there too, and not to the left, where a mirror alone would put them.
      brightness: largest change of brightness, as a part of it.
      contrast: largest change of contrast about the crop's mean, as a part of it.
      saturation: largest change of saturation, as a part of it.
      occlusion: probability of one or two rectangles over the crop.
      occlusion_side: smallest and largest side of a rectangle, as a part of the crop's side.
      blur: probability of a Gaussian blur.
      blur_sigma: smallest and largest sigma, as a part of the crop's side.
      noise: probability of Gaussian noise.
      noise_sigma: smallest and largest sigma, in gray levels.
      low_light: probability of a darkened crop.
      low_light_factor: smallest and largest factor on all gray levels.
      border: what training crops show outside the image, one of `geometry.BORDERS`. Evaluation and prediction
        always show black there. For faces in tight crops, whose contours touch the image's border, `reflect`
        or `blur` keeps a model from taking the black edge for the contour.
    """

    rotation: float = 30.0
    zoom: tuple[float, float] = (0.8, 1.2)
    shift: float = 0.1
    mirror: float = 0.5
    flip_bias: float = 0.0
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    occlusion: float = 0.0
    occlusion_side: tuple[float, float] = (0.23, 0.47)
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.016, 0.039)
    noise: float = 0.0
    noise_sigma: tuple[float, float] = (5.0, 25.0)
    low_light: float = 0.0
    low_light_factor: tuple[float, float] = (0.15, 0.5)
    border: str = "black"

    @classmethod
    def none(cls) -> "AugmentConfig":
        """The crop as evaluation sees it."""
        return cls(
            rotation=0.0,
            zoom=(1.0, 1.0),
            shift=0.0,
            mirror=0.0,
            brightness=0.0,
            contrast=0.0,
            saturation=0.0,
        )


CORRUPTIONS = {
    "none": AugmentConfig.none(),
    "occlude": dataclasses.replace(AugmentConfig.none(), occlusion=1.0),
    "blur": dataclasses.replace(AugmentConfig.none(), blur=1.0),
    "low_light": dataclasses.replace(AugmentConfig.none(), low_light=1.0),
    "noise": dataclasses.replace(AugmentConfig.none(), noise=1.0),
}
"""Damage to evaluate under -> the one damage that every face gets.

- `occlude`: one or two rectangles with sides of 23-47 % of the crop, of one random color with noise of
  sigma 15.
- `blur`: Gaussian, sigma 1.6-3.9 % of the crop's side.
- `low_light`: all gray levels times 0.15-0.5.
- `noise`: Gaussian, sigma 5-25 gray levels.
"""


def crop_face(
    record: Record, size: int, box: str | geometry.Box = "gt", corruption: str = "none"
) -> dict[str, Any]:
    """The crop of a face for evaluation, with all that carries its landmarks back.

    Args:
      record: an element of a `FaceSource`.
      size: side of the crop, in pixels.
      box: the box to crop around: `gt` (around the true landmarks), `rect` (the data's own), or four
        numbers, in pixels of the record's picture.
      corruption: one of `CORRUPTIONS`. Its chances depend on the face's name alone.

    Returns:
      `image` uint8 [size size 3] RGB; `landmarks` float32 [k 2] in crop pixels; `visible` bool [k];
      `visibility` int8 [k], values of `records.Visibility`; `crop_to_source` float64 [2 3], from crop
      pixels to the image's; `source_landmarks` float64 [k 2] in the image's pixels;
      `normalizer` float32, the normalizing distance that came with the face, in the same pixels, or NaN;
      `attributes` bool [num_attributes]; `name` and `subset`, text.

    Raises:
      InputError: the data has no such box, or there is no such corruption.
    """
    corruption = compat.CORRUPTIONS.get(corruption, corruption)
    if corruption not in CORRUPTIONS:
        raise InputError(f"unknown corruption {corruption!r}; use one of {', '.join(CORRUPTIONS)}")
    to_crop = geometry.crop_transform(_face_box(record, box), size)
    to_source = record["to_source"].astype(np.float64)
    landmarks = record["landmarks"].astype(np.float64)
    image = geometry.warp(decode_image(record["image"]), to_crop, size)
    rng = np.random.default_rng(zlib.crc32(record["name"].encode()))
    in_crop = geometry.transform_points(to_crop, landmarks)
    image, covered = corrupt(image, CORRUPTIONS[corruption], rng)
    return {
        "image": image,
        "landmarks": in_crop.astype(np.float32),
        "visible": record["visible"],
        "visibility": cover_labels(record["visibility"], in_crop, covered),
        "crop_to_source": geometry.compose(to_source, geometry.invert(to_crop)),
        "source_landmarks": geometry.transform_points(to_source, landmarks),
        "normalizer": record["normalizer"],
        "attributes": record["attributes"],
        "name": record["name"],
        "subset": record["subset"],
    }


def _face_box(record: Record, box: str | geometry.Box) -> geometry.Box:
    if not isinstance(box, str):
        return box
    if box not in BOXES:
        raise InputError(f"unknown face box {box!r}; use one of {', '.join(BOXES)}")
    face_box = record[BOXES[box]].astype(np.float64)
    if not np.isfinite(face_box).all():
        raise InputError(f"{record['name']}: the data provides no face box; use the box 'gt'")
    return face_box


def augment_face(
    record: Record,
    scheme: LandmarkScheme,
    size: int,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """A varied crop of a face for training.

    Args:
      record: an element of a `FaceSource`.
      scheme: the data's scheme, for the mirror permutation.
      size: side of the crop, in pixels.
      config: how much to vary.
      rng: the only source of chance.

    Returns:
      `image` uint8 [size size 3] RGB; `landmarks` float32 [k 2] in crop pixels; `visible` bool [k];
      `visibility` int8 [k], values of `records.Visibility`.
    """
    mirrored = rng.random() < config.mirror
    box, points = record["box"].astype(np.float64), record["landmarks"].astype(np.float64)
    if mirrored:
        # Once for the offset that the mirror turns round, and once to put it back.
        points = points - np.array([2 * config.flip_bias * geometry.crop_side(box), 0.0])
    to_crop = _random_affine(box, size, config, mirrored, rng)
    landmarks = geometry.transform_points(to_crop, points)
    visible, labels = record["visible"], record["visibility"]
    if mirrored:
        order = list(scheme.mirror)
        landmarks, visible, labels = landmarks[order], visible[order], labels[order]
    image = geometry.warp(decode_image(record["image"]), to_crop, size, config.border)
    image = jitter_colors(image, config, rng)
    image, covered = corrupt(image, config, rng)
    is_outside = visible & ~_inside(landmarks, size)
    labels = np.where(is_outside, np.int8(Visibility.UNKNOWN), labels)
    return {
        "image": image,
        "landmarks": landmarks.astype(np.float32),
        "visible": visible,
        "visibility": cover_labels(labels, landmarks, covered),
    }


def cover_labels(labels: Labels, landmarks: geometry.Points, covered: Mask) -> Labels:
    """The visibility labels of a face after occluders were drawn over its crop.

    Args:
      labels: values of `records.Visibility`. Only visible landmarks change.
      landmarks: in crop pixels; those without a location may be anything.
      covered: the pixels under an occluder.
    """
    inside = _inside(landmarks, len(covered))
    x, y = np.where(inside[:, None], np.round(landmarks), 0.0).astype(int).T
    is_hidden = (labels == Visibility.VISIBLE) & inside & covered[y, x]
    return np.where(is_hidden, np.int8(Visibility.EXTERNALLY_OCCLUDED), labels)


def _inside(landmarks: geometry.Points, size: int) -> Bool[np.ndarray, "k"]:
    """Which landmarks lie on a pixel of a square crop; False where a coordinate is NaN."""
    return ((landmarks >= -0.5) & (landmarks < size - 0.5)).all(axis=1)


def _random_affine(
    box: geometry.Box, size: int, config: AugmentConfig, mirrored: bool, rng: np.random.Generator
) -> geometry.Affine:
    to_crop = geometry.crop_transform(
        box,
        size,
        rotation=rng.uniform(-config.rotation, config.rotation),
        zoom=rng.uniform(*config.zoom),
        shift=tuple(rng.uniform(-config.shift, config.shift, 2)),
    )
    return geometry.compose(geometry.mirror_transform(size), to_crop) if mirrored else to_crop


def jitter_colors(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Varies brightness, contrast and saturation by one affine map of the colors."""
    strengths = np.array([config.brightness, config.contrast, config.saturation])
    if not strengths.any():
        return image
    brightness, contrast, saturation = rng.uniform(1 - strengths, 1 + strengths)
    gray = np.tile(_LUMA, (3, 1))
    colors = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * gray)
    mean = _LUMA @ cv2.mean(image)[:3]
    offset = np.full((3, 1), brightness * (1 - contrast) * mean)
    return cv2.transform(image, np.hstack([colors, offset]))


def corrupt(image: Image, config: AugmentConfig, rng: np.random.Generator) -> tuple[Image, Mask]:
    """Darkens, covers, blurs and adds noise, each with its probability.

    Returns:
      The image, and which of its pixels are covered.
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
    """Covers a square crop with one or two rectangles of one random color with noise (sigma 15).

    Args:
      image: the crop; it is left as it is.
      sides: smallest and largest side of a rectangle, as a part of the crop's side.
      rng: the source of chance.

    Returns:
      The image, and which of its pixels are covered.
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
    """Blurs a square crop.

    Args:
      image: the crop.
      sigmas: smallest and largest sigma of the Gaussian, as a part of the crop's side.
      rng: the source of chance.
    """
    return cv2.GaussianBlur(image, (0, 0), image.shape[0] * rng.uniform(*sigmas))


def _add_noise(image: Image, sigma: float, rng: np.random.Generator) -> Image:
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(sigma)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)

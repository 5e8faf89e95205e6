"""Random views of a face for training.

The geometry is one affine, or one homography, and one warp of the stored image. Landmarks outside the crop
stay `visible`: the coordinate losses of the graph use them, the heatmap losses train an empty heatmap for
them, and the loss on heatmap means ignores them.

`visible` states whether a landmark has a location; the labels `visibility` (`annotations.Visibility`) state
whether it can be seen. Labeled landmarks under an artificial occluder become externally occluded. The label
of a landmark outside the crop becomes unknown, because the crop does not show it.

Every option that is off draws no random numbers, so that new options leave the views of older
configurations unchanged.
"""

import dataclasses
from typing import Literal

import cv2
import numpy as np

from lcgcn_jax import geometry
from lcgcn_jax.data.annotations import Visibility
from lcgcn_jax.data.corruptions import CorruptionConfig, Image, corrupt
from lcgcn_jax.data.crops import Record, cover_labels, is_inside
from lcgcn_jax.data.encoding import decode_image
from lcgcn_jax.fields import interval, number
from lcgcn_jax.landmarks import LandmarkScheme

Distribution = Literal["uniform", "normal"]
"""Distributions of rotation, zoom and shift between their limits. The standard deviation of `normal` is half
the distance from the middle to a limit, and values beyond the limits are clipped."""

_LUMA = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True)
class AugmentConfig(CorruptionConfig):
    """Augmentation of training faces. The defaults are those of the paper, without corruptions.

    The corruptions are the fields of `CorruptionConfig`.

    Attributes:
      distribution: distribution of rotation, zoom and shift, see `Distribution`.
      rotation: maximum rotation in both directions, in degrees.
      zoom: minimum and maximum factor on the size of the face.
      shift: maximum translation, as a fraction of the crop's side.
      shear: maximum horizontal shear in both directions, in degrees.
      aspect: maximum change of the aspect ratio; 0.2: width over height times 1/1.2 to 1.2 (log-uniform).
      perspective: maximum shift of each corner of the crop along x and y, as a fraction of its side.
      mirror: probability of mirroring.
      flip_bias: horizontal bias of the annotations to the right, as a fraction of the crop's side. It is
        relative to their mirror image, and mirrored faces keep it.
      brightness: maximum relative change of brightness.
      contrast: maximum relative change of contrast around the mean of the crop.
      saturation: maximum relative change of saturation.
      gamma: maximum change of the exponent of a gamma curve: 1 - gamma to 1 + gamma.
      gray: probability of a crop without color.
      motion_blur: probability of a motion blur in a random direction.
      motion_blur_length: minimum and maximum length of the motion, as a fraction of the crop's side.
      noise_blend: probability of blending the crop with colored noise of a random scale.
      noise_blend_weight: minimum and maximum weight of that image.
      jpeg: probability of JPEG artifacts.
      jpeg_quality: minimum and maximum JPEG quality, 1 to 100.
      border: content of training crops outside the image, one of `geometry.BORDERS`. Evaluation and
        prediction always show black. For tight crops of faces, whose contours touch the border of the image,
        `reflect` or `blur` prevents the model from learning the black edge as the contour.
    """

    distribution: Distribution = "uniform"
    rotation: float = number(30.0, 0, 180)
    zoom: tuple[float, float] = interval((0.8, 1.2), 0.1, 10)
    shift: float = number(0.1, 0, 0.5)
    shear: float = number(0.0, 0, 60)
    aspect: float = number(0.0, 0, 4)
    perspective: float = number(0.0, 0, 0.3)
    mirror: float = number(0.5, 0, 1)
    flip_bias: float = number(0.0, -0.5, 0.5)
    brightness: float = number(0.3, 0, 1)
    contrast: float = number(0.3, 0, 1)
    saturation: float = number(0.3, 0, 1)
    gamma: float = number(0.0, 0, 1, below=True)
    gray: float = number(0.0, 0, 1)
    motion_blur: float = number(0.0, 0, 1)
    motion_blur_length: tuple[float, float] = interval((0.02, 0.08), 0, 0.5)
    noise_blend: float = number(0.0, 0, 1)
    noise_blend_weight: tuple[float, float] = interval((0.1, 0.4), 0, 1)
    jpeg: float = number(0.0, 0, 1)
    jpeg_quality: tuple[float, float] = interval((20.0, 80.0), 1, 100)
    border: geometry.Border = "black"


def augment_face(
    record: Record,
    scheme: LandmarkScheme,
    size: int,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Crop a face with random augmentation for training.

    Returns:
      `image` uint8 [size size 3] RGB; `landmarks` float32 [k 2] in crop pixels; `visible` bool [k];
      `visibility` int8 [k], values of `annotations.Visibility`.
    """
    mirrored = rng.random() < config.mirror
    box, points = record["box"].astype(np.float64), record["landmarks"].astype(np.float64)
    if mirrored:
        # Once to remove the bias, which the mirror inverts, and once to restore it.
        points = points - np.array([2 * config.flip_bias * geometry.crop_side(box), 0.0])
    to_crop = _random_affine(box, size, config, mirrored, rng)
    perspective = _random_perspective(size, config, rng)
    landmarks = geometry.transform_points(to_crop, points)
    if perspective is not None:
        landmarks = geometry.transform_points(perspective, landmarks)
    visible, labels = record["visible"], record["visibility"]
    if mirrored:
        order = list(scheme.mirror)
        landmarks, visible, labels = landmarks[order], visible[order], labels[order]
    image = decode_image(record["image"])
    image = geometry.warp(image, to_crop, size, config.border, perspective)
    image = jitter_colors(image, config, rng)
    image, covered = corrupt(image, config, rng)
    image = reduce_quality(image, config, rng)
    is_outside = visible & ~is_inside(landmarks, size)
    labels = np.where(is_outside, np.int8(Visibility.UNKNOWN), labels)
    return {
        "image": image,
        "landmarks": landmarks.astype(np.float32),
        "visible": visible,
        "visibility": cover_labels(labels, landmarks, covered),
    }


def _draw(low: float, high: float, config: AugmentConfig, rng: np.random.Generator) -> float:
    """Draw a number between two limits from the distribution of the configuration."""
    if config.distribution == "uniform":
        return rng.uniform(low, high)
    return float(np.clip(rng.normal((low + high) / 2, (high - low) / 4), low, high))


def _random_affine(
    box: geometry.Box, size: int, config: AugmentConfig, mirrored: bool, rng: np.random.Generator
) -> geometry.Affine:
    to_crop = geometry.crop_transform(
        box,
        size,
        rotation=_draw(-config.rotation, config.rotation, config, rng),
        zoom=_draw(*config.zoom, config, rng),
        shift=(
            _draw(-config.shift, config.shift, config, rng),
            _draw(-config.shift, config.shift, config, rng),
        ),
    )
    if config.shear or config.aspect:
        limit = np.log1p(config.aspect)
        width = np.exp(rng.uniform(-limit, limit) / 2)
        shear = np.tan(np.radians(rng.uniform(-config.shear, config.shear)))
        linear = np.array([[width, shear], [0.0, 1 / width]])
        center = np.full(2, (size - 1) / 2)
        offset = center - linear @ center
        to_crop = geometry.compose(np.column_stack([linear, offset]), to_crop)
    return geometry.compose(geometry.mirror_transform(size), to_crop) if mirrored else to_crop


def _random_perspective(
    size: int, config: AugmentConfig, rng: np.random.Generator
) -> geometry.Homography | None:
    """Homography that moves the corners of the crop."""
    if not config.perspective:
        return None
    offsets = rng.uniform(-config.perspective, config.perspective, (4, 2)).astype(np.float32)
    corners = (size - 1) * np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    return cv2.getPerspectiveTransform(corners, corners + np.float32(size) * offsets)


def jitter_colors(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Vary the colors of a crop.

    Brightness, contrast and saturation are one affine map of the colors; a gamma curve and gray follow.
    """
    strengths = np.array([config.brightness, config.contrast, config.saturation])
    if strengths.any():
        brightness, contrast, saturation = rng.uniform(1 - strengths, 1 + strengths)
        gray = np.tile(_LUMA, (3, 1))
        colors = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * gray)
        mean = _LUMA @ cv2.mean(image)[:3]
        offset = np.full((3, 1), brightness * (1 - contrast) * mean)
        image = cv2.transform(image, np.hstack([colors, offset]))
    if config.gamma:
        exponent = rng.uniform(1 - config.gamma, 1 + config.gamma)
        curve = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
        image = cv2.LUT(image, curve)
    if config.gray and rng.random() < config.gray:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return image


def reduce_quality(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Apply motion blur, noise blending and JPEG artifacts, each with its probability."""
    if config.motion_blur and rng.random() < config.motion_blur:
        length = len(image) * rng.uniform(*config.motion_blur_length)
        image = motion_blur(image, length, rng.uniform(0, np.pi))
    if config.noise_blend and rng.random() < config.noise_blend:
        image = blend_with_noise(image, rng.uniform(*config.noise_blend_weight), rng)
    if config.jpeg and rng.random() < config.jpeg:
        image = compress_jpeg(image, rng.uniform(*config.jpeg_quality))
    return image


def motion_blur(image: Image, length: float, direction: float) -> Image:
    """Average an image along a line.

    Args:
      length: length of the line, in pixels.
      direction: its angle to the x axis, in radians.
    """
    radius = int(np.ceil(length / 2))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    cos, sin = np.cos(direction), np.sin(direction)
    # Each pixel's coverage by a line one pixel wide, smooth in its length and direction.
    along = np.clip(length / 2 + 0.5 - np.abs(x * cos + y * sin), 0, 1)
    across = np.clip(1 - np.abs(y * cos - x * sin), 0, 1)
    kernel = along * across
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def blend_with_noise(image: Image, weight: float, rng: np.random.Generator) -> Image:
    """Blend an image with colored noise, with a random grain of 1 px to a quarter of the image.

    Args:
      weight: weight of the noise, 0..1.
    """
    size = len(image)
    side = round(np.exp(rng.uniform(np.log(4), np.log(size))))
    noise = rng.integers(0, 256, (side, side, 3), np.uint8)
    noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.addWeighted(image, 1 - weight, noise, weight, 0)


def compress_jpeg(image: Image, quality: float) -> Image:
    """Encode an image as JPEG, and decode it.

    Args:
      quality: JPEG quality, 1 to 100; it is rounded.
    """
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)

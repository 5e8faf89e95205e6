"""From a stored record to a face crop: varied for training, plain for evaluation.

All geometry is one affine and one warp from the stored picture. Landmarks that leave the crop stay
`visible`: their coordinates are known, and the coordinate loss uses them; heatmaps do without.

`visible` is whether a landmark has a location; the labels `visibility` (`records.Visibility`) say whether it
can be seen. Landmarks under an artificial occluder become externally occluded where they have a label. In
training, the label of a landmark outside the crop becomes unknown, since nothing in the crop shows it.
"""

import dataclasses

import cv2
import numpy as np

from lcgcn_jax import geometry
from lcgcn_jax.data.annotations import Visibility
from lcgcn_jax.data.corruptions import CorruptionConfig, Image, corrupt
from lcgcn_jax.data.crops import Record, cover_labels, is_inside
from lcgcn_jax.data.records import decode_image
from lcgcn_jax.landmarks import LandmarkScheme

_LUMA = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True)
class AugmentConfig(CorruptionConfig):
    """How a training face is varied; the defaults are the paper's, without corruptions.

    The corruptions are the fields of `CorruptionConfig`.

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
    is_outside = visible & ~is_inside(landmarks, size)
    labels = np.where(is_outside, np.int8(Visibility.UNKNOWN), labels)
    return {
        "image": image,
        "landmarks": landmarks.astype(np.float32),
        "visible": visible,
        "visibility": cover_labels(labels, landmarks, covered),
    }


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

"""Second predictions for faces that lie on their side or upside down, and honest errors for failed ones.

Training rolls faces by up to 30 degrees. On a face that is rolled further, a model places an upright face all
the same, and a calibration that was fitted on upright faces expects a small error there. The predicted error,
averaged over the landmarks, tells such a face: on the 300W validation faces, rolled by 0 to 180 degrees, it
was above the middle of the calibration's range for every face with a measured error above 15 %.
"""

import numpy as np
from jaxtyping import Float

from lcgcn_jax import geometry
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.uncertainty import UncertaintyModel

QUARTER_TURNS = (90.0, 180.0, 270.0)
"""Degrees clockwise by which a crop is turned for a second prediction."""

# Mean predicted error, in parts of the calibration's range. Of 210 upright 300W validation faces, none was
# above 0.5; of 25 with the lower half covered (errors up to 8 %), none above 0.66. Of rolled faces with an
# error above 40 %, 95 % were above 0.75; noise was above 0.83.
_UNCERTAIN = 0.5  # from here on, a face is tried again in other crops
_FAILED = (0.62, 0.8)  # here it goes from not failed to failed
# Upper end of that range at most, in multiples of its lower end. A calibration that was fitted on profiles
# too knows larger errors than upside-down faces are expected to have. With 9, it finds all 84 faces rolled by
# 90 and 180 degrees that one of easy faces finds, and no upright 300W validation face.
_HIGHEST = 9.0


def is_uncertain(expected: Float[np.ndarray, "k"], calibration: UncertaintyModel) -> bool:
    """Whether a face may lie so far from upright that it is worth predictions from other crops.

    Args:
      expected: error of each landmark by the calibration, in percent.
      calibration: what gave it.
    """
    return _part_of_range(expected, calibration) > _UNCERTAIN


def _part_of_range(expected: Float[np.ndarray, "k"], calibration: UncertaintyModel) -> float:
    """The mean predicted error of a face, in parts of the calibration's range; above 1 beyond it."""
    low = calibration.errors[0]
    high = min(calibration.errors[-1], _HIGHEST * low)
    return float((expected.mean() - low) / max(high - low, np.finfo(np.float64).tiny))


def honest_error(
    expected: Float[np.ndarray, "k"],
    landmarks: Float[np.ndarray, "k 2"],
    scheme: LandmarkScheme,
    calibration: UncertaintyModel,
) -> Float[np.ndarray, "k"]:
    """Raise the predicted error of a face that the model may have failed on.

    Over all orientations that a face may have, a landmark at distance r from the face's center is 4 r / pi
    off on average. The more uncertain the face, the more this error counts.

    Args:
      expected: error of each landmark by the calibration, in percent of the normalizing distance.
      landmarks: in pixels.
      scheme: what the landmarks are.
      calibration: what gave the predicted errors.

    Returns:
      Errors in percent, nowhere below `expected`; equal to it for a face that is certain.
    """
    distance = _center_distance(landmarks)
    size = np.sqrt((distance**2).mean())
    # The two points of a failed shape may lie next to each other, and some schemes have no distance here.
    unit = max(np.fmax(_normalizing_distance(landmarks, scheme), size), np.finfo(np.float64).tiny)
    return _with_failure(expected, 100 * 4 / np.pi * distance / unit, expected, calibration)


def pixel_error(
    expected: Float[np.ndarray, "k"],
    landmarks: Float[np.ndarray, "k 2"],
    scheme: LandmarkScheme,
    calibration: UncertaintyModel,
) -> Float[np.ndarray, "k"] | None:
    """Convert the predicted error to pixels, and raise it as `honest_error` does.

    Args:
      expected: error of each landmark by the calibration, in percent of the normalizing distance.
      landmarks: in pixels.
      scheme: what the landmarks are.
      calibration: what gave the predicted errors.

    Returns:
      Errors in pixels; None if the normalizing distance does not follow from the landmarks.
    """
    if scheme.normalizer == "given":
        return None
    # Not a number where the two points of a failed shape are at the same place.
    pixels = expected / 100 * np.nan_to_num(_normalizing_distance(landmarks, scheme))
    return _with_failure(pixels, 4 / np.pi * _center_distance(landmarks), expected, calibration)


def _center_distance(landmarks: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "k"]:
    return np.linalg.norm(landmarks - landmarks.mean(axis=0), axis=1)


def _normalizing_distance(landmarks: Float[np.ndarray, "k 2"], scheme: LandmarkScheme) -> float:
    visible = np.ones(len(landmarks), bool)
    return float(scheme.normalizing_distance(landmarks, visible, np.array(np.nan)))


def _with_failure(
    error: Float[np.ndarray, "k"],
    turned: Float[np.ndarray, "k"],
    expected: Float[np.ndarray, "k"],
    calibration: UncertaintyModel,
) -> Float[np.ndarray, "k"]:
    """The error, and for a face that the model may have failed on that of a random orientation."""
    certain, failed = _FAILED
    weight = np.clip((_part_of_range(expected, calibration) - certain) / (failed - certain), 0, 1)
    return (1 - weight) * error + weight * np.maximum(error, turned)


def roll(landmarks: Float[np.ndarray, "k 2"], scheme: LandmarkScheme, near: float) -> float:
    """Angle by which a face is turned clockwise in its image, in degrees, by its mirror pairs.

    Args:
      landmarks: in pixels.
      scheme: what they are; without mirror pairs, the answer is `near`.
      near: a rough value of the angle, less than 90 degrees off.
    """
    pairs = [(i, j) for i, j in enumerate(scheme.mirror) if i < j]
    if not pairs:
        return near
    left, right = np.array(pairs).T
    across = landmarks[right] - landmarks[left]
    # Which of a pair is the left one does not follow from the scheme.
    direction = np.array([np.cos(np.radians(near)), np.sin(np.radians(near))])
    across = across * np.where(across @ direction < 0, -1.0, 1.0)[:, None]
    x, y = across.sum(axis=0)
    return float(np.degrees(np.arctan2(y, x)))


def upright_crop(
    landmarks: Float[np.ndarray, "k 2"], degrees: float, size: int
) -> geometry.Affine | None:
    """Affine to a crop around landmarks in which the face is upright.

    Args:
      landmarks: in pixels of the image.
      degrees: by how much the face is turned clockwise in the image.
      size: side of the crop, in pixels.

    Returns:
      None if the landmarks are less than a pixel apart.
    """
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    upright = np.array([[cos, sin, 0.0], [-sin, cos, 0.0]])
    points = geometry.transform_points(upright, landmarks)
    box = geometry.box_of_landmarks(points, np.ones(len(points), bool))
    if not np.isfinite(box).all() or (box[2:] - box[:2]).max() < 1:
        return None
    return geometry.compose(geometry.crop_transform(box, size), upright)

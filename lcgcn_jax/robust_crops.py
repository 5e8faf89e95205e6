"""Second predictions for faces that lie on their side or upside down, and honest errors for failed ones.

Training rolls faces by up to 30 degrees. On a face that is rolled further, a model places an upright face all
the same, and a calibration that was fitted on upright faces expects a small error there. The expected error,
averaged over the landmarks, tells such a face: on the 300W validation faces, rolled by 0 to 180 degrees, it
was above the middle of the calibration's range for every face with a measured error above 15 %.
"""

import numpy as np
from jaxtyping import Float

from lcgcn_jax import geometry
from lcgcn_jax.calibration import Calibration
from lcgcn_jax.landmarks import LandmarkScheme

QUARTER_TURNS = (90.0, 180.0, 270.0)
"""Degrees clockwise by which a crop is turned for a second prediction."""

_UNCERTAIN = 0.5  # mean expected error from which a face may have failed, in parts of the calibration's range
_FAILED = 0.78  # the same, from which it has failed

Rows = Float[np.ndarray, "n k"]


def failure(
    expected: Rows, calibration: Calibration, certain: float = _UNCERTAIN, failed: float = _FAILED
) -> Float[np.ndarray, "n"]:
    """How likely the landmarks are those of another orientation than the face's: 0 to 1 for each face.

    Args:
      expected: error of each landmark by the calibration, in percent.
      calibration: what gave it.
      certain: mean error up to which the answer is 0, in parts of the calibration's range.
      failed: the same, from which the answer is 1.
    """
    low, high = calibration.errors[0], calibration.errors[-1]
    part = (expected.mean(axis=1) - low) / max(high - low, np.finfo(np.float64).tiny)
    return ((part - certain) / (failed - certain)).clip(0, 1)


def honest_error(
    expected: Rows,
    landmarks: Float[np.ndarray, "n k 2"],
    scheme: LandmarkScheme,
    calibration: Calibration,
) -> Rows:
    """Raise the expected error where the whole face may have failed.

    Over all orientations that a face may have, a landmark at distance r from the face's center is 4 r / pi
    off on average. This error counts by the probability of `failure`.

    Args:
      expected: error of each landmark by the calibration, in percent of the normalizing distance.
      landmarks: in pixels.
      scheme: what the landmarks are.
      calibration: what gave the expected errors.

    Returns:
      Errors in percent, nowhere below `expected`; equal to it for faces that are certain.
    """
    distance = np.linalg.norm(landmarks - landmarks.mean(axis=1, keepdims=True), axis=2)
    size = np.sqrt((distance**2).mean(axis=1))
    count, k = landmarks.shape[:2]
    unit = scheme.normalizing_distance(
        landmarks, np.ones((count, k), bool), np.full(count, np.nan, np.float64)
    )
    # The two points of a failed shape may lie next to each other, and some schemes have no distance here.
    unit = np.fmax(unit, size).clip(min=np.finfo(np.float64).tiny)
    turned = 100 * 4 / np.pi * distance / unit[:, None]
    weight = failure(expected, calibration)[:, None]
    return (1 - weight) * expected + weight * np.maximum(expected, turned)


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

"""Choice of second crops of a face, and predicted errors of faces that the model failed on.

Training rotates faces by up to 25 degrees and varies their size by 12 % and their position by 5 % of the
crop. In a crop beyond that, landmarks are inaccurate, and the predicted errors often too small: the
landmarks of an inaccurate box still show where a better crop is (`is_off`). On a face that is rotated
further, the model predicts an upright face. The mean predicted error over all landmarks identifies it
(`is_uncertain`).
"""

import numpy as np
from jaxtyping import Float

from lcgcn_jax import geometry
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.uncertainty import UncertaintyModel

# Mean predicted error as a fraction of the range of the calibration. After all crops, 4 of 1,050 clean and
# corrupted 300W validation faces are above 0.54, and all of 160 boxes with noise, flat colors, text, drawn
# hands, backs of heads or schematic faces. docs/how-to/difficult-faces.md has the measurements.
_UNCERTAIN = 0.38  # above this value, other crops are tried
_FAILED = (0.54, 0.8)  # the failure weight increases from 0 to 1 in this interval
# Maximum upper end of that range, as a multiple of its lower end. A calibration that was also fitted on
# profiles covers larger errors than those it predicts for upside-down faces. With 9, it identifies
# all 84 faces rotated by 90 and 180 degrees that a calibration of easy faces identifies, and no upright
# 300W validation face. Measured with earlier weights; the range of the shipped model ends at 6.9.
_MAX_RANGE = 9.0

# Largest differences of a crop from the one around its landmarks: ratio of the sides, distance of the
# centers in sides, rotation in degrees. With earlier weights, for 300W validation faces in true and in
# detected boxes, the 95th percentiles are 1.09, 0.066 and 13.
_MAX_ZOOM, _MAX_SHIFT, _MAX_ROLL = 1.15, 0.09, 20.0

PerLandmark = Float[np.ndarray, "k"]
Landmarks = Float[np.ndarray, "k 2"]


def is_uncertain(percent: PerLandmark, calibration: UncertaintyModel) -> bool:
    """Whether a face may be rotated so far that predictions from other crops are worthwhile.

    Args:
      percent: error of each landmark by the calibration, in percent.
    """
    return _fraction_of_range(percent, calibration) > _UNCERTAIN


def _fraction_of_range(percent: PerLandmark, calibration: UncertaintyModel) -> float:
    """Mean predicted error of a face as a fraction of the range of the calibration; may exceed 1."""
    low = calibration.errors[0]
    high = min(calibration.errors[-1], _MAX_RANGE * low)
    return float((percent.mean() - low) / max(high - low, np.finfo(np.float64).tiny))


def final_errors(
    percent: PerLandmark,
    landmarks: Landmarks,
    scheme: LandmarkScheme,
    calibration: UncertaintyModel,
) -> tuple[PerLandmark, PerLandmark | None]:
    """Convert predicted errors to pixels, and raise them for a face that the model may have failed on.

    With a random orientation of the face, a landmark at distance r from the center is off by 4 r / pi on
    average. The more uncertain the face, the more weight this error has.

    Args:
      percent: error of each landmark by the calibration, in percent of the normalizing distance.
      landmarks: in pixels.

    Returns:
      Predicted errors in percent and in pixels, never below those of the calibration; in pixels, None if the
      landmarks do not determine the normalizing distance (normalizer `given`).
    """
    center_distance = np.linalg.norm(landmarks - landmarks.mean(axis=0), axis=1)
    all_visible = np.ones(len(landmarks), bool)
    unit = float(scheme.normalizing_distance(landmarks, all_visible, np.array(np.nan)))
    # In a failed shape, the two points of the normalizer may coincide, which makes the unit small or NaN.
    size = np.sqrt((center_distance**2).mean())
    safe_unit = max(np.fmax(unit, size), np.finfo(np.float64).tiny)
    low, high = _FAILED
    weight = np.clip((_fraction_of_range(percent, calibration) - low) / (high - low), 0, 1)

    def increase(error, random_error):
        return (1 - weight) * error + weight * np.maximum(error, random_error)

    random_error = 4 / np.pi * center_distance
    final_percent = increase(percent, 100 * random_error / safe_unit)
    if scheme.normalizer == "given":
        return final_percent, None
    return final_percent, increase(percent / 100 * np.nan_to_num(unit), random_error)


def roll(landmarks: Landmarks, scheme: LandmarkScheme, near: float) -> float:
    """Clockwise rotation of a face in its image, in degrees, from its mirror pairs.

    Args:
      landmarks: in pixels.
      scheme: landmark scheme; without mirror pairs, the result is `near`.
      near: rough value of the angle, less than 90 degrees off.
    """
    pairs = [(i, j) for i, j in enumerate(scheme.mirror) if i < j]
    if not pairs:
        return near
    first, second = np.array(pairs).T
    across = landmarks[second] - landmarks[first]
    # The scheme does not define which landmark of a pair is the left one.
    direction = np.array([np.cos(np.radians(near)), np.sin(np.radians(near))])
    across = across * np.where(across @ direction < 0, -1.0, 1.0)[:, None]
    x, y = across.sum(axis=0)
    return float(np.degrees(np.arctan2(y, x)))


def upright_crop(landmarks: Landmarks, degrees: float, size: int) -> geometry.Affine | None:
    """Affine to a crop around landmarks in which the face is upright.

    Args:
      landmarks: in pixels of the image.
      degrees: clockwise rotation of the face in the image.
      size: side of the crop, in pixels.

    Returns:
      The affine; None if the landmarks are less than a pixel apart.
    """
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    upright = np.array([[cos, sin, 0.0], [-sin, cos, 0.0]])
    points = geometry.transform_points(upright, landmarks)
    box = geometry.box_of_landmarks(points)
    if not np.isfinite(box).all() or (box[2:] - box[:2]).max() < 1:
        return None
    return geometry.compose(geometry.crop_transform(box, size), upright)


def crop_around(
    landmarks: Landmarks, scheme: LandmarkScheme, size: int, crop: geometry.Affine | None = None
) -> geometry.Affine | None:
    """Affine from an image to a crop around landmarks, in which the face is upright.

    The crop of the next frame of a video, for example, is that around the landmarks in the previous one.

    Args:
      landmarks: in pixels of the image.
      scheme: landmark scheme; without mirror pairs, the face keeps its rotation in `crop`.
      size: side of the crop, in pixels.
      crop: affine to the crop in which the landmarks were predicted (`Face.crop`), where the face is
        rotated by less than 90 degrees; None if this holds for the image.

    Returns:
      The affine; None if the landmarks are less than a pixel apart, or not finite.
    """
    near = 0.0 if crop is None else -rotation_of(crop)
    return upright_crop(landmarks, roll(landmarks, scheme, near), size)


def candidate_crops(
    landmarks: Landmarks, scheme: LandmarkScheme, size: int, crop: geometry.Affine
) -> list[geometry.Affine]:
    """Affines to other crops of an uncertain face, which may be rotated, cut off or small in its crop.

    Args:
      landmarks: predicted landmarks, in pixels of the image.
      size: side of the crops, in pixels.
      crop: affine to the crop in which they were predicted.

    Returns:
      Rotations of the crop by 90, 180 and 270 degrees, a crop with twice its side, and the crop around the
      landmarks, unless they are too close to each other.
    """
    whole = geometry.box_of_crop(size, size)
    changes = [
        geometry.crop_transform(whole, size, rotation=angle) for angle in (90.0, 180.0, 270.0)
    ]
    changes.append(geometry.crop_transform(whole, size, zoom=0.5))
    around = crop_around(landmarks, scheme, size, crop)
    return [geometry.compose(change, crop) for change in changes] + (
        [] if around is None else [around]
    )


def is_off(crop: geometry.Affine, better: geometry.Affine, size: int) -> bool:
    """Whether a crop differs so much from another one that a second prediction is worthwhile.

    Args:
      crop: affine from the image to the crop of a prediction.
      better: affine to the crop around the predicted landmarks (`crop_around`).
      size: side of both crops, in pixels.
    """
    change = geometry.compose(better, geometry.invert(crop))
    scale = np.sqrt(np.linalg.det(change[:, :2]))
    center = np.full(2, (size - 1) / 2)
    shift = np.linalg.norm(geometry.transform_points(change, center) - center) / size
    return bool(
        abs(np.log(scale)) > np.log(_MAX_ZOOM)
        or shift > _MAX_SHIFT
        or abs(rotation_of(change)) > _MAX_ROLL
    )


def rotation_of(affine: geometry.Affine) -> float:
    """Clockwise rotation of a similarity transform, in degrees."""
    return float(np.degrees(np.arctan2(affine[1, 0], affine[0, 0])))


def is_reliable(percent: PerLandmark, calibration: UncertaintyModel) -> bool:
    """Whether a face is probably predicted well, rather than absent or missed by the model.

    Args:
      percent: error of each landmark by the calibration, in percent.
    """
    return _fraction_of_range(percent, calibration) <= _FAILED[0]

"""Identities of faces over time: constant-velocity motion, landmark shape, and optimal assignment.

Each track has a Kalman filter for the center and the size of its face. A face in the next frame is compared
with a track by its negative log-likelihood under the motion of the track, and by the distance of the two
landmark shapes; the Hungarian algorithm assigns all faces to tracks at once. The filter of a face that is
occluded, or outside the image, becomes less certain with time, so that the face may come back at another
place. All noise is relative to the size of the face, and times are in seconds: neither the resolution nor the
frame rate matters.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from lcgcn_jax.inference.face import Face

MAX_ABSENCE = 1.0
"""Maximum time in seconds in which a face may be missing and keep its track."""

# In face sides. Position noise: of the center of the landmarks in one frame. Acceleration: spectral density,
# in sides^2/s^3; after 0.2 s without an observation, the position is uncertain by 0.3 sides.
_POSITION_NOISE = 0.03
_ACCELERATION = 30.0
_INITIAL_SPEED = 3.0  # sides/s: standard deviation of the velocity of a new face
_VELOCITY_DECAY = 0.4  # seconds: a face that is not observed is assumed to slow down
_SIZE_WEIGHT = 2.0  # a change of the size by 5 % counts as much as a motion by 10 % of a side

# Distance of shapes (`shape_distance`) of one face in successive observations, and its maximum after a gap.
# A rotation of the head by 5 degrees changes the shape by 0.05, by 10 degrees by 0.09, and by 30 degrees by
# 0.25 (synthetic faces). Between the 210 300W validation faces, the distance is 0.09 (1st percentile), 0.12
# (10th) and 0.20 (median): shapes distinguish faces that cross, but not persons that replace each other.
_SHAPE_NOISE = (0.04, 0.06)
_SHAPE_GAP = 0.5  # seconds until the maximum

_MAX_DEVIATION = 5.0  # of a face from its track, in standard deviations
_SAME_FACE = 0.25  # mean distance of landmarks of one face in two predictions, in face sides
_IMPOSSIBLE = 1e6

Landmarks = Float[np.ndarray, "k 2"]


class Track:
    """Motion and shape of one face.

    Attributes:
      number: identity of the face.
      face: the face in the last frame in which it was observed.
      time: time of that frame in seconds.
    """

    def __init__(self, number: int, face: Face, time: float):
        self.number, self.face, self.time = number, face, time
        self._state_time = time
        self._mean = np.stack([_position(face.landmarks), np.zeros(3)])  # position, velocity
        self._covariance = np.diag([_POSITION_NOISE, _INITIAL_SPEED]) ** 2  # in sides

    def predict(self, time: float) -> None:
        """Advance the motion to the time of the next frame."""
        step = time - self._state_time
        decay = np.exp(-step / _VELOCITY_DECAY)
        motion = np.array([[1, _VELOCITY_DECAY * (1 - decay)], [0, decay]])
        noise = _ACCELERATION * np.array([[step**3 / 3, step**2 / 2], [step**2 / 2, step]])
        # The size has the third place of the position; its velocity is relative already.
        self._mean = motion @ self._mean
        self._covariance = motion @ self._covariance @ motion.T + noise
        self._state_time = time

    @property
    def uncertainty(self) -> float:
        """Standard deviation of the predicted position, in face sides."""
        return float(np.sqrt(self._covariance[0, 0]))

    def landmarks(self) -> Landmarks:
        """Predicted landmarks: the last ones, moved and scaled."""
        center, size = _center(self.face.landmarks), side_of(self.face.landmarks)
        scale = np.exp(self._mean[0, 2]) / size
        return self._mean[0, :2] + scale * (self.face.landmarks - center)

    def cost(self, face: Face) -> float:
        """Twice the negative log-likelihood of a face, up to a constant; infinite if it is impossible."""
        variance = self._covariance[0, 0] + _POSITION_NOISE**2
        side = np.exp(self._mean[0, 2])
        residual = _position(face.landmarks) - self._mean[0]
        residual = residual / [side, side, 1 / _SIZE_WEIGHT]
        deviation = (residual**2).sum() / variance
        gap = min(1.0, (self._state_time - self.time) / _SHAPE_GAP)
        shape_noise = np.interp(gap, [0, 1], _SHAPE_NOISE)
        deviation += (shape_distance(self.face.landmarks, face.landmarks) / shape_noise) ** 2
        if not deviation < _MAX_DEVIATION**2:
            return np.inf
        # The second term: a track with an uncertain position does not attract the faces of the others.
        return float(deviation + 3 * np.log(variance))

    def update(self, face: Face) -> None:
        """Correct the motion by the face in the frame of the last `predict`."""
        gain = self._covariance[:, 0] / (self._covariance[0, 0] + _POSITION_NOISE**2)
        self._mean = self._mean + gain[:, None] * (_position(face.landmarks) - self._mean[0])
        self._covariance = self._covariance - np.outer(gain, self._covariance[0])
        self.face, self.time = face, self._state_time


def assign(tracks: Sequence[Track], faces: Sequence[Face]) -> list[int | None]:
    """Index of the track of each face, or None for a face that belongs to none of them.

    The assignment has the largest number of possible pairs, and among these the smallest total cost.
    """
    costs = np.array([[track.cost(face) for face in faces] for track in tracks])
    costs = costs.reshape(len(tracks), len(faces))
    result: list[int | None] = [None] * len(faces)
    for row, column in optimal_pairs(costs, np.isfinite(costs)):
        result[column] = row
    return result


def optimal_pairs(
    costs: Float[np.ndarray, "m n"], is_possible: Bool[np.ndarray, "m n"]
) -> list[tuple[int, int]]:
    """Rows and columns of the largest number of possible pairs with the smallest total cost.

    A row and a column are in at most one pair (Hungarian algorithm). Costs are below 1e6.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and only videos need it

    pairs = zip(*linear_sum_assignment(np.where(is_possible, costs, _IMPOSSIBLE)), strict=True)
    return [(int(row), int(column)) for row, column in pairs if is_possible[row, column]]


def is_same(first: Landmarks, second: Landmarks) -> bool:
    """Whether two predictions in one frame are of the same face."""
    distance = np.linalg.norm(first - second, axis=1).mean()
    return bool(distance < _SAME_FACE * max(side_of(first), side_of(second)))


def shape_distance(first: Landmarks, second: Landmarks) -> float:
    """Full Procrustes distance of two landmark shapes, in 0..1 (Dryden and Mardia, section 4.2).

    It is the sine of the angle between the shapes, without their positions, sizes and rotations. It is 0 if
    one of the shapes is a single point.
    """
    a, b = (
        (points - points.mean(axis=0)).astype(np.float64).view(np.complex128)[:, 0]
        for points in (np.ascontiguousarray(first), np.ascontiguousarray(second))
    )
    norms = np.vdot(a, a).real * np.vdot(b, b).real
    return float(np.sqrt(max(0.0, 1 - abs(np.vdot(a, b)) ** 2 / norms))) if norms > 0 else 0.0


def side_of(landmarks: Landmarks) -> float:
    """Size of a face: the longer side of the bounding box of its landmarks, at least a pixel."""
    return max(1.0, float(np.ptp(landmarks, axis=0).max()))


def _center(landmarks: Landmarks) -> Float[np.ndarray, "2"]:
    return landmarks.mean(axis=0)


def _position(landmarks: Landmarks) -> Float[np.ndarray, "3"]:
    """Center and logarithm of the size."""
    return np.append(_center(landmarks), np.log(side_of(landmarks)))

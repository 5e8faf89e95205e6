"""Face tracking and temporal smoothing of landmarks."""

import numpy as np
from jaxtyping import Float

from lcgcn_jax.geometry import Box, box_overlaps

MIN_OVERLAP = 0.3
"""Minimum IoU of the boxes of a face in two frames."""

MAX_GAP = 5
"""Maximum number of frames in which a tracked face may be missing."""

MIN_CUTOFF = 1.0
"""Cutoff frequency for a landmark at rest, in Hz. Lower values reduce jitter."""

BETA = 16.0
"""Increase of the cutoff frequency with the speed, in Hz per face side per second. Higher values reduce lag.

Both values were tuned on an image that moves at about one face side per second and then rests, with noise,
at 25 frames per second. The jitter of a small model at rest is 0.40 % of the eye distance per frame instead
of 1.30 %, and the lag during the motion adds 0.5 % to the error.
"""

SPEED_CUTOFF = 1.0
"""Cutoff frequency of the speed, in Hz (Casiez et al.)."""


class FaceTracker:
    """Tracker of the faces of a video, by greedy matching of boxes, largest IoU first."""

    def __init__(self):
        self._boxes: dict[int, Box] = {}
        self._gaps: dict[int, int] = {}  # frames since the face was last detected
        self._next = 0

    def update(self, boxes: Float[np.ndarray, "n 4"]) -> list[int]:
        """Return the track numbers of the faces in the next frame, in their order.

        Args:
          boxes: face boxes.
        """
        tracks = list(self._boxes)
        overlaps = np.array([box_overlaps(self._boxes[track], boxes) for track in tracks])
        overlaps = overlaps.reshape(len(tracks), len(boxes))
        matches: dict[int, int] = {}
        while overlaps.size and overlaps.max() >= MIN_OVERLAP:
            row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
            matches[int(column)] = tracks[row]
            overlaps[row], overlaps[:, column] = 0, 0
        for column in range(len(boxes)):
            if column not in matches:
                matches[column] = self._next
                self._next += 1
        for track in set(tracks) - set(matches.values()):
            self._gaps[track] += 1
            if self._gaps[track] > MAX_GAP:
                del self._boxes[track], self._gaps[track]
        for column, track in matches.items():
            self._boxes[track], self._gaps[track] = boxes[column], 0
        return [matches[column] for column in range(len(boxes))]


class OneEuroFilter:
    """Low-pass filter whose cutoff frequency increases with the speed (Casiez, Roussel and Vogel 2012).

    The cutoff of each landmark is `MIN_CUTOFF + BETA * speed`, with the speed in face sides per second.
    """

    def __init__(self):
        self._time: float | None = None

    def __call__(
        self, landmarks: Float[np.ndarray, "k 2"], *, time: float, side: float
    ) -> Float[np.ndarray, "k 2"]:
        """Smooth the landmarks of the next frame.

        Args:
          landmarks: in pixels.
          time: time of the frame in seconds, later than that of the previous frame.
          side: longer side of the face box, in pixels.
        """
        if self._time is None:
            self._value, self._velocity = landmarks, np.zeros_like(landmarks)
        else:
            elapsed = time - self._time
            velocity = (landmarks - self._value) / elapsed
            self._velocity += _smoothing(SPEED_CUTOFF, elapsed) * (velocity - self._velocity)
            speed = np.linalg.norm(self._velocity, axis=1, keepdims=True) / side
            weight = _smoothing(MIN_CUTOFF + BETA * speed, elapsed)
            self._value = self._value + weight * (landmarks - self._value)
        self._time = time
        return self._value.copy()


def _smoothing(cutoff, elapsed: float):
    """Weight of a new value in a first-order low-pass filter, for a NumPy array or a number."""
    rate = 2 * np.pi * cutoff * elapsed
    return rate / (rate + 1)

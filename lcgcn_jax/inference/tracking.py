"""Faces from frame to frame: which is which, and landmarks that do not tremble."""

import numpy as np
from jaxtyping import Float

from lcgcn_jax.geometry import Box, box_overlaps

MIN_OVERLAP = 0.3
"""IoU from which a box is the same face as a box of an earlier frame."""

MAX_GAP = 5
"""Frames that a face may be missing and still be known again."""

MIN_CUTOFF = 1.0
"""Cutoff frequency of a landmark at rest, in Hz; less trembles less."""

BETA = 16.0
"""Hz by which the cutoff rises for a speed of one face side a second; more lags less.

Both were chosen on a image that moves by about that speed and then rests, with noise, at 25 frames a
second: at rest the landmarks of a small model go 0.40 % of the eye distance from frame to frame instead
of 1.30 %, and the lag on the move adds 0.5 % to their error.
"""

SPEED_CUTOFF = 1.0
"""Cutoff frequency of the speed itself, in Hz (Casiez et al.)."""


class FaceTracker:
    """Numbers the faces of a video: the pair of boxes that overlap most is one face, and so on."""

    def __init__(self):
        self._boxes: dict[int, Box] = {}
        self._missing: dict[int, int] = {}
        self._next = 0

    def update(self, boxes: Float[np.ndarray, "n 4"]) -> list[int]:
        """The numbers of the faces of the next frame, in their order.

        Args:
          boxes: their face boxes.
        """
        numbers = list(self._boxes)
        overlaps = np.array([box_overlaps(self._boxes[i], boxes) for i in numbers])
        overlaps = overlaps.reshape(len(numbers), len(boxes))
        found: dict[int, int] = {}
        while overlaps.size and overlaps.max() >= MIN_OVERLAP:
            row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
            found[int(column)] = numbers[row]
            overlaps[row], overlaps[:, column] = 0, 0
        for column in range(len(boxes)):
            if column not in found:
                found[column] = self._next
                self._next += 1
        for number in set(numbers) - set(found.values()):
            self._missing[number] += 1
            if self._missing[number] > MAX_GAP:
                del self._boxes[number], self._missing[number]
        for column, number in found.items():
            self._boxes[number], self._missing[number] = boxes[column], 0
        return [found[column] for column in range(len(boxes))]


class OneEuroFilter:
    """A low pass whose cutoff rises with the speed (Casiez, Roussel and Vogel 2012).

    Every landmark has a cutoff of its own: `MIN_CUTOFF + BETA * speed`, with the speed in face sides a
    second.
    """

    def __init__(self):
        self._time: float | None = None

    def __call__(
        self, landmarks: Float[np.ndarray, "k 2"], *, time: float, side: float
    ) -> Float[np.ndarray, "k 2"]:
        """The smoothed landmarks of the next frame.

        Args:
          landmarks: in pixels.
          time: of the frame, in seconds; later than that of the frame before.
          side: longer side of the face's box, in pixels.
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
    """The weight of a new value in a first-order low pass; NumPy array or number."""
    rate = 2 * np.pi * cutoff * elapsed
    return rate / (rate + 1)

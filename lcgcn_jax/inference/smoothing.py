"""Temporal smoothing of landmarks."""

import numpy as np
from jaxtyping import Float

MIN_CUTOFF = 1.0
"""Cutoff frequency for a landmark at rest, in Hz. Lower values reduce jitter."""

BETA = 16.0
"""Increase of the cutoff frequency with the speed, in Hz per face side per second. Higher values reduce lag.

Both values were tuned on an image that moves at about one face side per second and then rests, with noise,
at 25 frames per second.
"""

SPEED_CUTOFF = 2.0
"""Cutoff frequency of the velocity, in Hz."""


class OneEuroFilter:
    """Low-pass filter whose cutoff frequency increases with the speed (Casiez, Roussel and Vogel 2012).

    The cutoff of each landmark is `MIN_CUTOFF + BETA * speed`, with the speed in face sides per second.
    Before each step, the filtered landmarks are moved by the rigid part of the velocity (translation,
    rotation and scale of the face), so that a steady motion of the face causes no lag. In simulated motions
    with the noise of a small model, this reduces the error to a quarter for a rotation by 12 degrees per
    second, and to a half for a motion of about one face side per second; the jitter at rest is 14 % larger.
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
            velocity = (landmarks - self._last) / elapsed
            self._velocity = self._velocity + _smoothing(SPEED_CUTOFF, elapsed) * (
                velocity - self._velocity
            )
            speed = np.linalg.norm(self._velocity, axis=1, keepdims=True) / side
            weight = _smoothing(MIN_CUTOFF + BETA * speed, elapsed)
            moved = self._value + elapsed * _rigid_part(self._velocity, landmarks)
            self._value = moved + weight * (landmarks - moved)
        self._time, self._last = time, landmarks
        return self._value.copy()


def _rigid_part(
    velocity: Float[np.ndarray, "k 2"], landmarks: Float[np.ndarray, "k 2"]
) -> Float[np.ndarray, "k 2"]:
    """Least-squares fit of a translation, rotation and scale to the velocities of landmarks."""
    points = landmarks - landmarks.mean(axis=0)
    mean = velocity.mean(axis=0)
    normals = np.stack([-points[:, 1], points[:, 0]], axis=1)
    size = max(float((points**2).sum()), np.finfo(np.float64).tiny)
    growth, rotation = ((velocity * axis).sum() / size for axis in (points, normals))
    return mean + growth * points + rotation * normals


def _smoothing(cutoff, elapsed: float):
    """Weight of a new value in a first-order low-pass filter, for a NumPy array or a number."""
    rate = 2 * np.pi * cutoff * elapsed
    return rate / (rate + 1)

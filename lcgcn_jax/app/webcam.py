"""Faces of a webcam in one browser session."""

import collections
import threading
import time
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from lcgcn_jax.errors import count_of
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.inference.tracking import FaceTracker
from lcgcn_jax.visualize.faces import Image
from lcgcn_jax.visualize.overlays import draw

_MAX_SIDE = 960  # of frames, in pixels
_NUM_TIMES = 10  # over which the rate is averaged
_LISTED = 5  # track numbers in the text


class Webcam:
    """Tracker and frame rate of one browser session.

    Frames that arrive at the same time, as after a restart of the camera, are processed in turn.
    """

    def __init__(self):
        self._tracker: FaceTracker | None = None
        self._times: collections.deque[float] = collections.deque(maxlen=_NUM_TIMES)
        self._lock = threading.Lock()

    def predict(
        self, frame: UInt8[np.ndarray, "_h _w _c"], model: LandmarkModel
    ) -> tuple[Image, str]:
        """Follow the faces in the next frame, with smooth landmarks.

        Args:
          frame: RGB or RGBA; scaled down if it is large.
          model: another model than that of the previous frame starts new tracks.

        Returns:
          The frame with its faces, and a line of text.
        """
        frame = np.ascontiguousarray(frame[..., :3])
        factor = _MAX_SIDE / max(frame.shape[:2])
        if factor < 1:
            frame = cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        with self._lock:
            if self._tracker is None or self._tracker.model is not model:
                self._tracker = FaceTracker(model, smooth=True)
                self._times.clear()
            now = time.monotonic()
            faces = self._tracker.update(frame, now)
            self._times.append(now)
            text = _describe(faces, self._times)
        return draw(frame, faces), text


def _describe(faces: Sequence[Face], times: Sequence[float]) -> str:
    count = count_of(len(faces), "face")
    if faces:
        numbers = ", ".join(str(face.track) for face in faces[:_LISTED])
        numbers += ", ..." if len(faces) > _LISTED else ""
        count += f" (track{'' if len(faces) == 1 else 's'} {numbers})"
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
    return f"{count}, {rate:.1f} frames per second"

"""Tracking of the faces of a video: each crop follows the last landmarks, and the detector runs rarely."""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from lcgcn_jax.errors import InputError, count_of
from lcgcn_jax.geometry import Box, box_of_landmarks, box_overlaps
from lcgcn_jax.image_arrays import ImageInput, describe_value, rgb_image
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.face_detector import MIN_SCORE
from lcgcn_jax.inference.face_prediction import FacePredictor
from lcgcn_jax.inference.image_inputs import BoxedImage, BoxInput, check_fraction
from lcgcn_jax.inference.robust_crops import crop_around, is_uncertain
from lcgcn_jax.inference.smoothing import OneEuroFilter
from lcgcn_jax.inference.track_matching import (
    MAX_ABSENCE,
    Track,
    assign,
    is_same,
    optimal_pairs,
    side_of,
)
from lcgcn_jax.inference.video import open_video

if TYPE_CHECKING:
    from lcgcn_jax.inference.model import LandmarkModel

DETECT_EVERY = 10
"""Default number of frames from one run of the face detector to the next, while all faces are tracked."""

DEFAULT_RATE = 25.0
"""Frames per second of frames without times."""

# Seconds for which a tracked face may remain undetected, as a rotated or an occluded face often is.
_MAX_UNDETECTED = 2.0
_MIN_FRAMES = 3  # in which a face has to be observed for its track to last while it is missing
_MAX_STEP = 5.0  # seconds from one frame to the next over which tracks last
_MAX_WAIT = 4  # frames from one detection to the next while a face is missing or doubtful
_MIN_OVERLAP = 0.4  # IoU of a tracked face and its detection
_ANY_OVERLAP = 0.1  # IoU above which a tracked face probably lost the landmarks of the detected one
_MAX_UNCERTAINTY = 0.25  # std. of a predicted position in face sides; a crop extends by 0.125
_MIN_CONFIDENCE = 0.5  # mean confidence of a tracked face, relative to that of the last detection


Pixels = UInt8[np.ndarray, "h w 3"]


class TrackedFrame(NamedTuple):
    """A frame of a video with its faces.

    Attributes:
      time: time in seconds.
      image: RGB.
      faces: its faces; `Face.track` identifies a face over the frames.
    """

    time: float
    image: Pixels
    faces: list[Face]


@dataclasses.dataclass
class _TrackedFace:
    """State of a track beyond its motion.

    Attributes:
      track: its motion and its last face.
      detection_time: time of its last detection.
      confidence: mean confidence of its landmarks at that time.
      is_live: whether it was observed in the last frame.
      num_frames: number of frames in which it was observed.
      smoother: filter of its landmarks.
    """

    track: Track
    detection_time: float = 0.0
    confidence: float = 0.0
    is_live: bool = True
    num_frames: int = 0
    smoother: OneEuroFilter = dataclasses.field(default_factory=OneEuroFilter)


class _FollowedFace(NamedTuple):
    """A face predicted around its landmarks in the previous frame."""

    tracked: _TrackedFace
    face: Face
    is_doubtful: bool


class _Candidate(NamedTuple):
    """A predicted face of a frame, and whether the detector (or the caller) located it."""

    face: Face
    is_detected: bool


class FaceTracker:
    """Tracker of the faces of one video, frame by frame.

    The landmarks of a face are predicted in an upright crop around its landmarks in the previous frame,
    moved by their velocity. The face detector runs every `detect_every` frames, and when a prediction is
    doubtful, a track is lost, or the time since the last frame is long. Only the detector finds new faces,
    within `detect_every` frames, and a track starts when its landmarks are reliable (`Face.reliable`). A face
    that was missing for at most a second keeps its track, if it was observed in three frames.

    Attributes:
      model: the model.
      num_detections: number of frames in which the detector ran.
    """

    def __init__(
        self,
        model: "LandmarkModel",
        *,
        detect_every: int = DETECT_EVERY,
        smooth: bool = False,
        min_score: float = MIN_SCORE,
        min_confidence: float = 0.0,
    ):
        """Set up the tracker.

        Args:
          detect_every: maximum number of frames from one run of the face detector to the next.
          smooth: smooth the landmarks over time (One Euro filter).
          min_score: minimum score of a detected face, in 0..1.
          min_confidence: minimum mean confidence of the landmarks of a face, in 0..1.

        Raises:
          InputError: `detect_every` is less than 1, or a minimum is not in 0..1.
        """
        check_fraction("min_score", min_score)
        check_fraction("min_confidence", min_confidence)
        if not isinstance(detect_every, int | np.integer) or detect_every < 1:
            raise InputError(
                f"detect_every: {detect_every!r}; give a whole number of frames of at least 1"
            )
        self.num_detections = 0
        self.model, self._detect_every, self._smooth = model, detect_every, smooth
        self._min_score, self._min_confidence = min_score, min_confidence
        self._tracks: list[_TrackedFace] = []
        self._next_number = 0
        self._time = -math.inf
        self._frames_since_detection = 0
        self._search_wait = 1  # frames from one detection to the next while a face is missing

    def update(
        self, image: ImageInput, time: float | None = None, boxes: Iterable[BoxInput] | None = None
    ) -> list[Face]:
        """Predict the faces in the next frame.

        Args:
          image: RGB frame, as in `LandmarkModel.predict`.
          time: time of the frame in seconds; by default 1/25 s after the previous frame.
          boxes: boxes of all faces in this frame, as in `LandmarkModel.predict`; without them, faces are
            followed and detected.

        Returns:
          The faces, by the number of their track (`Face.track`). The box of a face that was not detected in
          this frame is that of its landmarks, and its score is that of its last detection.

        Raises:
          InputError: as in `LandmarkModel.predict`, or the time is not later than the previous one.
        """
        pixels = rgb_image(image, "frame")
        # Before the time: the caller may repeat a call that failed.
        boxed = None if boxes is None else self.model.boxed_image(pixels, boxes, name="frame")
        self._advance(time)
        if boxed is None:
            candidates = self._follow_and_detect(pixels)
        else:
            candidates = [_Candidate(face, True) for face in self.model.predict_boxed([boxed])[0]]
        return self._update_tracks(
            [c for c in candidates if c.face.confidence.mean() >= self._min_confidence]
        )

    def _advance(self, time: float | None) -> None:
        """Move all tracks to the time of the next frame, and end those whose face is missing for long."""
        is_first = self._time == -math.inf
        if time is None:
            time = 0.0 if is_first else self._time + 1 / DEFAULT_RATE
        try:
            seconds = math.nan if isinstance(time, str | bytes) else float(time)
        except (TypeError, ValueError):
            seconds = math.nan
        if not math.isfinite(seconds) or seconds <= self._time:
            after = "" if is_first else f", later than {self._time:g} s"
            text = repr(time) if math.isnan(seconds) else f"{seconds:g}"
            raise InputError(f"time {text}: give the time of the frame in seconds{after}")
        self._time = time = seconds
        self._tracks = [
            tracked
            for tracked in self._tracks
            if time - tracked.track.time <= (_MAX_STEP if tracked.is_live else MAX_ABSENCE)
        ]
        for tracked in self._tracks:
            tracked.track.predict(time)

    def _follow_and_detect(self, pixels: Pixels) -> list[_Candidate]:
        """Predict the faces of the last frame in this frame, and run the detector if it is due."""
        live = [tracked for tracked in self._tracks if tracked.is_live]
        followed = self._follow(pixels, live)
        self._frames_since_detection += 1
        if not self._is_detection_due(live, followed):
            return [_Candidate(f.face, False) for f in followed]
        self._frames_since_detection = 0
        self.num_detections += 1
        return self._detect(self.model.boxed_image(pixels, min_score=self._min_score), followed)

    def _follow(self, pixels: Pixels, live: Sequence[_TrackedFace]) -> list[_FollowedFace]:
        """Predict tracked faces around their expected landmarks; without those that are lost."""
        height, width = pixels.shape[:2]
        targets, boxes, crops = [], [], []
        for tracked in live:
            landmarks, face = tracked.track.landmarks(), tracked.track.face
            crop = crop_around(landmarks, self.model.scheme, self.model.image_size, face.crop)
            x, y = landmarks.mean(axis=0)
            if crop is not None and 0 <= x < width and 0 <= y < height:
                targets.append(tracked)
                boxes.append(box_of_landmarks(landmarks))
                crops.append(crop)
        scores = [tracked.track.face.score for tracked in targets]
        faces = self._predictor.follow(BoxedImage(pixels, boxes, scores, crops))
        followed: list[_FollowedFace] = []
        for tracked, face in zip(targets, faces, strict=True):
            # Of two tracks on one face, one has lost its face; `assign` decides which one.
            is_duplicate = any(is_same(face.landmarks, f.face.landmarks) for f in followed)
            if np.isfinite(tracked.track.cost(face)) and not is_duplicate:
                face = dataclasses.replace(face, box=box_of_landmarks(face.landmarks))
                followed.append(_FollowedFace(tracked, face, self._is_doubtful(face, tracked)))
        return followed

    def _detect(
        self, detections: BoxedImage, followed: Sequence[_FollowedFace]
    ) -> list[_Candidate]:
        """Combine detected and followed faces: predict those that are new or were doubtful."""
        boxes = np.array(detections.boxes).reshape(-1, 4)
        matches = _match_boxes(boxes, [f.face.box for f in followed])
        candidates, remaining = [], list(range(len(boxes)))
        for (_, face, is_doubtful), row in zip(followed, matches, strict=True):
            if row is not None and not is_doubtful:
                face = dataclasses.replace(face, score=detections.scores[row])
                candidates.append(_Candidate(face, True))
                remaining.remove(row)
        image = BoxedImage(
            detections.pixels,
            list(boxes[remaining]),
            [detections.scores[row] for row in remaining],
            None if detections.crops is None else [detections.crops[row] for row in remaining],
        )
        candidates += [_Candidate(face, True) for face in self._predictor.predict([image])[0]]
        for (tracked, face, is_doubtful), row in zip(followed, matches, strict=True):
            overlap = box_overlaps(face.box, boxes[remaining]).max(initial=0.0)
            is_old = self._time - tracked.detection_time > _MAX_UNDETECTED
            if row is None and not is_doubtful and overlap < _ANY_OVERLAP and not is_old:
                candidates.append(_Candidate(face, False))
        return _without_duplicates(candidates)

    def _is_doubtful(self, face: Face, tracked: _TrackedFace) -> bool:
        if _has_uncertain_position(tracked):
            return True
        calibration, percent = self.model.calibration, face.predicted_error_percent
        if calibration is not None and percent is not None:
            return is_uncertain(percent, calibration)
        return bool(face.confidence.mean() < _MIN_CONFIDENCE * tracked.confidence)

    def _is_detection_due(
        self, live: Sequence[_TrackedFace], followed: Sequence[_FollowedFace]
    ) -> bool:
        """Whether the detector has to run in this frame.

        While there is no face, or one remains missing or doubtful, it runs in the next frame, two frames
        later, and then every four frames.
        """
        if len(followed) < len(live):
            self._search_wait = 1
            return True
        if any(_has_uncertain_position(tracked) for tracked in live):
            return True
        is_complete = live and len(live) == len(self._tracks)
        is_searching = not is_complete or any(f.is_doubtful for f in followed)
        if is_searching and self._frames_since_detection >= self._search_wait:
            self._search_wait = min(2 * self._search_wait, _MAX_WAIT)
            return True
        if not is_searching:
            self._search_wait = 1
        return self._frames_since_detection >= self._detect_every

    def _update_tracks(self, candidates: Sequence[_Candidate]) -> list[Face]:
        """Assign the faces of this frame to tracks, and start tracks for new faces."""
        rows = assign([t.track for t in self._tracks], [face for face, _ in candidates])
        for tracked in self._tracks:
            tracked.is_live = False
        faces: dict[int, Face] = {}
        for (face, is_detected), row in zip(candidates, rows, strict=True):
            if row is not None:
                tracked = self._tracks[row]
                tracked.track.update(face)
            elif is_detected and (face.reliable is not False or face.score is None):
                tracked = _TrackedFace(Track(self._next_number, face, self._time))
                self._next_number += 1
                self._tracks.append(tracked)
            else:
                continue
            tracked.is_live = True
            tracked.num_frames += 1
            if is_detected:
                tracked.detection_time = self._time
                tracked.confidence = float(face.confidence.mean())
            landmarks = face.landmarks
            if self._smooth:
                landmarks = tracked.smoother(landmarks, time=self._time, side=side_of(landmarks))
            number = tracked.track.number
            faces[number] = dataclasses.replace(face, landmarks=landmarks, track=number)
        # A half occluded face may be predicted elsewhere for a frame, and start a separate track.
        self._tracks = [t for t in self._tracks if t.is_live or t.num_frames >= _MIN_FRAMES]
        return [faces[number] for number in sorted(faces)]

    @functools.cached_property
    def _predictor(self) -> FacePredictor:
        model = self.model
        return FacePredictor(model.predict_crops, model.scheme, model.image_size, model.calibration)


def track_frames(
    tracker: FaceTracker,
    frames: Iterable[ImageInput] | str | os.PathLike,
    times: Iterable[float] | None = None,
) -> Iterator[TrackedFrame]:
    """Track the faces of a video (`LandmarkModel.track`)."""
    if isinstance(frames, str | os.PathLike):
        if times is not None:
            raise InputError("times: a video has its own time stamps; leave out the times")
        with open_video(frames) as video:
            for time, pixels in video.frames:
                yield TrackedFrame(time, pixels, tracker.update(pixels, time))
        return
    if getattr(frames, "ndim", 4) != 4 or not isinstance(frames, Iterable):
        raise InputError(
            f"frames: {describe_value(frames)}; give RGB images, or the path of a video"
        )
    if not (times is None or isinstance(times, Iterable)):
        raise InputError(f"times: {describe_value(times)}; give one for each frame")
    stamps = (i / DEFAULT_RATE for i in itertools.count()) if times is None else iter(times)
    for number, image in enumerate(frames):
        time = next(stamps, None)
        if time is None:
            raise InputError(
                f"times: {count_of(number, 'time')}, but more frames; give one for each"
            )
        try:
            time = float(time)
        except (TypeError, ValueError) as error:
            raise InputError(f"times: {time!r} is not a number of seconds") from error
        pixels = rgb_image(image, f"frame {number}")
        yield TrackedFrame(time, pixels, tracker.update(pixels, time))


def _has_uncertain_position(tracked: _TrackedFace) -> bool:
    """Whether the time since the last frame is so long that the face may be outside the crop."""
    return tracked.track.uncertainty > _MAX_UNCERTAINTY


def _match_boxes(boxes: Float[np.ndarray, "n 4"], tracked_boxes: Sequence[Box]) -> list[int | None]:
    """Index of the detected box of each tracked face; None if it was not detected."""
    overlaps = np.array([box_overlaps(box, boxes) for box in tracked_boxes])
    overlaps = overlaps.reshape(len(tracked_boxes), len(boxes))
    matches: list[int | None] = [None] * len(tracked_boxes)
    for row, column in optimal_pairs(-overlaps, overlaps >= _MIN_OVERLAP):
        matches[row] = column
    return matches


def _without_duplicates(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Keep the first of several predictions of one face."""
    distinct: list[_Candidate] = []
    for candidate in candidates:
        if not any(is_same(candidate.face.landmarks, c.face.landmarks) for c in distinct):
            distinct.append(candidate)
    return distinct

"""Prediction for one video: JSON lines with the faces of each frame, and an annotated video.

Three threads work at the same time: one decodes frames, the caller's detects and predicts, and one draws,
encodes and writes.
"""

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from lcgcn_jax.atomic_io import replacing_all
from lcgcn_jax.errors import InputError, count_of
from lcgcn_jax.inference import results
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.image_inputs import BoxInput
from lcgcn_jax.inference.result_files import rename_interrupted
from lcgcn_jax.inference.sources import InputFile
from lcgcn_jax.inference.tracking import DETECT_EVERY, FaceTracker
from lcgcn_jax.inference.video import Frame, OrderedWorker, Video, VideoWriter, open_video

_MIN_COMPLETE = 0.9  # of the stated duration; containers round it


@dataclasses.dataclass(frozen=True)
class VideoOptions:
    """Options for videos.

    Attributes:
      frames_per_second: frame rate; None for the rate and the time stamps of the video.
      smooth: smooth the landmarks over time.
      detect_every: maximum number of frames from one run of the face detector to the next.
      max_frames: number of frames after which a video ends; None for all frames.
    """

    frames_per_second: float | None = None
    smooth: bool = False
    detect_every: int = DETECT_EVERY
    max_frames: int | None = None

    def require_video(self, inputs: Sequence[InputFile]) -> None:
        """Check that there is a video if an option differs from its default.

        Raises:
          InputError: no input is a video.
        """
        if self != VideoOptions() and not any(file.is_video for file in inputs):
            names = "--smooth, --fps, --detect-every and --max-frames"
            raise InputError(f"{names} apply to videos, but no input is a video")


@dataclasses.dataclass
class VideoSummary:
    """Contents of the results of a video.

    Attributes:
      times: time of each frame in seconds.
      num_faces: number of faces in all frames.
      num_detections: number of frames in which the face detector ran.
      seconds: duration of the work.
      rate: frame rate of the annotated video.
      stated_seconds: duration that the file states, unless frames were left out on purpose.
    """

    times: list[float] = dataclasses.field(default_factory=list)
    num_faces: int = 0
    num_detections: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    stated_seconds: float = 0.0

    @property
    def is_truncated(self) -> bool:
        """Whether the file ends long before the duration that it states, as after an incomplete copy."""
        end = self.times[-1] + 1 / self.rate if self.times else 0.0
        return end < _MIN_COMPLETE * self.stated_seconds


@dataclasses.dataclass(frozen=True)
class VideoPredictor:
    """Predictor of the faces in a video, which writes the results.

    Attributes:
      draw: function that draws faces on a frame.
      boxes_of: function that returns the face boxes of each frame; None: faces are detected and followed.
      geometry: whether the JSON lines have the geometry of faces.
    """

    tracker: FaceTracker
    options: VideoOptions
    draw: Callable[[np.ndarray, Sequence[Face]], np.ndarray]
    boxes_of: Callable[[np.ndarray], Sequence[BoxInput]] | None = None
    geometry: bool = False

    def predict(self, file: InputFile, outputs: Sequence[Path]) -> VideoSummary:
        """Predict the frames of a video, and write the JSON lines and, unless left out, the annotated video.

        Args:
          outputs: path of the JSON lines, and that of the annotated video unless none is written.

        Raises:
          InputError: the video cannot be read.
          OSError: the results cannot be written.
          KeyboardInterrupt: a signal stopped the work; its attribute `saved` says where the frames are.
        """
        summary = VideoSummary()
        if file.stream is not None:  # a live source does not wait for the compilation
            size = self.tracker.model.image_size
            self.tracker.model.predict_crops(np.zeros((1, size, size, 3), np.uint8))
        source = file.path if file.stream is None else file.stream
        options, interruption = self.options, None
        with open_video(source, frames_per_second=options.frames_per_second) as video:
            outputs[0].parent.mkdir(parents=True, exist_ok=True)
            with replacing_all(outputs) as partials:
                try:
                    self._write(video, partials, summary, file.label)
                except KeyboardInterrupt as stop:
                    if not summary.times:
                        raise
                    # Most streams end in no other way: their results have the usual names.
                    is_file = file.stream is None
                    names = rename_interrupted(partials, outputs) if is_file else outputs
                    text = f"{file.label}: {count_of(len(summary.times), 'frame')} in "
                    saved = text + " and ".join(map(str, names))
                    stop.saved = saved  # pyright: ignore[reportAttributeAccessIssue]
                    if is_file:
                        raise
                    interruption = stop
        if interruption is not None:
            raise interruption
        return summary

    def _write(
        self, video: Video, partials: Sequence[Path], summary: VideoSummary, label: str
    ) -> None:
        """Predict and write all frames."""
        tracker, max_frames = self.tracker, self.options.max_frames
        summary.rate = video.frames_per_second
        if max_frames is None:
            summary.stated_seconds = video.num_frames / video.frames_per_second
        limits = [n for n in (video.num_frames, max_frames) if n]
        start = time.monotonic()
        with (
            partials[0].open("w", encoding="utf-8") as json_lines,
            contextlib.ExitStack() as stack,
            tqdm(total=min(limits, default=None), desc=Path(label).name, unit="frame") as bar,
            OrderedWorker() as worker,
        ):
            writer = None
            if len(partials) > 1:
                writer = VideoWriter(partials[1], frames_per_second=video.frames_per_second)
                stack.enter_context(writer)
            for frame in itertools.islice(video.frames, max_frames):
                boxes = None if self.boxes_of is None else self.boxes_of(frame.pixels)
                faces = tracker.update(frame.pixels, frame.time, boxes)
                worker.submit(self._write_frame, frame, faces, summary, json_lines, writer)
                summary.num_detections = tracker.num_detections
                bar.update()
        summary.seconds = time.monotonic() - start

    def _write_frame(
        self,
        frame: Frame,
        faces: Sequence[Face],
        summary: VideoSummary,
        json_lines: IO[str],
        writer: VideoWriter | None,
    ) -> None:
        """Write one frame to the files; runs in the thread that writes."""
        scheme = self.tracker.model.scheme
        line = results.describe_frame(
            len(summary.times), frame.time, faces, scheme, geometry=self.geometry
        )
        json_lines.write(json.dumps(line) + "\n")
        if writer is not None:
            writer.write(self.draw(frame.pixels, faces))
        summary.times.append(frame.time)
        summary.num_faces += len(faces)

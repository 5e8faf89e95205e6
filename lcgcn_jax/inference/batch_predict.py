"""Prediction for many image and video files, with results on disk."""

import collections
import contextlib
import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from lcgcn_jax.errors import InputError, count_of, printable
from lcgcn_jax.geometry import crop_side
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference.box_sources import BoxSource
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.face_detector import MIN_SCORE
from lcgcn_jax.inference.image_inputs import BoxedImage, BoxInput, is_full_batch
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.inference.result_files import ResultFiles
from lcgcn_jax.inference.sources import InputFile
from lcgcn_jax.inference.tracking import FaceTracker
from lcgcn_jax.inference.video import varies
from lcgcn_jax.inference.video_predict import VideoOptions, VideoPredictor
from lcgcn_jax.interrupts import Interrupted, deferred, received

_MAX_THREADS = 8
_WAITING_PIXELS = 50_000_000  # of images that are read, but not predicted yet
_MAX_OVERLAY_SIDE = 8192  # pixels; viewers refuse much larger images
_MAX_NAMES = 20  # in a message


@dataclasses.dataclass
class PredictionSummary:
    """Outcome of a run: error messages of unusable inputs, and inputs without a detected face.

    An earlier job may have finished some of the inputs.
    """

    num_inputs: int
    num_finished: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    without_face: list[str] = dataclasses.field(default_factory=list)
    moved: str = ""  # message about results with another file name

    @property
    def exit_code(self) -> int:
        """1 if an input cannot be used, results are `moved`, or no face was found in any input, else 0."""
        return int(
            bool(self.failures or self.moved) or 0 < self.num_inputs == len(self.without_face)
        )

    @property
    def warnings(self) -> list[str]:
        """Messages about unusable inputs and inputs without a face."""
        lines = [f"left out: {failure}" for failure in self.failures]
        lines += [self.moved] if self.moved else []
        if self.without_face:
            names = ", ".join(self.without_face[:_MAX_NAMES])
            if (others := len(self.without_face) - _MAX_NAMES) > 0:
                names += f" and {others} more"
            lines.append(
                f"no face found in: {names}; give the box of a missed face with "
                "--box X0,Y0,X1,Y1 or --boxes FILE"
            )
        return lines


@dataclasses.dataclass(frozen=True)
class _ImageJob:
    """An image that waits for the model."""

    file: InputFile
    image: BoxedImage


@dataclasses.dataclass(frozen=True)
class _Result:
    """Results of an image that a thread writes."""

    file: InputFile
    faces: Sequence[Face]
    writing: "Future[list[Path]]"

    def describe_faces(self) -> str:
        """Number of faces, and of those that are not reliable."""
        unreliable = sum(face.reliable is False for face in self.faces)
        text = count_of(len(self.faces), "face")
        return f"{text}, {unreliable} not reliable" if unreliable else text


class BatchPredictor:
    """Predictor of landmarks for files, which writes the results.

    Threads read images, detect faces and encode results while the model runs; OpenCV and XLA work in
    parallel to Python. Results are written and printed in the order of the inputs.

    Args:
      files: where the results are written.
      box_source: face boxes of each image or frame; by default those of the model's face detector.
      draw: `visualize.overlays.draw_faces`; an argument because `visualize` imports this package.
      draw_edges: draw the strongest edges of the graph, which the model has.
      upright: apply the EXIF orientation of images.
      box_format: format of the boxes of `box_source`, one of `geometry.BOX_FORMATS`.
      min_score: minimum score of a detected face; `MIN_SCORE` by default.
      min_confidence: minimum mean confidence of the landmarks of a face; others are left out.

    Raises:
      InputError: the face detector cannot be loaded, or the results cannot hold the scheme of the model.
    """

    def __init__(
        self,
        model: LandmarkModel,
        files: ResultFiles,
        box_source: BoxSource | None = None,
        *,
        draw: Callable[..., np.ndarray],
        draw_edges: bool = False,
        upright: bool = True,
        video: VideoOptions | None = None,
        box_format: str = "xyxy",
        min_score: float | None = None,
        min_confidence: float = 0.0,
    ):
        self._model, self._files, self._box_source = model, files, box_source
        files.check_scheme(model.scheme)
        if box_source is None:
            _ = model.detector  # raises an error before the first image, not for each
        self._draw_faces, self._draw_edges = draw, draw_edges
        self._box_format, self._min_confidence = box_format, min_confidence
        self._min_score = MIN_SCORE if min_score is None else min_score
        self._upright, self._video = upright, video or VideoOptions()

    def run(self, inputs: Sequence[InputFile]) -> PredictionSummary:
        """Predict for all inputs in order; prints one line per input.

        Raises:
          InputError: no input can be used.
          KeyboardInterrupt: a signal stopped the run; its attribute `saved` describes the results.
        """
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg has a separate log level
        num_landmarks = self._model.scheme.num_landmarks
        todo = [file for file in inputs if not self._files.is_finished(file, num_landmarks)]
        num_skipped = len(inputs) - len(todo)
        if num_skipped:
            print(f"{num_skipped} of {len(inputs)} inputs were finished by an earlier job")
        self._summary = summary = PredictionSummary(len(inputs), num_skipped)
        # Only on a terminal, and only if there is something to wait for.
        self._progress = tqdm(
            total=len(inputs),
            initial=num_skipped,
            unit=" images",
            disable=None if len(todo) > 1 else True,
        )
        try:
            with self._progress, _opencv_threads(1 if len(todo) > 1 else cv2.getNumThreads()):
                self._predict_all(todo)
        except KeyboardInterrupt as stop:
            parts = [f"{summary.num_finished} of {len(inputs)} inputs are finished"]
            parts[0] += f" in {self._files.folder}" if summary.num_finished else ""
            parts += [saved] if (saved := getattr(stop, "saved", "")) else []
            stop.saved = "; ".join(parts)  # pyright: ignore[reportAttributeAccessIssue]
            raise
        finally:
            with _writing(self._files.folder):
                summary.moved = self._files.close()
        if summary.failures and len(summary.failures) == len(inputs):
            others = f"; {len(inputs) - 1} more cannot be used" if len(inputs) > 1 else ""
            raise InputError(f"{summary.failures[0]}{others}")
        return summary

    def _predict_all(self, inputs: Sequence[InputFile]) -> None:
        self._results: collections.deque[_Result] = collections.deque()
        num_threads = min(max(2, os.cpu_count() or 1), _MAX_THREADS)
        # One thread writes, so that the files are complete in the order of the inputs.
        self._workers, self._writer = ThreadPoolExecutor(num_threads), ThreadPoolExecutor(1)
        try:
            self._predict_in_order(iter(inputs), num_threads + 2)
            self._collect(0)
        except KeyboardInterrupt:
            self._collect(0)
            raise
        finally:
            self._workers.shutdown(cancel_futures=True)
            self._writer.shutdown(cancel_futures=True)

    def _predict_in_order(self, inputs: Iterator[InputFile], max_ahead: int) -> None:
        waiting: collections.deque[tuple[InputFile, Future[BoxedImage] | None]] = (
            collections.deque()
        )
        jobs: list[_ImageJob] = []
        num_pixels = 1  # of the last image
        while True:
            limit = min(max_ahead, max(1, _WAITING_PIXELS // num_pixels))
            for file in itertools.islice(inputs, max(0, limit - len(waiting))):
                reading = None if file.is_video else self._workers.submit(self._read, file)
                waiting.append((file, reading))
            if not waiting:
                break
            file, reading = waiting.popleft()
            if reading is None:
                self._predict_images(jobs)
                jobs = []
                self._collect(0)
            try:
                if reading is None:
                    self._predict_video(file)
                else:
                    jobs.append(_ImageJob(file, reading.result()))
                    num_pixels = jobs[-1].image.pixels.size // 3
            except InputError as error:
                # A signal stopped a video, and then its files could not be closed or renamed.
                if (number := received()) is not None:
                    stop = Interrupted(number)
                    lost = f"the frames of {file.label} are lost: " if file.is_video else ""
                    stop.saved = f"{lost}{error}"
                    raise stop from error
                self._summary.failures.append(str(error))
                self._progress.update()
            if is_full_batch([job.image for job in jobs]) or not self._can_wait(waiting):
                self._predict_images(jobs)
                jobs = []
        self._predict_images(jobs)

    def _can_wait(self, waiting: Sequence[tuple[InputFile, "Future[BoxedImage] | None"]]) -> bool:
        """Whether the model can wait for the next image: if that is ready, or batches are faster."""
        from lcgcn_jax.inference.programs import uses_batches

        reading = waiting[0][1] if waiting else None
        return reading is not None and (reading.done() or uses_batches())

    def _read(self, file: InputFile) -> BoxedImage:
        return self._find_boxes(file.path, read_image(file.path, upright=self._upright))

    def _find_boxes(self, path: Path, pixels: np.ndarray) -> BoxedImage:
        boxes = None if self._box_source is None else self._box_source(path, pixels)
        return self._model.boxed_image(
            pixels, boxes, name=path, box_format=self._box_format, min_score=self._min_score
        )

    def _predict_images(self, jobs: Sequence[_ImageJob]) -> None:
        if not jobs:
            return
        predictions = self._model.predict_boxed(
            [job.image for job in jobs], min_confidence=self._min_confidence
        )
        for job, faces in zip(jobs, predictions, strict=True):
            with deferred():
                encoding = self._workers.submit(self._encode, job, faces)
                writing = self._writer.submit(self._write, job.file, encoding)
                self._results.append(_Result(job.file, faces, writing))
        self._collect(_MAX_THREADS)

    def _encode(self, job: _ImageJob, faces: Sequence[Face]) -> dict[Path, bytes]:
        pixels = job.image.pixels
        overlay = None
        if self._files.overlays:
            overlay = self._draw(pixels, faces)
            height, width = overlay.shape[:2]
            scale = _MAX_OVERLAY_SIDE / max(height, width)
            if scale < 1:
                size = max(1, round(scale * width)), max(1, round(scale * height))
                overlay = cv2.resize(overlay, size, interpolation=cv2.INTER_AREA)
        return self._files.encode_image(job.file, pixels, overlay, faces, self._model.scheme)

    def _write(self, file: InputFile, encoding: "Future[dict[Path, bytes]]") -> list[Path]:
        with _writing(self._files.folder):
            return self._files.write_image(file, encoding.result())

    def _collect(self, max_waiting: int) -> None:
        """Report the images whose results are written; wait until at most `max_waiting` are not.

        Raises:
          InputError: results cannot be written.
        """
        while self._results:
            result = self._results[0]
            if len(self._results) <= max_waiting and not result.writing.done():
                return
            paths = result.writing.result()
            with deferred():
                self._results.popleft()
                self._finish(result.file, len(result.faces), result.describe_faces(), paths)

    def _finish(self, file: InputFile, num_faces: int, text: str, paths: Sequence[Path]) -> None:
        self._summary.num_finished += 1
        if self._box_source is None and not num_faces:
            self._summary.without_face.append(file.label)
        self._print(f"{file.label}: {text}; {', '.join(map(str, paths))}")
        self._progress.update()

    def _print(self, line: str) -> None:
        """Print a line above the progress bar."""
        if self._progress.disable:
            print(printable(line))
        else:
            self._progress.write(printable(line), file=sys.stdout)

    def _draw(self, pixels: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
        return self._draw_faces(
            pixels,
            [face.landmarks for face in faces],
            [face.confidence for face in faces],
            self._model.scheme,
            sides=[crop_side(face.box, 1.0) for face in faces],
            edges=[face.edges for face in faces] if self._draw_edges else None,
            visibility=[face.visibility for face in faces],
            reliable=[face.reliable for face in faces],
            tracks=[face.track for face in faces],
        )

    def _predict_video(self, file: InputFile) -> None:
        outputs, is_detecting = self._files.paths(file), self._box_source is None

        def boxes_of(pixels: np.ndarray) -> Sequence[BoxInput]:
            return self._find_boxes(file.path, pixels).boxes

        tracker = FaceTracker(
            self._model,
            detect_every=self._video.detect_every,
            smooth=self._video.smooth,
            min_score=self._min_score,
            min_confidence=self._min_confidence,
        )
        predictor = VideoPredictor(
            tracker,
            self._video,
            self._draw,
            None if is_detecting else boxes_of,
            geometry=self._files.geometry,
        )
        with _writing(self._files.folder):
            summary = predictor.predict(file, outputs)
        count = len(summary.times)
        text = f"{count_of(count, 'frame')}, {count_of(summary.num_faces, 'face')}"
        text += f", {count / summary.seconds:.1f} frames per second"
        if is_detecting:
            text += f", face detector in {count_of(summary.num_detections, 'frame')}"
        self._finish(file, summary.num_faces, text, outputs)
        if summary.is_truncated:
            self._print(
                f"{file.label}: ends after {summary.times[-1]:.1f} s of {summary.stated_seconds:.1f} s; the "
                "file may be truncated"
            )
        if self._files.overlays and varies(summary.times):
            self._print(
                f"{file.label}: the frame rate varies; {outputs[1]} plays at a constant "
                f"{summary.rate:.4g} frames per second, and {outputs[0]} has the time stamps"
            )


@contextlib.contextmanager
def _opencv_threads(count: int) -> Iterator[None]:
    """Set the number of OpenCV's threads: with images in several threads, one each takes the least time."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be written: {error.strerror}; choose another --out, or "
            "free some space"
        ) from error

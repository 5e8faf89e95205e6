"""Face detection with OpenCV's YuNet, in any rotation of the image."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from lcgcn_jax import geometry
from lcgcn_jax.cache import cache_folder
from lcgcn_jax.errors import InputError
from lcgcn_jax.image_arrays import RGB, ImageInput, rgb_image
from lcgcn_jax.inference.box_map import BOX_MAP, Boxes, Detections, center_and_size

MODEL_FILE = "face_detection_yunet_2023mar.onnx"
MODEL_URL = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/face_detection_yunet/"
    + MODEL_FILE
)
MODEL_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"

MIN_SCORE = 0.6
"""Minimum score of a detection; the default of OpenCV's demo is 0.9."""

SIDES = (320, 960)
"""Longer sides of the two sizes at which the detector runs, in pixels; an image is never enlarged.

YuNet detects faces of about 10 to 300 px. The smaller size is for large faces, whose boxes are inaccurate
at the larger size.
"""

# If no detection in an image has this score, rotated images are tried too. Of 40 upright 300W validation
# faces, none has a lower score; of those rotated by 90 degrees, all; of those rotated by 180 degrees, 35.
_CERTAIN = 0.9
# Rotated images: fraction of a box that may be covered by another one before both are the same face.
_MAX_SHARED = 0.5
# EXIF orientations of images that become upright by a clockwise rotation of 0, 90, 180 and 270 degrees.
_ORIENTATIONS = (1, 6, 3, 8)

_MAX_OVERLAP = 0.3  # IoU for non-maximum suppression: OpenCV's default
_MAX_NESTING = 0.75  # fraction of a box that may be covered by a larger one of another face
_MAX_CANDIDATES = 5000  # before non-maximum suppression: OpenCV's default


@dataclasses.dataclass(frozen=True)
class DetectedFaces:
    """Boxes for the landmark model of the faces in an image, by descending score.

    Attributes:
      boxes: bounding boxes of the landmarks (x0, y0, x1, y1), in pixels.
      scores: confidence of the detector, in 0..1.
      rotations: clockwise rotations of the image for which the faces are about upright, in degrees.
    """

    boxes: Boxes
    scores: Float[np.ndarray, "n"]
    rotations: Float[np.ndarray, "n"]

    def crops(self, size: int) -> list[geometry.Affine]:
        """Affines to crops in which the faces are about upright, with a side in pixels."""
        return [
            geometry.crop_transform(box, size, rotation=rotation)
            for box, rotation in zip(self.boxes, self.rotations.tolist(), strict=True)
        ]


class FaceDetector:
    """Face detector that runs YuNet with OpenCV's `FaceDetectorYN`.

    It can be used by several threads at once, and pickled: it holds the content of the model file, and
    creates one network per concurrent call.
    """

    def __init__(self, model: str | Path | None = None):
        """Load the detector.

        Args:
          model: YuNet's ONNX file; by default that of `fetch_detector_model`.

        Raises:
          InputError: the file does not exist, is not such a model, or cannot be downloaded.
        """
        path = fetch_detector_model() if model is None else Path(model)
        if not path.is_file():
            raise InputError(f"{path}: no such file; give {MODEL_FILE} to --detector-model")
        try:
            self._content = np.frombuffer(path.read_bytes(), np.uint8)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        self._idle: list[cv2.FaceDetectorYN] = []
        try:
            with quiet_opencv(), self._network() as network:
                network.detect(np.zeros((SIDES[0], SIDES[0], 3), np.uint8))
        except cv2.error as error:
            raise InputError(f"{path}: not a YuNet face detector; give {MODEL_FILE}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"_content": self._content, "_idle": []}

    @contextlib.contextmanager
    def _network(self) -> Iterator[cv2.FaceDetectorYN]:
        """Yield a network that no other call uses."""
        try:
            network = self._idle.pop()
        except IndexError:
            size = (SIDES[0], SIDES[0])
            no_config = np.zeros(0, np.uint8)
            with quiet_opencv():
                network = cv2.FaceDetectorYN.create(
                    "onnx", self._content, no_config, size, MIN_SCORE, _MAX_OVERLAP, _MAX_CANDIDATES
                )
        yield network
        # Not reused after an error, which may leave it in an invalid state.
        self._idle.append(network)

    def detect(
        self, image: ImageInput, *, min_score: float = MIN_SCORE, quarter_turns: int = 0
    ) -> Detections:
        """Detect the faces in an RGB image of any size.

        Args:
          min_score: minimum score of a detection.
          quarter_turns: number of clockwise rotations of the image by 90 degrees before the detection; the
            result is in pixels of the rotated image.

        Raises:
          InputError: `image_arrays.rgb_image` cannot convert the image.
        """
        image = rgb_image(image)
        height, width = image.shape[:2]
        full_size = np.array([height, width] if quarter_turns % 2 else [width, height])
        scales = [min(1.0, side / max(height, width)) for side in SIDES]
        detections = []
        for scale in dict.fromkeys(scales):
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            resized = np.ascontiguousarray(np.rot90(resized, -quarter_turns))
            size = (resized.shape[1], resized.shape[0])
            with self._network() as network:
                network.setInputSize(size)
                network.setScoreThreshold(min_score)
                rows = network.detect(cv2.cvtColor(resized, cv2.COLOR_RGB2BGR))[1]
            if rows is not None:
                detections.append(_from_yunet(rows, full_size / size))
        return _suppress_overlapping(Detections.concatenate(detections), min_score)

    def find_faces(self, image: ImageInput, *, min_score: float = MIN_SCORE) -> DetectedFaces:
        """Find the faces in an RGB image, in any rotation.

        If no face is detected with certainty, the image is also rotated by 90, 180 and 270 degrees. The
        detections in the rotation with the highest score are used, and certain ones in other rotations.

        Faces whose center is outside the image are left out. If a box covers most of another, only the one
        with the higher score is returned: in large images, some detections are a face with the chest below
        it.

        Args:
          min_score: minimum score of a detection.

        Raises:
          InputError: as in `detect`.
        """
        image = rgb_image(image)
        faces, heads = self._faces_in_rotated(image, 0, min_score)
        rows = np.arange(len(heads))
        if not (faces.scores >= _CERTAIN).any():
            parts = [(faces, heads)]
            parts += [self._faces_in_rotated(image, number, min_score) for number in (1, 2, 3)]
            fields = (vars(part).values() for part, _ in parts)
            faces = DetectedFaces(*map(np.concatenate, zip(*fields, strict=True)))
            heads = np.concatenate([heads for _, heads in parts])
            rows = np.argsort(-faces.scores, kind="stable")
            # Most images have one upright direction, and others have more false detections.
            is_best = faces.rotations[rows] == faces.rotations[rows[:1]]
            rows = rows[is_best | (faces.scores[rows] >= _CERTAIN)]
            # Detections in other rotations have other boxes of landmarks, but similar boxes of the head.
            rows = rows[_suppress_nested(heads[rows], _MAX_SHARED)]
        height, width = image.shape[:2]
        center, _ = center_and_size(faces.boxes[rows])
        rows = rows[((center >= 0) & (center < (width, height))).all(axis=1)]
        rows = rows[_suppress_nested(faces.boxes[rows], _MAX_NESTING)]
        return DetectedFaces(*(values[rows] for values in vars(faces).values()))

    def _faces_in_rotated(
        self, image: RGB, quarter_turns: int, min_score: float
    ) -> tuple[DetectedFaces, Boxes]:
        """Faces in the image rotated clockwise, and the boxes of the detector, in pixels of the image."""
        detections = self.detect(image, min_score=min_score, quarter_turns=quarter_turns)
        boxes = BOX_MAP(detections)
        # For a detection unlike those of the fit, the linear map may return a negative size.
        rows = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        height, width = image.shape[:2]
        to_rotated = geometry.upright_transform(_ORIENTATIONS[quarter_turns], width, height)
        to_image = geometry.invert(to_rotated)

        def in_image(boxes: Boxes) -> Boxes:
            corners = geometry.transform_points(to_image, boxes.reshape(-1, 2, 2))
            return np.hstack([corners.min(axis=1), corners.max(axis=1)])

        rotations = np.full(rows.sum(), 90.0 * quarter_turns)
        faces = DetectedFaces(in_image(boxes[rows]), detections.scores[rows], rotations)
        return faces, in_image(detections.boxes[rows])


def _from_yunet(rows: np.ndarray, factor: np.ndarray) -> Detections:
    """Convert rows of YuNet (corner, size, five points, score) to pixels of the original image."""
    rows = rows.astype(np.float64)
    corners = np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:4]])
    pairs = np.hstack([corners, rows[:, 4:14]]).reshape(len(rows), 7, 2)
    pairs = (pairs + 0.5) * factor - 0.5
    return Detections(pairs[:, :2].reshape(-1, 4), pairs[:, 2:], rows[:, 14])


def _suppress_overlapping(detections: Detections, min_score: float) -> Detections:
    """Non-maximum suppression."""
    corner, size = detections.boxes[:, :2], np.diff(detections.boxes.reshape(-1, 2, 2), axis=1)
    rows = cv2.dnn.NMSBoxes(
        np.hstack([corner, size[:, 0]]).tolist(),
        detections.scores.tolist(),
        min_score,
        _MAX_OVERLAP,
    )
    return detections.take(np.asarray(rows, int))


def _suppress_nested(boxes: Boxes, max_shared: float) -> list[int]:
    """Indices of the boxes that do not share more than a fraction of the smaller box with an earlier box."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    selected: list[int] = []
    for i, box in enumerate(boxes):
        extent = np.minimum(box[2:], boxes[selected, 2:]) - np.maximum(box[:2], boxes[selected, :2])
        shared = extent.clip(min=0).prod(axis=1)
        if (shared <= max_shared * np.minimum(areas[i], areas[selected])).all():
            selected.append(i)
    return selected


_log_lock = threading.Lock()
_num_quiet_blocks = 0  # in all threads
_previous_level = 0  # log level of OpenCV before the first of them


@contextlib.contextmanager
def quiet_opencv() -> Iterator[None]:
    """Suppress OpenCV's log on standard error; its errors are raised in any case.

    The log level is shared by all threads: the first block sets it, and the last one restores it.
    """
    global _num_quiet_blocks, _previous_level
    log = cv2.utils.logging
    with _log_lock:
        if _num_quiet_blocks == 0:
            _previous_level = log.setLogLevel(log.LOG_LEVEL_SILENT)
        _num_quiet_blocks += 1
    try:
        yield
    finally:
        with _log_lock:
            _num_quiet_blocks -= 1
            if _num_quiet_blocks == 0:
                log.setLogLevel(_previous_level)


def fetch_detector_model() -> Path:
    """Return YuNet's file in the cache folder; the first call downloads it from the OpenCV zoo.

    Raises:
      InputError: the file cannot be downloaded, or has an unexpected content.
    """
    path = cache_folder() / "models" / MODEL_FILE
    if path.is_file():
        return path
    import pooch

    pooch.get_logger().setLevel("WARNING")
    fix = "give --detector-model FILE, --box X0,Y0,X1,Y1, --boxes FILE or --whole-image"
    try:
        pooch.retrieve(MODEL_URL, f"sha256:{MODEL_SHA256}", fname=path.name, path=path.parent)
    except ValueError as error:
        raise InputError(f"{MODEL_URL}: is not the expected file (SHA-256); {fix}") from error
    except OSError as error:
        raise InputError(
            f"{MODEL_URL}: cannot be downloaded to {path}: {_root_cause(error)}; {fix}"
        ) from error
    return path


def _root_cause(error: BaseException) -> str:
    """Message of the first error of a chain: the last one repeats the whole chain of urllib3."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return " ".join(str(error).split())

"""Face detection with OpenCV's YuNet, and a learned map from its detections to boxes of landmarks.

YuNet (Wu, Peng and Yu 2023) returns a box from the hairline to below the chin, and five points. The models
of this package are trained on crops around the bounding box of the landmarks, from brows to chin; `BOX_MAP`
maps the first box to the second. `lcgcn research calibrate-detector` fits this map.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from lcgcn_jax.cache import cache_folder
from lcgcn_jax.errors import InputError
from lcgcn_jax.image_arrays import ImageInput, rgb_image

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

_MAX_OVERLAP = 0.3  # IoU for non-maximum suppression: OpenCV's default
_MAX_NESTING = 0.75  # fraction of a box that may be covered by a larger one of another face
_MAX_CANDIDATES = 5000  # before non-maximum suppression: OpenCV's default

Boxes = Float[np.ndarray, "n 4"]


@dataclasses.dataclass(frozen=True)
class Detections:
    """Faces detected in an image, in its pixels, by descending score.

    Attributes:
      boxes: boxes of the detector (x0, y0, x1, y1).
      points: eyes, nose tip and corners of the mouth; the left one of a pair in the image comes first.
      scores: confidence of the detector, in 0..1.
    """

    boxes: Boxes
    points: Float[np.ndarray, "n 5 2"]
    scores: Float[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def concatenate(cls, parts: Iterable["Detections"]) -> "Detections":
        """Concatenate any number of detections, also none."""
        empty = cls(np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0))
        columns = zip(*((p.boxes, p.points, p.scores) for p in (empty, *parts)), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def take(self, rows) -> "Detections":
        """Select detections by an index array, a mask or a slice."""
        return Detections(self.boxes[rows], self.points[rows], self.scores[rows])


@dataclasses.dataclass(frozen=True)
class BoxMap:
    """Linear map from a detection to the bounding box of the landmarks of the face.

    Let c be the center of the detected box, and s its width and height. The box of the landmarks has the
    center c + o s and the width and height r s. o and r are linear functions of the five points p relative
    to the box, (p - c) / s. If the coefficients of the points are zero, o and r are constants.

    Attributes:
      coefficients: rows for x0, y0, ..., x4, y4 and the constant; columns for o_x, o_y, r_x, r_y.
    """

    coefficients: Float[np.ndarray, "11 4"]

    def __call__(self, detections: Detections) -> Boxes:
        """Bounding boxes of the landmarks for each detection."""
        center, size = _center_and_size(detections.boxes)
        values = _features(detections) @ self.coefficients
        center = center + values[:, :2] * size
        half = values[:, 2:] * size / 2
        return np.concatenate([center - half, center + half], axis=1)


BOX_MAP = BoxMap(
    np.array(
        [
            [0.0854, 0.1119, 0.2626, -0.0573],
            [-0.1945, 0.3384, 0.1169, -0.7781],
            [0.0854, -0.1119, -0.2626, 0.0573],
            [0.1945, 0.3384, 0.1169, -0.7781],
            [-0.2850, 0.0, 0.0, 0.0],
            [0.0, -0.3685, -0.5235, 0.8270],
            [0.0848, -0.2453, -0.1951, 0.2448],
            [0.2404, 0.1811, 0.2539, -0.1570],
            [0.0848, 0.2453, 0.1951, -0.2448],
            [-0.2404, 0.1811, 0.2539, -0.1570],
            [0.0, 0.1030, 1.0237, 0.6475],
        ]
    )
)
"""Fitted by `lcgcn research calibrate-detector` on 1,802 training faces of 300W, all detected.

The faces are those of AFW, HELEN and LFPW, with the three images of the LFPW overlap
(`lcgcn prepare 300w --keep-lfpw-overlap`).

On the 210 validation faces, all detected, the center of the crop is off by 3.1 % of the longer side of the
box on average (15.9 % for the detected box, 3.9 % for the best map without points) and its side by 3.8 %
(23.4 %, 4.1 %). The mean offset is 0.03 %, and the mean error of the side -0.6 %.
"""


def fit_box_map(detections: Detections, boxes: Boxes, *, points: bool = True) -> BoxMap:
    """Fit a `BoxMap` by least squares on faces and their mirror images.

    Args:
      detections: one detection per face.
      boxes: bounding boxes of the landmarks of these faces.
      points: whether the map depends on the five points; otherwise it has constants only.
    """
    mirrored = Detections(
        _mirror_boxes(detections.boxes),
        (detections.points * (-1.0, 1.0))[:, [1, 0, 2, 4, 3]],
        detections.scores,
    )
    rows, targets = [], []
    for inputs, true in ((detections, boxes), (mirrored, _mirror_boxes(boxes))):
        center, size = _center_and_size(inputs.boxes)
        true_center, true_size = _center_and_size(true)
        rows.append(_features(inputs))
        targets.append(np.hstack([(true_center - center) / size, true_size / size]))
    used = slice(None) if points else slice(-1, None)
    coefficients = np.zeros((rows[0].shape[1], 4))
    coefficients[used] = np.linalg.lstsq(np.vstack(rows)[:, used], np.vstack(targets))[0]
    return BoxMap(coefficients)


def crop_errors(
    boxes: Boxes, true: Boxes
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
    """Errors of the crops around predicted boxes.

    Returns:
      Offset of the center, as a fraction of the longer side of the true box, and logarithm of the ratio of
      the longer sides, which determine the side of the crop.
    """
    center, size = _center_and_size(boxes)
    true_center, true_size = _center_and_size(true)
    side = true_size.max(axis=1)
    return (center - true_center) / side[:, None], np.log(size.max(axis=1) / side)


def _mirror_boxes(boxes: Boxes) -> Boxes:
    return np.stack([-boxes[:, 2], boxes[:, 1], -boxes[:, 0], boxes[:, 3]], axis=1)


def _center_and_size(boxes: Boxes) -> tuple[np.ndarray, np.ndarray]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


def _features(detections: Detections) -> Float[np.ndarray, "n 11"]:
    center, size = _center_and_size(detections.boxes)
    points = (detections.points - center[:, None]) / size[:, None]
    return np.hstack([points.reshape(-1, 10), np.ones((len(points), 1))])


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

    def detect(self, image: ImageInput) -> Detections:
        """Detect the faces in an RGB image of any size.

        Raises:
          InputError: `image_arrays.rgb_image` cannot convert the image.
        """
        image = rgb_image(image)
        height, width = image.shape[:2]
        scales = [min(1.0, side / max(height, width)) for side in SIDES]
        detections = []
        for scale in dict.fromkeys(scales):
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            with self._network() as network:
                network.setInputSize(size)
                rows = network.detect(cv2.cvtColor(resized, cv2.COLOR_RGB2BGR))[1]
            if rows is not None:
                detections.append(_from_yunet(rows, np.array([width, height]) / size))
        return _suppress_overlapping(Detections.concatenate(detections))

    def face_boxes(self, image: ImageInput) -> Boxes:
        """Bounding boxes of the landmarks of the faces in an RGB image: `scored_boxes` without scores.

        Raises:
          InputError: as in `detect`.
        """
        return self.scored_boxes(image)[0]

    def scored_boxes(self, image: ImageInput) -> tuple[Boxes, Float[np.ndarray, "n"]]:
        """Bounding boxes of the landmarks of the faces in an RGB image, and scores, by descending score.

        Faces whose center is outside the image are left out. If a box covers most of another, only the one
        with the higher score is returned: in large images, some detections are a face with the chest below
        it.

        Raises:
          InputError: as in `detect`.
        """
        image = rgb_image(image)
        detections = self.detect(image)
        boxes = BOX_MAP(detections)
        height, width = image.shape[:2]
        center, size = _center_and_size(boxes)
        inside = ((center >= 0) & (center < (width, height))).all(axis=1)
        # For a detection unlike those of the fit, the linear map may return a negative size.
        rows = np.flatnonzero(inside & (size > 0).all(axis=1))
        rows = rows[_suppress_nested(boxes[rows])]
        return boxes[rows], detections.scores[rows]


def _from_yunet(rows: np.ndarray, factor: np.ndarray) -> Detections:
    """Convert rows of YuNet (corner, size, five points, score) to pixels of the original image."""
    rows = rows.astype(np.float64)
    corners = np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:4]])
    pairs = np.hstack([corners, rows[:, 4:14]]).reshape(len(rows), 7, 2)
    pairs = (pairs + 0.5) * factor - 0.5
    return Detections(pairs[:, :2].reshape(-1, 4), pairs[:, 2:], rows[:, 14])


def _suppress_overlapping(detections: Detections) -> Detections:
    """Non-maximum suppression."""
    corner, size = detections.boxes[:, :2], np.diff(detections.boxes.reshape(-1, 2, 2), axis=1)
    rows = cv2.dnn.NMSBoxes(
        np.hstack([corner, size[:, 0]]).tolist(),
        detections.scores.tolist(),
        MIN_SCORE,
        _MAX_OVERLAP,
    )
    return detections.take(np.asarray(rows, int))


def _suppress_nested(boxes: Boxes) -> list[int]:
    """Indices of the boxes that neither cover most of an earlier box nor are mostly covered by one."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    selected: list[int] = []
    for i, box in enumerate(boxes):
        extent = np.minimum(box[2:], boxes[selected, 2:]) - np.maximum(box[:2], boxes[selected, :2])
        shared = extent.clip(min=0).prod(axis=1)
        if (shared <= _MAX_NESTING * np.minimum(areas[i], areas[selected])).all():
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

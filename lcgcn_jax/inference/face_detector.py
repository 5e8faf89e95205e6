"""Faces in images: OpenCV's YuNet finds them, and a learned map gives the landmarks' box.

YuNet (Wu, Peng and Yu 2023) gives a box from the hairline to below the chin, and five points. The models
here were trained on crops around the bounding box of the landmarks, brows to chin: `BOX_MAP` leads from
one to the other. `lcgcn calibrate-detector` fits it anew.
"""

import contextlib
import dataclasses
import hashlib
import http.client
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from lcgcn_jax.atomic_io import write_whole
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
"""Score from which a detection counts: the default of OpenCV's own demonstration is 0.9."""

SIDES = (320, 960)
"""Longest side of the pictures that the detector sees, in pixels, where the image is larger.

YuNet finds faces of about 10 to 300 px: the smaller picture is for the large faces, whose boxes are
poor in the larger one.
"""

_OVERLAP = 0.3  # IoU from which two detections are one face: OpenCV's default
_NESTED = 0.75  # part of the smaller of two boxes from which they are one face
_MOST = 5000  # candidates before that: OpenCV's default
_TIMEOUT = 30  # seconds without an answer

Boxes = Float[np.ndarray, "n 4"]


@dataclasses.dataclass(frozen=True)
class Detections:
    """Faces that the detector found in a picture, in its pixels, the surest first.

    Attributes:
      boxes: the detector's own boxes (x0, y0, x1, y1).
      points: eyes, nose tip and corners of the mouth; of a pair, the viewer's left comes first.
      scores: how sure the detector is, in 0..1.
    """

    boxes: Boxes
    points: Float[np.ndarray, "n 5 2"]
    scores: Float[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def concatenate(cls, parts: Iterable["Detections"]) -> "Detections":
        """All detections of the parts, of which there may be none."""
        none = cls(np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0))
        columns = zip(*((p.boxes, p.points, p.scores) for p in (none, *parts)), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def take(self, rows) -> "Detections":
        """The detections that `rows` (an index array, a mask or a slice) picks."""
        return Detections(self.boxes[rows], self.points[rows], self.scores[rows])


@dataclasses.dataclass(frozen=True)
class BoxMap:
    """From a detection to the bounding box of the face's landmarks, by a linear map.

    With c the center of the detector's box and s its width and height, the landmarks' box has the
    center c + o s and the width and height r s. o and r are linear in the five points p, taken
    relative to the box, (p - c) / s; with zeros for the points' coefficients they are constants.

    Attributes:
      coefficients: a row for each of x0, y0, ..., x4, y4 and the constant; columns o_x, o_y, r_x, r_y.
    """

    coefficients: Float[np.ndarray, "11 4"]

    def __call__(self, detections: Detections) -> Boxes:
        """The landmarks' boxes of detections."""
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
"""Fitted by `lcgcn calibrate-detector` on 1,802 training faces of 300W (AFW, HELEN, LFPW), all found.

Measured before the three LFPW overlap images were left out; `--keep-lfpw-overlap` prepares the same faces.

On its 210 validation faces, all found, the crop's center is off by 3.1 % of the box's longer side on
average (15.9 % for the detector's own box, 3.9 % for the best map without points) and its side by 3.8 %
(23.4 %, 4.1 %); the mean offset is 0.03 %, the mean error of the side -0.6 %.
"""


def fit_box_map(detections: Detections, boxes: Boxes, *, points: bool = True) -> BoxMap:
    """Fits a `BoxMap` by least squares on faces and their mirror images.

    Args:
      detections: one for each face.
      boxes: bounding boxes of these faces' landmarks.
      points: whether the five points take part; else the map has constants alone.
    """
    mirrored = Detections(
        _mirror_boxes(detections.boxes),
        (detections.points * (-1.0, 1.0))[:, [1, 0, 2, 4, 3]],
        detections.scores,
    )
    rows, targets = [], []
    for found, true in ((detections, boxes), (mirrored, _mirror_boxes(boxes))):
        center, size = _center_and_size(found.boxes)
        true_center, true_size = _center_and_size(true)
        rows.append(_features(found))
        targets.append(np.hstack([(true_center - center) / size, true_size / size]))
    used = slice(None) if points else slice(-1, None)
    coefficients = np.zeros((rows[0].shape[1], 4))
    coefficients[used] = np.linalg.lstsq(np.vstack(rows)[:, used], np.vstack(targets))[0]
    return BoxMap(coefficients)


def crop_errors(
    boxes: Boxes, true: Boxes
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
    """How far crops around boxes are from those around the true ones.

    Returns:
      The offset of the center, as a part of the true box's longer side, and the logarithm of the ratio
      of the longer sides, on which the crop's side depends.
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
    """Face detector with OpenCV's `FaceDetectorYN`.

    It can be used by several threads at once and be pickled: it holds the content of the model's file, and
    makes one network for each call that runs at the same time.
    """

    def __init__(self, model: str | Path | None = None):
        """Loads the detector.

        Args:
          model: YuNet's ONNX file; by default that of `fetch_detector_model`.

        Raises:
          InputError: the file is not there, is no such model, or cannot be fetched.
        """
        path = fetch_detector_model() if model is None else Path(model)
        if not path.is_file():
            raise InputError(f"{path}: no such file; --detector-model wants {MODEL_FILE}")
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
        """A network that no other call uses meanwhile."""
        try:
            network = self._idle.pop()
        except IndexError:
            size = (SIDES[0], SIDES[0])
            no_config = np.zeros(0, np.uint8)
            with quiet_opencv():
                network = cv2.FaceDetectorYN.create(
                    "onnx", self._content, no_config, size, MIN_SCORE, _OVERLAP, _MOST
                )
        yield network
        # Not after an error, which may leave it in any state.
        self._idle.append(network)

    def detect(self, image: ImageInput) -> Detections:
        """Finds the faces of an RGB image of any size.

        Raises:
          InputError: it is no image that `image_arrays.rgb_image` can convert.
        """
        image = rgb_image(image)
        height, width = image.shape[:2]
        rows, sizes = [], []
        for side in SIDES:
            scale = min(1.0, side / max(height, width))
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            if size in sizes:
                continue
            sizes.append(size)
            smaller = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            with self._network() as network:
                network.setInputSize(size)
                found = network.detect(cv2.cvtColor(smaller, cv2.COLOR_RGB2BGR))[1]
            if found is not None:
                rows.append(_from_yunet(found, np.array([width, height]) / size))
        return _without_doubles(Detections.concatenate(rows))

    def face_boxes(self, image: ImageInput) -> Boxes:
        """The landmarks' boxes of the faces in an RGB image: `scored_boxes` without the scores.

        Raises:
          InputError: as `detect`.
        """
        return self.scored_boxes(image)[0]

    def scored_boxes(self, image: ImageInput) -> tuple[Boxes, Float[np.ndarray, "n"]]:
        """The landmarks' boxes of the faces in an RGB image and their scores, the highest score first.

        A face whose center is outside the image is left out. Of two boxes of which one holds most of the
        other, the one with the higher score is kept: in large images, some detections are a face with the
        chest below it.

        Raises:
          InputError: as `detect`.
        """
        image = rgb_image(image)
        detections = self.detect(image)
        boxes = BOX_MAP(detections)
        height, width = image.shape[:2]
        center, size = _center_and_size(boxes)
        inside = ((center >= 0) & (center < (width, height))).all(axis=1)
        # Far from the faces that the map was learned on, it might turn a box inside out.
        rows = np.flatnonzero(inside & (size > 0).all(axis=1))
        rows = rows[_without_nested(boxes[rows])]
        return boxes[rows], detections.scores[rows]


def _from_yunet(found: np.ndarray, factor: np.ndarray) -> Detections:
    """YuNet's rows (corner, size, five points, score) in the pixels of the larger picture."""
    found = found.astype(np.float64)
    corners = np.hstack([found[:, :2], found[:, :2] + found[:, 2:4]])
    pairs = np.hstack([corners, found[:, 4:14]]).reshape(len(found), 7, 2)
    pairs = (pairs + 0.5) * factor - 0.5
    return Detections(pairs[:, :2].reshape(-1, 4), pairs[:, 2:], found[:, 14])


def _without_doubles(detections: Detections) -> Detections:
    """Of detections of one face the surest."""
    corner, size = detections.boxes[:, :2], np.diff(detections.boxes.reshape(-1, 2, 2), axis=1)
    rows = cv2.dnn.NMSBoxes(
        np.hstack([corner, size[:, 0]]).tolist(), detections.scores.tolist(), MIN_SCORE, _OVERLAP
    )
    return detections.take(np.asarray(rows, int))


def _without_nested(boxes: Boxes) -> list[int]:
    """Rows of the boxes that neither hold most of an earlier box nor lie mostly within one."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    kept: list[int] = []
    for i, box in enumerate(boxes):
        extent = np.minimum(box[2:], boxes[kept, 2:]) - np.maximum(box[:2], boxes[kept, :2])
        shared = extent.clip(min=0).prod(axis=1)
        if (shared <= _NESTED * np.minimum(areas[i], areas[kept])).all():
            kept.append(i)
    return kept


_silence = threading.Lock()
_silenced = 0  # blocks of `quiet_opencv` that run now, in all threads
_loud = 0  # OpenCV's log level before the first of them


@contextlib.contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keeps OpenCV's own log off standard error; what goes wrong is raised all the same."""
    global _silenced, _loud
    log = cv2.utils.logging
    # The level is one for all threads: the first to come silences it, the last to go restores it.
    with _silence:
        if _silenced == 0:
            _loud = log.setLogLevel(log.LOG_LEVEL_SILENT)
        _silenced += 1
    try:
        yield
    finally:
        with _silence:
            _silenced -= 1
            if _silenced == 0:
                log.setLogLevel(_loud)


def fetch_detector_model() -> Path:
    """YuNet's file from the cache folder; the first time, it is fetched from the OpenCV zoo.

    Raises:
      InputError: it cannot be fetched, or what came is another file.
    """
    path = cache_folder() / "models" / MODEL_FILE
    if path.is_file():
        return path
    mend = "give --detector-model FILE, --box X0,Y0,X1,Y1, --boxes FILE or --whole-image"
    try:
        with urllib.request.urlopen(MODEL_URL, timeout=_TIMEOUT) as answer:
            content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{MODEL_URL}: cannot be fetched: {reason}; {mend}") from error
    if hashlib.sha256(content).hexdigest() != MODEL_SHA256:
        raise InputError(f"{MODEL_URL}: what came is not the expected file; {mend}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda tmp: tmp.write_bytes(content))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; {mend}") from error
    return path

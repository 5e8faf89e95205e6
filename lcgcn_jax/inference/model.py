"""A trained landmark model for images: face detection, crops, prediction, mapping back to the image."""

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_collections
import numpy as np

from lcgcn_jax import compat
from lcgcn_jax.errors import InputError, count_of
from lcgcn_jax.image_arrays import ImageInput, is_path, rgb_image
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference.crop_model import CropModel
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.face_detector import MIN_SCORE, FaceDetector
from lcgcn_jax.inference.face_prediction import FacePredictor
from lcgcn_jax.inference.forking import check_not_forked
from lcgcn_jax.inference.image_inputs import (
    BoxedImage,
    BoxInput,
    as_list,
    check_boxes,
    check_fraction,
    is_full_batch,
    list_images,
)
from lcgcn_jax.inference.program_cache import is_known
from lcgcn_jax.inference.tracking import DETECT_EVERY, FaceTracker, TrackedFrame, track_frames
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.bundles import (
    Bundle,
    abstract_weights,
    check_weights,
    read_bundle,
    shipped_bundles,
)

# A model is loaded without JAX and Flax, whose imports take a second.
if TYPE_CHECKING:
    import flax.nnx


class LandmarkModel(CropModel):
    """A trained model for prediction; `load_model` returns one.

    It can be used by several threads at once, copied and pickled. A copy contains the bundle, and the face
    detector if it was used. Start worker processes with `spawn` or `forkserver`: JAX hangs in processes that
    were forked after it started, so there each prediction raises a `RuntimeError`.

    Attributes:
      scheme: scheme of the predicted landmarks.
      config: configuration of the model.
      image_size: side s of its crops, in pixels.
      calibration: uncertainty model, which predicts errors; None for a model that is not calibrated.
      flip_bias: horizontal bias of all landmarks (`models.bundles.Bundle`).
    """

    def __init__(
        self,
        bundle: Bundle,
        detector_model: str | Path | None = None,
        scheme: str | None = None,
        *,
        digest: str = "",
    ):
        """Create a model; `digest` is that of the files of the bundle, unless it was changed."""
        super().__init__(bundle, scheme, digest=digest)
        self._detector_model = detector_model
        self._detector: FaceDetector | None = None
        self._detector_lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        path = self._detector_model
        return super().__getstate__() | {
            # A relative path would depend on the working directory of the other process.
            "detector_model": None if path is None else Path(path).absolute(),
            "detector": self._detector,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(state)
        self._detector_model, self._detector = state["detector_model"], state["detector"]
        self._detector_lock = threading.Lock()

    @property
    def detector(self) -> FaceDetector:
        """Face detector for images without boxes; loaded, and downloaded if needed, at the first use."""
        with self._detector_lock:
            if self._detector is None:
                self._detector = FaceDetector(self._detector_model)
            return self._detector

    @classmethod
    def from_module(
        cls,
        module: "flax.nnx.Module",
        *,
        config: Mapping[str, Any] | ml_collections.ConfigDict,
        scheme: LandmarkScheme,
        image_size: int,
        detector_model: str | Path | None = None,
    ) -> "LandmarkModel":
        """Build a model from a network, for example from a fine-tuned `module`.

        The model has no predicted errors: `lcgcn research calibrate` fits them for given weights.

        Args:
          module: the network, as `create_model` or `module` returns it.
          config: its configuration, as in `LandmarkModel.config`, or the field `model` of a config.
          scheme: landmark scheme.
          image_size: side of the crops that it was trained on, in pixels.
          detector_model: as in `load_model`.

        Raises:
          InputError: the weights of the module do not match the configuration, or are not finite.
        """
        from lcgcn_jax.models.weights import all_weights

        weights = {name: np.asarray(value) for name, value in all_weights(module).items()}
        model_config = compat.upgrade_config(
            config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
        )
        _, params, batch_stats = abstract_weights(model_config, scheme.num_landmarks)
        check_weights(Path("module"), weights, params | batch_stats)
        return cls(Bundle(model_config, scheme, image_size, weights), detector_model)

    def predict(
        self,
        image: ImageInput,
        boxes: Iterable[BoxInput] | None = None,
        *,
        box_format: str = "xyxy",
        min_score: float = MIN_SCORE,
        min_confidence: float = 0.0,
    ) -> list[Face]:
        """Predict the landmarks of the faces in an image.

        Rotated or badly framed faces are predicted again from better crops (`FacePredictor`).

        Args:
          image: path of an image file; RGB `uint8` `[h w 3]` (`cv2.imread` returns BGR: pass
            `image[..., ::-1]`); or a grayscale or RGBA array or PIL image, which are converted as the same
            image in a file is (`image_arrays`).
          boxes: face boxes in pixels, from chin to brows like the bounding box of the landmarks. By default
            the boxes of the face detector, by descending score.
          box_format: `xyxy` for boxes (x0, y0, x1, y1), or `xywh` for (x, y, width, height).
          min_score: minimum score of a detected face, in 0..1.
          min_confidence: minimum mean confidence of the landmarks of a face, also in a box of the caller.

        Returns:
          One face per box, in order, unless `min_confidence` is set.

        Raises:
          InputError: the image cannot be read or is ambiguous, a box is empty or outside the image, a
            minimum is not in 0..1, or the face detector cannot be loaded.
          RuntimeError: the process was forked after JAX had started.
        """
        boxed = self.boxed_image(image, boxes, box_format=box_format, min_score=min_score)
        return self.predict_boxed([boxed], min_confidence=min_confidence)[0]

    def predict_batch(
        self,
        images: Iterable[ImageInput],
        boxes: Iterable[Iterable[BoxInput] | None] | None = None,
        *,
        box_format: str = "xyxy",
        min_score: float = MIN_SCORE,
        min_confidence: float = 0.0,
    ) -> list[list[Face]]:
        """Predict the landmarks of the faces in several images, in shared batches.

        Args:
          images: images of any sizes, as in `predict`.
          boxes: face boxes of each image, as in `predict`; None for an image in which the face detector
            detects the faces.

        The other arguments are as in `predict`.

        Returns:
          The faces of each image.

        Raises:
          InputError: as in `predict`, or the numbers of images and of lists of boxes differ.
          RuntimeError: as in `predict`.
        """
        images = list_images(images)
        boxes_of_images = [None] * len(images) if boxes is None else as_list("boxes", boxes)
        if len(boxes_of_images) != len(images):
            raise InputError(
                f"boxes: {count_of(len(boxes_of_images), 'list')} of boxes for "
                f"{count_of(len(images), 'image')}; give one for each image"
            )
        faces: list[list[Face]] = []
        batch: list[BoxedImage] = []
        for i, (image, image_boxes) in enumerate(zip(images, boxes_of_images, strict=True)):
            options = {"name": f"image {i}", "box_format": box_format, "min_score": min_score}
            batch.append(self.boxed_image(image, image_boxes, **options))
            if is_full_batch(batch):
                faces += self.predict_boxed(batch, min_confidence=min_confidence)
                batch = []
        return faces + self.predict_boxed(batch, min_confidence=min_confidence)

    def boxed_image(
        self,
        image: ImageInput,
        boxes: Iterable[BoxInput] | None = None,
        *,
        name: str | os.PathLike = "image",
        box_format: str = "xyxy",
        min_score: float = MIN_SCORE,
    ) -> BoxedImage:
        """Read an image, and check its face boxes or detect them.

        Args:
          name: name of the image in error messages, if `image` is not a path.

        The other arguments are as in `predict`.

        Raises:
          InputError: as in `predict`.
          RuntimeError: as in `predict`.
        """
        check_not_forked()
        check_fraction("min_score", min_score)
        if is_path(image):
            name, pixels = image, read_image(image)
        else:
            pixels = rgb_image(image, str(name))
        if boxes is None:
            detected = self.detector.find_faces(pixels, min_score=min_score)
            crops = detected.crops(self.image_size)
            return BoxedImage(pixels, list(detected.boxes), detected.scores.tolist(), crops)
        checked = check_boxes(boxes, pixels.shape[1], pixels.shape[0], name, box_format)
        return BoxedImage(pixels, checked, [None] * len(checked))

    def predict_boxed(
        self, images: Sequence[BoxedImage], *, min_confidence: float = 0.0
    ) -> list[list[Face]]:
        """Predict the landmarks of the faces in images with known face boxes, in shared batches.

        Args:
          images: images that `boxed_image` returned.
          min_confidence: as in `predict`.

        Raises:
          InputError: the minimum is not in 0..1.
          RuntimeError: as in `predict`.
        """
        check_fraction("min_confidence", min_confidence)
        predictor = FacePredictor(
            self.predict_crops, self.scheme, self.image_size, self.calibration
        )
        return [
            [face for face in faces if face.confidence.mean() >= min_confidence]
            for faces in predictor.predict(images)
        ]

    def track(
        self,
        frames: Iterable[ImageInput] | str | os.PathLike,
        times: Iterable[float] | None = None,
        *,
        detect_every: int = DETECT_EVERY,
        smooth: bool = False,
        min_score: float = MIN_SCORE,
        min_confidence: float = 0.0,
    ) -> Iterator[TrackedFrame]:
        """Predict the faces in the frames of a video, each with the number of its track.

        A face is followed from its landmarks in the previous frame; `FaceTracker` does the same frame by
        frame. Frames are read when the results are, so that endless sources are possible.

        Args:
          frames: RGB images as in `predict`, in order; or the path of a video file, or a stream such as
            `camera:0` or `rtsp://host/path`.
          times: increasing times of the frames in seconds; by default, those of the file or stream, and 25
            frames per second for images.
          detect_every: maximum number of frames from one run of the face detector to the next.
          smooth: smooth the landmarks over time (One Euro filter).
          min_score: as in `predict`.
          min_confidence: as in `predict`.

        Returns:
          Iterator over the frames, with `time`, `image`, and `faces` by the number of their track
          (`Face.track`).

        Raises:
          InputError: `detect_every` is less than 1; the iterator raises it if the video or a frame cannot be
            read, or a time is missing or not later than the previous one.
        """
        tracker = FaceTracker(
            self,
            detect_every=detect_every,
            smooth=smooth,
            min_score=min_score,
            min_confidence=min_confidence,
        )
        return track_frames(tracker, frames, times)


def list_models() -> list[str]:
    """Names of the models that come with the package, for `load_model`."""
    return shipped_bundles()


def load_model(
    model: str | Path, *, detector_model: str | Path | None = None, scheme: str | None = None
) -> LandmarkModel:
    """Load a model for prediction.

    Args:
      model: name of a shipped model (`list_models`), folder of a bundle, training workdir (its best model is
        loaded), or `hf://owner/repo[@revision]` on the Hugging Face Hub.
      detector_model: YuNet's ONNX file, for images without boxes. By default it is downloaded from the
        OpenCV zoo to the cache folder at the first use.
      scheme: `ibug68` for the 68 landmarks of 300W from a model with the 98 of WFLW. All outputs have these
        landmarks, and the edges between them, whose rows sum to less than 1. By default that of the model.

    Raises:
      InputError: there is no such model, its files are damaged, or it has no conversion to the scheme.
      RuntimeError: the process was forked after JAX had started.
    """
    check_not_forked()
    bundle, digest = read_bundle(model, is_known)
    return LandmarkModel(bundle, detector_model, scheme, digest=digest)


load = load_model  # the former name

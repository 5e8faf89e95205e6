"""A trained landmark model for images: face detection, crops, prediction, mapping back to the image."""

import collections
import dataclasses
import functools
import math
import os
import threading
import uuid
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from lcgcn_jax import compat
from lcgcn_jax.atomic_io import writing
from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.errors import InputError, require_absent
from lcgcn_jax.image_arrays import ImageInput, is_path, rgb_crops, rgb_image
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.face_detector import FaceDetector
from lcgcn_jax.inference.face_prediction import FacePredictor
from lcgcn_jax.inference.forking import check_not_forked
from lcgcn_jax.inference.image_inputs import (
    BoxedImage,
    BoxInput,
    as_list,
    check_boxes,
    is_full_batch,
    list_images,
    normalized_crops,
)
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.bn_folding import fold_batch_norm
from lcgcn_jax.models.bundles import (
    Bundle,
    abstract_weights,
    check_weights,
    load_bundle,
    save_bundle,
    shipped_bundles,
)
from lcgcn_jax.models.lcgcn import LCGCNOutput
from lcgcn_jax.models.weights import all_weights
from lcgcn_jax.uncertainty import UncertaintyModel

# Maximum batch size. On a CPU, the feature maps of a few faces fit into the caches: `w300-lcgcn-small` takes
# 14.0 ms of CPU time per face in batches of 1, 12.5 ms of 4, 16.8 ms of 8 and 18.0 ms of 32 (AMD EPYC).
_MAX_BATCHES = {"cpu": 4}
_MAX_BATCH_OF_ACCELERATORS = 32


class _Programs:
    """Compiled forward passes of one model."""

    def __init__(self, bundle: Bundle):
        model = fold_batch_norm(*bundle.create())
        options = compiler_options()
        self.normalized = jax.jit(model.forward, compiler_options=options)
        self.bytes = jax.jit(model.predict, compiler_options=options)


# Copies of a model share its programs within a process. A worker of a process pool gets a copy with each
# task, and would compile the programs for each of them without the references to the last two.
_programs: weakref.WeakValueDictionary[str, _Programs] = weakref.WeakValueDictionary()
_last_copies: collections.deque[_Programs] = collections.deque(maxlen=2)
_programs_lock = threading.Lock()


class LandmarkModel:
    """A trained model for prediction; `load_model` returns one.

    It can be used by several threads at once, copied and pickled. A copy contains the bundle, and the face
    detector if it was used. Start worker processes with `spawn` or `forkserver`: JAX hangs in processes that
    were forked after it started, so there each prediction raises a `RuntimeError`.

    Attributes:
      scheme: landmark scheme.
      config: configuration of the model.
      image_size: side s of its crops, in pixels.
      calibration: uncertainty model, which predicts errors; None for a model that is not calibrated.
      flip_bias: horizontal bias of all landmarks (`models.bundles.Bundle`).
    """

    def __init__(self, bundle: Bundle, detector_model: str | Path | None = None):
        self._token, self._is_copy = uuid.uuid4().hex, False
        self._prepare(bundle, detector_model, None)
        self._compiled()

    def _prepare(
        self,
        bundle: Bundle,
        detector_model: str | Path | None,
        detector: FaceDetector | None,
    ) -> None:
        self.scheme: LandmarkScheme = bundle.scheme
        self.config: dict[str, Any] = dict(bundle.model)
        self.image_size: int = bundle.image_size
        self.calibration: UncertaintyModel | None = bundle.calibration
        self.flip_bias: float = bundle.flip_bias
        self._bundle = bundle
        self._detector_model = detector_model
        self._detector = detector
        self._detector_lock = threading.Lock()
        self._loaded_programs: _Programs | None = None

    def __getstate__(self) -> dict[str, Any]:
        weights = {name: np.asarray(value) for name, value in self._bundle.weights.items()}
        path = self._detector_model
        return {
            "token": self._token,
            "bundle": dataclasses.replace(self._bundle, weights=weights),
            # A relative path would depend on the working directory of the other process.
            "detector_model": None if path is None else Path(path).absolute(),
            "detector": self._detector,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        # Programs are compiled at the first call: an error here would end the worker of a pool silently.
        self._token, self._is_copy = state["token"], True
        self._prepare(state["bundle"], state["detector_model"], state["detector"])

    def _compiled(self) -> _Programs:
        check_not_forked()
        if self._loaded_programs is None:
            with _programs_lock:
                programs = _programs.get(self._token)
                if programs is None:
                    programs = _programs[self._token] = _Programs(self._bundle)
                if self._is_copy and programs not in _last_copies:
                    _last_copies.append(programs)
                self._loaded_programs = programs
        return self._loaded_programs

    @property
    def detector(self) -> FaceDetector:
        """Face detector for images without boxes; loaded, and downloaded if needed, at the first use."""
        with self._detector_lock:
            if self._detector is None:
                self._detector = FaceDetector(self._detector_model)
            return self._detector

    @property
    def bundle(self) -> Bundle:
        """Configuration and weights of the model."""
        return self._bundle

    @functools.cached_property
    def module(self) -> nnx.Module:
        """The network with the weights of the model, for fine-tuning.

        It maps normalized crops `[b s s 3]` (`normalize_images`) to an `LCGCNOutput` in crop pixels. With
        `train_heatmap=True` and `train_graph=True`, the BatchNorm layers of the heatmap model and of the
        graph use the statistics of the batch, and update the running ones. Predictions of this model do not
        follow changes of the module; use `from_module` for a model with the new weights.
        """
        return self._bundle.create().merge()

    @classmethod
    def from_module(
        cls,
        module: nnx.Module,
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
        weights = {name: np.asarray(value) for name, value in all_weights(module).items()}
        model_config = compat.upgrade_config(
            config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
        )
        _, params, batch_stats = abstract_weights(model_config, scheme.num_landmarks)
        check_weights(Path("module"), weights, params | batch_stats)
        return cls(Bundle(model_config, scheme, image_size, weights), detector_model)

    def save(self, path: str | Path, *, card: str = "", overwrite: bool = False) -> None:
        """Write the model as a bundle, which `load_model` and all commands read.

        Args:
          path: folder of the bundle.
          card: text of its README, in Markdown.
          overwrite: replace an existing bundle.

        Raises:
          InputError: the folder exists, or cannot be written.
        """
        folder = Path(path)
        require_absent(folder, overwrite=overwrite)
        with writing(folder):
            save_bundle(folder, self._bundle, card or f"# {folder.name}\n")

    def forward(self, images: Any) -> LCGCNOutput:
        """Run the model on normalized crops; the output is in crop pixels.

        Args:
          images: floating-point array `[b s s 3]` (`models.lcgcn.normalize_images`).

        Raises:
          InputError: the images have another type or shape.
        """
        programs = self._compiled()
        crops = normalized_crops(images, self.image_size)
        return programs.normalized(crops) if len(crops) else self._empty_output()

    def predict_crops(self, crops: ImageInput) -> LCGCNOutput:
        """Run the model on any number of RGB crops; returns NumPy arrays, in crop pixels.

        Batches are padded to a power of two to limit the number of compiled programs.

        Args:
          crops: uint8 RGB `[b s s 3]`, or a value that `image_arrays.rgb_crops` converts to it.

        Raises:
          InputError: the crops have another type or size.
        """
        programs = self._compiled()
        crops = rgb_crops(crops, self.image_size)
        if not len(crops):
            return self._empty_output()
        outputs = []
        max_batch = _MAX_BATCHES.get(jax.default_backend(), _MAX_BATCH_OF_ACCELERATORS)
        for start in range(0, len(crops), max_batch):
            batch = crops[start : start + max_batch]
            padding = (1 << math.ceil(math.log2(len(batch)))) - len(batch)
            padded = np.concatenate([batch, np.zeros((padding, *batch.shape[1:]), np.uint8)])
            outputs.append(jax.tree.map(np.asarray, programs.bytes(padded)))
        # Only the last batch has padding.
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(crops)], *outputs)

    def _empty_output(self) -> LCGCNOutput:
        crops = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.uint8)
        output = jax.eval_shape(self._compiled().bytes, crops)
        return jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape[1:]), leaf.dtype), output)

    def predict(self, image: ImageInput, boxes: Iterable[BoxInput] | None = None) -> list[Face]:
        """Predict the landmarks of the faces in an image.

        Args:
          image: path of an image file; RGB `uint8` `[h w 3]` (`cv2.imread` returns BGR: pass
            `image[..., ::-1]`); or a grayscale or RGBA array or PIL image, which are converted as the same
            image in a file is (`image_arrays`).
          boxes: face boxes (x0, y0, x1, y1) in pixels, tight around the face from chin to brows like the
            bounding box of the landmarks. By default the boxes of the face detector, by descending score.

        Returns:
          One face per box, in order.

        Raises:
          InputError: the image cannot be read or is ambiguous, a box is empty or outside the image, or
            the face detector cannot be loaded.
          RuntimeError: the process was forked after JAX had started.
        """
        return self.predict_boxed([self.boxed_image(image, boxes)])[0]

    def predict_batch(
        self,
        images: Iterable[ImageInput],
        boxes: Iterable[Iterable[BoxInput] | None] | None = None,
    ) -> list[list[Face]]:
        """Predict the landmarks of the faces in several images, in shared batches.

        Args:
          images: images of any sizes, as in `predict`.
          boxes: face boxes of each image, as in `predict`; None for an image in which the face detector
            detects the faces.

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
                f"boxes: {len(boxes_of_images)} lists of boxes for {len(images)} images; give one for each "
                "image"
            )
        faces: list[list[Face]] = []
        batch: list[BoxedImage] = []
        for i, (image, image_boxes) in enumerate(zip(images, boxes_of_images, strict=True)):
            batch.append(self.boxed_image(image, image_boxes, name=f"image {i}"))
            if is_full_batch(batch):
                faces += self.predict_boxed(batch)
                batch = []
        return faces + self.predict_boxed(batch)

    def boxed_image(
        self,
        image: ImageInput,
        boxes: Iterable[BoxInput] | None = None,
        *,
        name: str | os.PathLike = "image",
    ) -> BoxedImage:
        """Read an image, and check its face boxes or detect them.

        Args:
          image: as in `predict`.
          boxes: as in `predict`.
          name: name of the image in error messages, if `image` is not a path.

        Raises:
          InputError: as in `predict`.
          RuntimeError: as in `predict`.
        """
        check_not_forked()
        if is_path(image):
            name, pixels = image, read_image(image)
        else:
            pixels = rgb_image(image, str(name))
        if boxes is None:
            detected, scores = self.detector.scored_boxes(pixels)
            return BoxedImage(pixels, list(detected), scores.tolist())
        checked = check_boxes(boxes, pixels.shape[1], pixels.shape[0], name)
        return BoxedImage(pixels, checked, [None] * len(checked))

    def predict_boxed(self, images: Sequence[BoxedImage]) -> list[list[Face]]:
        """Predict the landmarks of the faces in images with known face boxes, in shared batches.

        Args:
          images: images that `boxed_image` returned.

        Raises:
          RuntimeError: as in `predict`.
        """
        predictor = FacePredictor(
            self.predict_crops, self.scheme, self.image_size, self.calibration
        )
        return predictor.predict(images)


def list_models() -> list[str]:
    """Names of the models that come with the package, for `load_model`."""
    return shipped_bundles()


def load_model(model: str | Path, *, detector_model: str | Path | None = None) -> LandmarkModel:
    """Load a model for prediction.

    Args:
      model: name of a shipped model (`list_models`), folder of a bundle, training workdir (its best model is
        loaded), or `hf://owner/repo[@revision]` on the Hugging Face Hub.
      detector_model: YuNet's ONNX file, for images without boxes. By default it is downloaded from the
        OpenCV zoo to the cache folder at the first use.

    Raises:
      InputError: there is no such model, or its files are damaged.
      RuntimeError: the process was forked after JAX had started.
    """
    check_not_forked()
    return LandmarkModel(load_bundle(model), detector_model)


load = load_model  # the former name

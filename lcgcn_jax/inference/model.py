"""A trained model for images: faces in, landmarks in the image's pixels out."""

import collections
import dataclasses
import functools
import itertools
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
from jaxtyping import Float, UInt8

from lcgcn_jax import geometry
from lcgcn_jax.atomic_io import writing
from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.image_arrays import ImageInput, describe_value, is_path, rgb_crops, rgb_image
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference import robust_crops
from lcgcn_jax.inference.face_detector import FaceDetector
from lcgcn_jax.inference.forking import check_not_forked
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

# Faces at a time, at most. The maps of a few faces fit into a CPU's caches: of `w300-lcgcn-small` a face took
# 14.0 ms of processor time alone, 12.5 in fours, 16.8 in eights and 18.0 in batches of 32 (AMD EPYC).
_BATCHES = {"cpu": 4}
_BATCH_ELSEWHERE = 32

BoxInput = Any
"""A face box (x0, y0, x1, y1): four numbers of any sequence type, in pixels."""


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in a image, in its pixels.

    Attributes:
      box: the face box (x0, y0, x1, y1) that was given or detected.
      landmarks: of the graph stage; of the heatmap stage where the model has no graph.
      confidence: probability at each landmark's heatmap peak.
      heatmap_landmarks: of the heatmap stage.
      edges: the graph's weights, how much row i hears of column j; None for a model without a graph.
      expected_error: how far off each of `landmarks` is to be expected, in percent of what NME divides by
        (`LandmarkScheme.normalizer`; the distance between the outer eye corners for 68 and 98 landmarks);
        None for a model that is not calibrated (`lcgcn calibrate`). It is large (about 90) for all landmarks
        of a face that the model has failed on, such as one that is no face.
      visibility: probability that each landmark is visible, neither occluded by another object nor by the
        face itself; None for a model without a visibility head.
      score: the face detector's score, in 0..1; None for a given box.
      predicted_error: predicted error of each of `landmarks`, in pixels of the image; None where
        `expected_error` is None, and for a scheme whose normalizer is `given`.
      scheme: meaning of the landmarks.
    """

    box: Float[np.ndarray, "4"]
    landmarks: Float[np.ndarray, "k 2"]
    confidence: Float[np.ndarray, "k"]
    heatmap_landmarks: Float[np.ndarray, "k 2"]
    edges: Float[np.ndarray, "k k"] | None = None
    expected_error: Float[np.ndarray, "k"] | None = None
    visibility: Float[np.ndarray, "k"] | None = None
    score: float | None = None
    predicted_error: Float[np.ndarray, "k"] | None = None
    scheme: LandmarkScheme | None = dataclasses.field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the `k` landmarks; empty without a scheme."""
        return () if self.scheme is None else self.scheme.names


class _Programs:
    """Compiled forward passes of one model."""

    def __init__(self, bundle: Bundle):
        model = fold_batch_norm(*bundle.create())
        options = compiler_options()
        self.normalized = jax.jit(model.forward, compiler_options=options)
        self.bytes = jax.jit(model.predict, compiler_options=options)


# Copies of a model share its programs within a process. A pool's worker gets a copy with every task, and
# without the last two it would compile for each of them.
_programs: weakref.WeakValueDictionary[str, _Programs] = weakref.WeakValueDictionary()
_last_copies: collections.deque[_Programs] = collections.deque(maxlen=2)
_making_programs = threading.Lock()


@dataclasses.dataclass(frozen=True)
class _Estimate:
    """Prediction for one face from one crop, in pixels of the image."""

    landmarks: Float[np.ndarray, "k 2"]
    heatmap_landmarks: Float[np.ndarray, "k 2"]
    confidence: Float[np.ndarray, "k"]
    edges: Float[np.ndarray, "k k"] | None
    expected_error: Float[np.ndarray, "k"] | None
    visibility: Float[np.ndarray, "k"] | None


class LandmarkModel:
    """A trained model, ready to predict; `load` makes one.

    It can be used by several threads at once, and copied and pickled: a copy holds the bundle's content, and
    that of the face detector's file if it was used. Worker processes have to be started by `spawn` or
    `forkserver`. JAX hangs in processes that were forked after it started, so there every prediction raises
    a `RuntimeError`.

    Attributes:
      scheme: what the landmarks mean.
      config: the model's configuration.
      image_size: side s of the crops that it takes, in pixels.
      calibration: from peaks and spreads of heatmaps to predicted errors, or None.
      flip_bias: how far to the right all points lie (`models.bundles.Bundle`).
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
        self._loading_detector = threading.Lock()
        self._own_programs: _Programs | None = None

    def __getstate__(self) -> dict[str, Any]:
        weights = {name: np.asarray(value) for name, value in self._bundle.weights.items()}
        path = self._detector_model
        return {
            "token": self._token,
            "bundle": dataclasses.replace(self._bundle, weights=weights),
            # Relative paths are those of this process.
            "detector_model": None if path is None else Path(path).absolute(),
            "detector": self._detector,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        # Programs are made at the first call: an error here would end a pool's worker without a word.
        self._token, self._is_copy = state["token"], True
        self._prepare(state["bundle"], state["detector_model"], state["detector"])

    def _compiled(self) -> _Programs:
        check_not_forked()
        if self._own_programs is None:
            with _making_programs:
                programs = _programs.get(self._token)
                if programs is None:
                    programs = _programs[self._token] = _Programs(self._bundle)
                if self._is_copy and programs not in _last_copies:
                    _last_copies.append(programs)
                self._own_programs = programs
        return self._own_programs

    @property
    def detector(self) -> FaceDetector:
        """What finds the faces where no boxes are given; loaded, or fetched, when first used."""
        with self._loading_detector:
            if self._detector is None:
                self._detector = FaceDetector(self._detector_model)
            return self._detector

    @property
    def bundle(self) -> Bundle:
        """Configuration and weights of the model."""
        return self._bundle

    @functools.cached_property
    def module(self) -> nnx.Module:
        """The network with the model's weights, for fine-tuning.

        Maps normalized crops `[b s s 3]` (`normalize_images`) to an `LCGCNOutput` in crop pixels; with
        `train_heatmap=True` and `train_graph=True`, the BatchNorm layers of the heatmap model and of the
        graph use and update the statistics of the batch. The predictions of this model
        do not follow changes to the module; use `from_module` for a model with the new weights.
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
        """Makes a model from a network, for example from a fine-tuned `module`.

        The model has no predicted errors: they are fitted to certain weights (`lcgcn calibrate`).

        Args:
          module: the network, as `create_model` or `module` returns it.
          config: its configuration, as in `LandmarkModel.config`, or the field `model` of a config.
          scheme: meaning of its landmarks.
          image_size: side of the crops that it was trained on, in pixels.
          detector_model: as in `load_model`.

        Raises:
          InputError: the weights of the module are not those of the configuration, or not finite.
        """
        weights = {name: np.asarray(value) for name, value in all_weights(module).items()}
        model_config = (
            config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
        )
        _, params, batch_stats = abstract_weights(model_config, scheme.num_landmarks)
        check_weights(Path("module"), weights, params | batch_stats)
        return cls(Bundle(model_config, scheme, image_size, weights), detector_model)

    def save(self, path: str | Path, *, card: str = "", overwrite: bool = False) -> None:
        """Writes the model as a bundle, which `load_model` and all commands read.

        Args:
          path: folder of the bundle.
          card: text of its README, in Markdown.
          overwrite: replace a bundle that exists.

        Raises:
          InputError: the folder exists, or cannot be written.
        """
        folder = Path(path)
        if folder.exists() and not overwrite:
            raise InputError(
                f"{folder}: already exists; choose another folder or give overwrite=True"
            )
        with writing(folder):
            save_bundle(folder, self._bundle, card or f"# {folder.name}\n")

    def forward(self, images: Any) -> LCGCNOutput:
        """Runs the model on normalized crops (`models.lcgcn.normalize_images`); in crop pixels.

        Args:
          images: floating-point `[b s s 3]`.

        Raises:
          InputError: they have another type or shape.
        """
        programs = self._compiled()
        size = self.image_size
        expected = f"normalized floating-point crops [b {size} {size} 3]"
        try:
            array = images if isinstance(images, jax.Array) else np.asarray(images)
        except Exception as error:  # conversions of other libraries raise what they like
            raise InputError(
                f"images: {type(images).__name__} cannot become an array: {one_line(error)[:100]}; "
                f"give {expected}"
            ) from error
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.shape[1:] != (size, size, 3):
            raise InputError(
                f"images: {describe_value(array)}; give {expected} (models.lcgcn.normalize_images), or call "
                "predict_crops with bytes"
            )
        if array.shape[0] == 0:
            return self._no_faces()
        return programs.normalized(jnp.asarray(array, jnp.float32))

    def predict_crops(self, crops: ImageInput) -> LCGCNOutput:
        """Runs the model on RGB crops of any number; NumPy arrays, in crop pixels.

        Batches are filled up to a power of two, so that few programs are compiled.

        Args:
          crops: `uint8` RGB `[b s s 3]`, or what `image_arrays.rgb_crops` converts to it.

        Raises:
          InputError: they have another type or size.
        """
        programs = self._compiled()
        crops = rgb_crops(crops, self.image_size)
        if not len(crops):
            return self._no_faces()
        outputs = []
        largest = _BATCHES.get(jax.default_backend(), _BATCH_ELSEWHERE)
        for start in range(0, len(crops), largest):
            part = crops[start : start + largest]
            size = 1 << math.ceil(math.log2(len(part)))
            padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])
            output = programs.bytes(padded)
            outputs.append(jax.tree.map(np.asarray, output))
        # Only the last batch is filled up.
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(crops)], *outputs)

    def _no_faces(self) -> LCGCNOutput:
        crops = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.uint8)
        output = jax.eval_shape(self._compiled().bytes, crops)
        return jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape[1:]), leaf.dtype), output)

    def predict(self, image: ImageInput, boxes: Iterable[BoxInput] | None = None) -> list[Face]:
        """Finds the landmarks of the faces in a image.

        Args:
          image: an image file's path; RGB `uint8` `[h w 3]` (`cv2.imread` returns BGR: give
            `image[..., ::-1]`); or grayscale, RGBA or a PIL image, which are read as the same image in a
            file is (`image_arrays`).
          boxes: face boxes (x0, y0, x1, y1) in pixels: tight around the face, chin to brows, as the
            bounding box of the landmarks is. By default the face detector's, the surest first.

        Returns:
          A face for each box, in order.

        Raises:
          InputError: the image cannot be read or is ambiguous, a box is empty or outside the image, or
            there is no face detector.
          RuntimeError: the process was forked after JAX had started.
        """
        return self._predict([image], None if boxes is None else [boxes], ["image"])[0]

    def predict_batch(
        self,
        images: Iterable[ImageInput],
        boxes: Iterable[Iterable[BoxInput] | None] | None = None,
    ) -> list[list[Face]]:
        """Finds the landmarks of the faces in some images, all faces in common batches.

        Args:
          images: images of any sizes, as `predict` takes them.
          boxes: for each image its face boxes, as `predict` takes them; None for those in which the
            face detector is to find them.

        Returns:
          For each image its faces.

        Raises:
          InputError: as `predict`, or there are not as many lists of boxes as images.
          RuntimeError: as `predict`.
        """
        ndim = getattr(images, "ndim", 4)
        if is_path(images) or isinstance(images, bytes) or ndim != 4:
            raise InputError(
                f"images: {describe_value(images)} is not a list of images; call predict for one image"
            )
        images = _as_list("images", images)
        if boxes is not None:
            boxes = _as_list("boxes", boxes)
            if len(boxes) != len(images):
                raise InputError(
                    f"boxes: {len(boxes)} lists of boxes for {len(images)} images; give one for each image"
                )
        return self._predict(images, boxes, [f"image {i}" for i in range(len(images))])

    def _predict(
        self,
        images: Sequence[ImageInput],
        boxes: Sequence[Iterable[BoxInput] | None] | None,
        names: Sequence[str],
    ) -> list[list[Face]]:
        check_not_forked()
        crops, affines, face_boxes, counts = [], [], [], []
        scores: list[float | None] = []
        for i, image in enumerate(images):
            pixels = _read(image, names[i])
            given = None if boxes is None else boxes[i]
            if given is None:
                boxes_found, scores_found = self.detector.scored_boxes(pixels)
                found = list(boxes_found)
                scores += scores_found.tolist()
            else:
                name = image if is_path(image) else names[i]
                found = check_boxes(given, pixels.shape[1], pixels.shape[0], name)
                scores += [None] * len(found)
            for box in found:
                affines.append(geometry.crop_transform(box, self.image_size))
                crops.append(geometry.warp(pixels, affines[-1], self.image_size))
            face_boxes += found
            counts.append(len(found))
        estimates = self._estimate(crops, affines)
        owners = np.repeat(np.arange(len(images)), counts)
        for i in range(len(images)):
            faces = [n for n in np.flatnonzero(owners == i) if self._is_uncertain(estimates[n])]
            if faces:
                # Read again: the pixels of all images at once may be more than fits into memory.
                pixels = _read(images[i], names[i])
                better = self._estimate_turned(
                    pixels, [face_boxes[n] for n in faces], [estimates[n] for n in faces]
                )
                for n, estimate in zip(faces, better, strict=True):
                    estimates[n] = estimate
        faces = [
            self._face(box, score, found)
            for box, score, found in zip(face_boxes, scores, estimates, strict=True)
        ]
        ends = np.cumsum(counts).tolist()
        return [faces[end - count : end] for end, count in zip(ends, counts, strict=True)]

    def _estimate(
        self, crops: Sequence[np.ndarray], affines: Sequence[geometry.Affine]
    ) -> list[_Estimate]:
        """Predictions for some crops, mapped back by the inverse of the crops' affines."""
        if not crops:
            return []
        output = self.predict_crops(np.stack(crops))
        expected = None
        if self.calibration is not None:
            expected = self.calibration.expected_error(output.confidence, output.heatmap_std)

        def in_image(landmarks, i):
            inverse = geometry.invert(affines[i])
            return geometry.transform_points(inverse, landmarks[i].astype(np.float64))

        return [
            _Estimate(
                landmarks=in_image(output.landmarks, i),
                heatmap_landmarks=in_image(output.heatmap_landmarks, i),
                confidence=output.confidence[i],
                edges=None if output.edges is None else output.edges[i],
                expected_error=None if expected is None else expected[i],
                visibility=None if output.visibility is None else output.visibility[i],
            )
            for i in range(len(crops))
        ]

    def _is_uncertain(self, estimate: _Estimate) -> bool:
        if self.calibration is None:
            return False
        return robust_crops.is_uncertain(estimate.expected_error, self.calibration)

    def _estimate_turned(
        self,
        pixels: UInt8[np.ndarray, "h w 3"],
        boxes: Sequence[geometry.Box],
        estimates: Sequence[_Estimate],
    ) -> list[_Estimate]:
        """The predictions of least predicted error, from crops in four orientations and an upright one."""

        def predict(affines):
            crops = [geometry.warp(pixels, affine, self.image_size) for affine in affines]
            return self._estimate(crops, affines)

        def error(estimate):
            return estimate.expected_error.mean()

        quarters = robust_crops.QUARTER_TURNS
        turned = iter(
            predict(
                [
                    geometry.crop_transform(box, self.image_size, rotation=degrees)
                    for box in boxes
                    for degrees in quarters
                ]
            )
        )
        best, rows, affines = [], [], []
        for i, estimate in enumerate(estimates):
            candidates = [
                (0.0, estimate),
                *zip(quarters, itertools.islice(turned, len(quarters)), strict=True),
            ]
            degrees, chosen = min(candidates, key=lambda candidate: error(candidate[1]))
            best.append(chosen)
            # In a crop turned by that much the face is nearly upright.
            roll = robust_crops.roll(chosen.landmarks, self.scheme, near=-degrees)
            affine = robust_crops.upright_crop(chosen.landmarks, roll, self.image_size)
            if affine is not None:
                rows.append(i)
                affines.append(affine)
        for i, estimate in zip(rows, predict(affines), strict=True):
            best[i] = min(best[i], estimate, key=error)
        return best

    def _face(self, box: geometry.Box, score: float | None, found: _Estimate) -> Face:
        fields: dict[str, Any] = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
        if self.calibration is not None and found.expected_error is not None:
            estimate = (found.expected_error, found.landmarks, self.scheme, self.calibration)
            fields["expected_error"] = robust_crops.honest_error(*estimate)
            fields["predicted_error"] = robust_crops.pixel_error(*estimate)
        return Face(box=box, score=score, scheme=self.scheme, **fields)


def list_models() -> list[str]:
    """Names of the models that come with the package, for `load_model`."""
    return shipped_bundles()


def load_model(model: str | Path, *, detector_model: str | Path | None = None) -> LandmarkModel:
    """Loads a model for prediction; the same function as `load`.

    Args:
      model: name of a shipped model (`list_models`), folder of a bundle, or training workdir (its best
        model is loaded).
      detector_model: YuNet's ONNX file, for images without given boxes; by default it is downloaded once
        from the OpenCV zoo into the cache folder, at the first use.

    Raises:
      InputError: there is no such model, or its files are damaged.
      RuntimeError: the process was forked after JAX had started.
    """
    return load(model, detector_model=detector_model)


def load(model: str | Path, *, detector_model: str | Path | None = None) -> LandmarkModel:
    """Loads a model for prediction.

    Args:
      model: a bundle's folder, or a training workdir (its best validation is taken).
      detector_model: YuNet's ONNX file, for images without boxes; by default it is fetched once
        from the OpenCV zoo into the cache folder, when it is first needed.

    Raises:
      InputError: there is no such model, or its files are damaged.
      RuntimeError: the process was forked after JAX had started.
    """
    check_not_forked()
    return LandmarkModel(load_bundle(model), detector_model)


def _read(image: ImageInput, name: str) -> UInt8[np.ndarray, "h w 3"]:
    return read_image(image) if is_path(image) else rgb_image(image, name)


def _as_list(name: str, values: Any) -> list:
    """The elements of any iterable but a text or a mapping."""
    if isinstance(values, str | bytes | Mapping):
        raise InputError(f"{name}: {describe_value(values)}; give a list")
    try:
        return list(values)
    except TypeError as error:
        raise InputError(f"{name}: {describe_value(values)}; give a list") from error


def check_boxes(
    boxes: Iterable[BoxInput], width: int, height: int, name: str | os.PathLike
) -> list[geometry.Box]:
    """The face boxes that somebody gave for a picture, as arrays.

    Args:
      boxes: the boxes (x0, y0, x1, y1).
      width: of the picture.
      height: of the picture.
      name: of the picture, for the message.

    Raises:
      InputError: these are no boxes, or a box can be no face's in the image (`geometry.check_box`).
    """
    boxes = _as_list(f"{name}: boxes", boxes)
    if boxes and all(isinstance(v, int | float) or getattr(v, "ndim", 1) == 0 for v in boxes):
        raise InputError(
            f"{name}: boxes: {describe_value(boxes)}; give a list of boxes, [(x0, y0, x1, y1), ...]"
        )
    return [_checked_box(box, width, height, name) for box in boxes]


def _checked_box(box: BoxInput, width: int, height: int, name: str | os.PathLike) -> geometry.Box:
    try:
        values = np.asarray(box if hasattr(box, "shape") else list(box))
    except (TypeError, ValueError):
        values = np.asarray(None)
    if isinstance(box, str) or values.dtype.kind not in "iuf" or values.ndim != 1:
        raise InputError(
            f"{name}: box {describe_value(box)}: a box is four numbers x0,y0,x1,y1 in pixels"
        )
    values = values.astype(np.float64)
    text = ",".join(f"{value:g}" for value in values)
    if values.shape != (4,):
        raise InputError(f"{name}: box {text}: a box is four numbers x0,y0,x1,y1 in pixels")
    try:
        geometry.check_box(values, width, height)
    except ValueError as error:
        raise InputError(f"{name}: box {text}: {error}") from error
    return values

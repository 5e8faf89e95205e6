"""Evaluation of a model on a split of a prepared dataset."""

import dataclasses
from pathlib import Path

from lcgcn_jax.data.dataset import FaceDataset, open_dataset, require_scheme
from lcgcn_jax.errors import InputError, choose
from lcgcn_jax.evaluation.detector_boxes import detector_boxes
from lcgcn_jax.evaluation.face_errors import split_errors
from lcgcn_jax.evaluation.predictions import with_flip_test
from lcgcn_jax.evaluation.report import EvaluationResult, summarize
from lcgcn_jax.inference.face_detector import FaceDetector
from lcgcn_jax.inference.model import LandmarkModel, load_model

BOXES = ("gt", "rect", "detector")
"""Sources of face boxes: the true landmarks, the boxes of the data, the face detector."""


def evaluate(
    model: LandmarkModel | str | Path,
    data: FaceDataset | str | Path,
    *,
    split: str,
    boxes: str = "gt",
    flip_test: bool = False,
    corruption: str = "none",
    normalizer: str | None = None,
    offsets: str | Path | None = None,
    batch_size: int = 32,
    detector_model: str | Path | None = None,
) -> EvaluationResult:
    """Evaluate a model on a split of a prepared dataset.

    Args:
      model: a model, or a path or name that `load_model` takes.
      data: a folder that `lcgcn prepare` wrote.
      split: name of a split, or of a union of splits: `validation`, `test`, `common`, `full`, ...
      boxes: face boxes to crop by: `gt` (bounding box of the true landmarks), `rect` (the box that came
        with the data) or `detector` (of the face detector; a missed face gets the `gt` box).
      flip_test: average the predictions for each crop and its mirror image.
      corruption: corruption to apply to each crop: `none`, `occlude`, `blur`, `low_light` or `noise`.
      normalizer: distance that errors are divided by, one of `landmarks.EVALUATION_NORMALIZERS`; by default
        that of the scheme.
      offsets: file of `lcgcn research fit-offsets`, whose offsets are removed from the ground truth.
      batch_size: maximum number of faces per batch.
      detector_model: YuNet's ONNX file, for `boxes="detector"`; by default the detector of the model.

    Returns:
      NME, failure rate and AUC of both stages, in all and by subset, and the quality of visibility and
      predicted errors if the model has them.

    Raises:
      InputError: model or data cannot be used or have different landmark schemes; there is no such
        split, box or corruption.
    """
    choose("boxes", boxes, BOXES)
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size} is not positive; use 1 or more")
    if not isinstance(model, LandmarkModel):
        model = load_model(model)
    dataset = data if isinstance(data, FaceDataset) else open_dataset(Path(data))
    require_scheme(dataset, model.scheme)
    calibration = model.calibration
    if normalizer is not None:
        scheme = dataset.scheme.normalized_by(normalizer)
        if scheme.normalizer != model.scheme.normalizer:
            calibration = None  # its errors are in percent of another distance
        dataset = dataclasses.replace(dataset, scheme=scheme)
    if offsets is not None:
        dataset = dataset.without_offsets(Path(offsets))
    predict = model.predict_crops
    if flip_test:
        predict = with_flip_test(predict, model.scheme, model.flip_bias)
    box, missed = boxes, None
    if boxes == "detector":
        detector = model.detector if detector_model is None else FaceDetector(detector_model)
        box, missed = detector_boxes(detector, dataset, split)
    errors = split_errors(
        predict,
        dataset,
        split,
        image_size=model.image_size,
        batch_size=min(batch_size, len(dataset.source(split, with_images=False))),
        box=box,
        corruption=corruption,
    )
    return summarize(
        dataset,
        split,
        errors,
        boxes=boxes,
        missed=missed,
        corruption=corruption,
        flip_test=flip_test,
        normalizer=normalizer,
        calibration=calibration,
    )

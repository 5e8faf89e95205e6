"""Fit of the predicted error of a model (`lcgcn research calibrate`), on clean and corrupted faces."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize

from lcgcn_jax.data.corruptions import CORRUPTIONS
from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.face_errors import split_errors, subset_masks
from lcgcn_jax.evaluation.metrics import uncertainty_metrics
from lcgcn_jax.evaluation.predictions import Predict
from lcgcn_jax.uncertainty import UncertaintyModel, score_inputs

_FOLDS = 5  # of the cross-validation
_MIN_ERROR = 0.05  # percent; smaller errors would dominate the fit of the logarithm
_PRIOR = 20  # landmarks of weight 1 by which the offset of a landmark is shrunk to the mean offset
# Upper ends of the bins of the map, as fractions of the landmarks: fine where errors are large.
_BIN_ENDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.9875, 0.99375, 1.0)
_MIN_BIN_SIZE = 30  # landmarks

PerLandmark = Float[np.ndarray, "n k"]


@dataclasses.dataclass(frozen=True)
class CalibrationFit:
    """A fitted uncertainty model, and its quality in cross-validation.

    Attributes:
      calibration: model that was fitted on all faces.
      figures: for each dataset, `metrics.uncertainty_metrics` by corruption, of models that were fitted
        without the image of the face (`cross_validate`).
      subsets: for each dataset, the same for each of its subsets, such as poses, on clean faces, with the
        number of faces `num_faces`.
    """

    calibration: UncertaintyModel
    figures: list[dict[str, dict[str, Any]]]
    subsets: list[dict[str, dict[str, Any]]]


def calibrate(
    predict: Predict,
    datasets: Sequence[FaceDataset],
    split: str,
    *,
    image_size: int,
    batch_size: int,
) -> CalibrationFit:
    """Fit the predicted error of a model on the faces of one or more datasets.

    Each face counts once clean and once under each corruption of `CORRUPTIONS`: clean faces have few large
    errors, and the fitted model cannot predict larger errors than those of the fit. For the same reason,
    some datasets should have difficult faces, such as profiles. All datasets have the same total weight, so
    that a large dataset of easy faces does not dominate. Landmarks without an annotation do not count;
    faces without a normalizing distance do (`SplitErrors.percent_errors`).

    Args:
      predict: model, from uint8 crops to its output.
      datasets: the data, each with its annotation offsets removed if it has any.
      split: split of all datasets, with faces that the landmark model was not trained on.
      image_size: side of the crops in pixels.
      batch_size: faces in a batch.

    Raises:
      InputError: a dataset has no such split, none of its faces can be measured, or all faces are from one
        image.
    """
    parts = [(number, name) for number in range(len(datasets)) for name in CORRUPTIONS]
    part_errors = [
        split_errors(
            predict,
            datasets[number],
            split,
            image_size=image_size,
            batch_size=batch_size,
            corruption=corruption,
        )
        for number, corruption in parts
    ]
    errors = np.concatenate([part.percent_errors() for part in part_errors])
    confidence = np.concatenate([part.confidence for part in part_errors])
    heatmap_std = np.concatenate(
        [part.heatmap_std for part in part_errors if part.heatmap_std is not None]
    )
    sizes = [len(part.measured) for part in part_errors]
    weights = _equal_weights(np.repeat([number for number, _ in parts], sizes))
    groups_of_datasets = [
        [record["group"] for record in dataset.source(split, with_images=False)]
        for dataset in datasets
    ]
    groups = [group for number, _ in parts for group in groups_of_datasets[number]]
    try:
        predicted = cross_validate(errors, confidence, heatmap_std, groups, weights=weights)
    except ValueError as error:
        paths = ", ".join(str(dataset.path) for dataset in datasets)
        raise InputError(f"{paths}: {split}: {error}; give another --split") from error
    ends = np.cumsum(sizes)[:-1]
    columns = [np.split(values, ends) for values in (errors, predicted, confidence)]
    by_part = dict(zip(parts, zip(*columns, strict=True), strict=True))
    fitted_on = _describe_data(datasets, split)
    return CalibrationFit(
        fit_uncertainty(errors, confidence, heatmap_std, fitted_on, weights=weights),
        [
            {name: uncertainty_metrics(*by_part[number, name]) for name in CORRUPTIONS}
            for number in range(len(datasets))
        ],
        [
            _subset_metrics(dataset, split, by_part[number, "none"])
            for number, dataset in enumerate(datasets)
        ],
    )


def _equal_weights(dataset_of_face: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"] | None:
    """Weights with which all datasets have the same total weight; None for one dataset."""
    sizes = np.bincount(dataset_of_face)
    if len(sizes) == 1:
        return None
    return (len(dataset_of_face) / len(sizes) / sizes)[dataset_of_face]


def _describe_data(datasets: Sequence[FaceDataset], split: str) -> dict[str, str]:
    fitted_on = {
        "dataset": "+".join(dataset.name for dataset in datasets),
        "fingerprint": "+".join(dataset.fingerprint for dataset in datasets),
        "split": split,
    }
    if any(dataset.offsets is not None for dataset in datasets):
        digests = ("" if d.offsets is None else d.offsets.digest for d in datasets)
        fitted_on["offsets"] = "+".join(digests)
    return fitted_on


def _subset_metrics(
    dataset: FaceDataset, split: str, columns: tuple[np.ndarray, ...]
) -> dict[str, dict[str, Any]]:
    """`uncertainty_metrics` of each subset with a known error."""
    return {
        name: {
            "num_faces": int(faces.sum()),
            **uncertainty_metrics(*(values[faces] for values in columns)),
        }
        for name, faces in subset_masks(dataset, split).items()
        if np.isfinite(columns[0][faces]).any()
    }


def cross_validate(
    errors: PerLandmark,
    confidence: PerLandmark,
    heatmap_std: PerLandmark,
    groups: Sequence[str],
    *,
    weights: Float[np.ndarray, "n"] | None = None,
) -> PerLandmark:
    """Predicted errors of each face by a model that was fitted without it (5-fold cross-validation).

    Args:
      errors: in percent; NaN where a landmark is not annotated.
      groups: group of each face, such as its image; a group is never split over two folds.

    Raises:
      ValueError: there is only one group.
    """
    _, group_numbers = np.unique(np.array(groups), return_inverse=True)
    if group_numbers.max() == 0:
        raise ValueError("all faces are from one image")
    folds = group_numbers % _FOLDS
    predicted = np.empty(errors.shape)
    for fold in np.unique(folds):
        rows = folds != fold
        fitted = fit_uncertainty(
            errors[rows],
            confidence[rows],
            heatmap_std[rows],
            fitted_on={},
            weights=None if weights is None else weights[rows],
        )
        predicted[~rows] = fitted.predict(confidence[~rows], heatmap_std[~rows])
    return predicted


def fit_uncertainty(
    errors: PerLandmark,
    confidence: PerLandmark,
    heatmap_std: PerLandmark,
    fitted_on: Mapping[str, str],
    *,
    weights: Float[np.ndarray, "n"] | None = None,
) -> UncertaintyModel:
    """Fit an uncertainty model to faces with known errors.

    The weights of the score are those of a nonnegative least squares fit of the logarithm of the error,
    within each landmark. The values of the map are the mean errors of bins of the score, made nondecreasing
    by isotonic regression.

    Args:
      errors: in percent; NaN where a landmark is not annotated.
      weights: weight of each face, with a mean of 1; None for equal weights.

    Raises:
      ValueError: no error is known.
    """
    known = np.isfinite(errors)
    if not known.any():
        raise ValueError("no landmark with a known error")
    weight = np.where(known, 1.0 if weights is None else weights[:, None], 0.0)
    count = weight.sum(axis=0)
    inputs = score_inputs(confidence, heatmap_std)
    target = np.log(np.maximum(np.where(known, errors, 1.0), _MIN_ERROR))

    def within_landmark(values):
        total = np.where(known[..., None], values * weight[..., None], 0.0).sum(axis=0)
        mean = total / np.where(count > 0, count, 1.0)[:, None]
        return ((values - mean) * np.sqrt(weight)[..., None])[known]

    score_weights, _ = optimize.nnls(
        within_landmark(inputs), within_landmark(target[..., None])[:, 0]
    )
    scores = inputs @ score_weights
    residuals = np.where(known, weight * (target - scores), 0.0)
    mean_residual = residuals.sum() / count.sum()
    offsets = (residuals.sum(axis=0) + _PRIOR * mean_residual) / (count + _PRIOR)
    knots, values = _monotone_map((scores + offsets)[known], errors[known], weight[known])
    peak_weight, std_weight = score_weights.tolist()
    return UncertaintyModel(peak_weight, std_weight, offsets, knots, values, dict(fitted_on))


def _monotone_map(
    score: Float[np.ndarray, "n"], errors: Float[np.ndarray, "n"], weight: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Mean scores of bins of the score, increasing, and nondecreasing mean errors."""
    order = np.argsort(score, kind="stable")
    ends = [0]
    for end in np.round(np.array(_BIN_ENDS) * len(order)).astype(int).tolist():
        if end - ends[-1] >= _MIN_BIN_SIZE:
            ends.append(end)
    ends = [*ends[: max(1, len(ends) - 1)], len(order)]
    starts = ends[:-1]
    sizes = np.add.reduceat(weight[order], starts)
    knots, means = (np.add.reduceat((v * weight)[order], starts) / sizes for v in (score, errors))
    values = optimize.isotonic_regression(means, weights=sizes).x
    # Bins with the same score, of faces with equal heatmaps, become one knot.
    knots, first = np.unique(knots, return_index=True)
    return knots, values[first]

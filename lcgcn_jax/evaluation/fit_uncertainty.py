"""Fits the map from heatmaps to predicted errors on the faces of a split, plain and damaged."""

from typing import Any

import numpy as np

from lcgcn_jax.data.augment import CORRUPTIONS
from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.evaluator import Predict, split_errors
from lcgcn_jax.uncertainty import UncertaintyModel, assess, cross_validate, fit_uncertainty


def calibrate(
    predict: Predict, dataset: FaceDataset, split: str, *, image_size: int, batch_size: int
) -> tuple[UncertaintyModel, dict[str, dict[str, Any]]]:
    """Fits a calibration to a model.

    Every face counts once as it is, and once under each damage of `CORRUPTIONS`: good faces alone hold
    few large errors, and the map can say no larger ones than it has seen.

    Args:
      predict: the model.
      dataset: the data.
      split: faces that the model was not trained on.
      image_size: side of the crops.
      batch_size: faces in a batch.

    Returns:
      The calibration, fitted on all of them; and, by the name of the damage, what `calibration.assess`
      says of maps that were fitted without the face's image (`calibration.cross_validate`).

    Raises:
      InputError: there is no such split, or not one face of it can be measured, or all are of one image.
    """
    found = [
        split_errors(
            predict,
            dataset,
            split,
            image_size=image_size,
            batch_size=batch_size,
            corruption=corruption,
        )
        for corruption in CORRUPTIONS
    ]
    errors = np.concatenate([100 * f.landmarks for f in found])
    confidence = np.concatenate([f.confidence for f in found])
    heatmap_std = np.concatenate([f.heatmap_std for f in found])
    groups = [record["group"] for record in dataset.source(split)] * len(found)
    fitted_on = {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "split": split}
    try:
        expected = cross_validate(errors, confidence, heatmap_std, groups)
    except ValueError as error:
        raise InputError(f"{dataset.path}: {split}: {error}; give another --split") from error
    parts = {
        name: [np.array_split(values, len(found))[i] for values in (errors, expected, confidence)]
        for i, name in enumerate(CORRUPTIONS)
    }
    return (
        fit_uncertainty(errors, confidence, heatmap_std, fitted_on),
        {name: assess(*columns) for name, columns in parts.items()},
    )

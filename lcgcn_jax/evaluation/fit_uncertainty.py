"""Fits the map from heatmaps to predicted errors on the faces of some datasets, plain and damaged."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lcgcn_jax.data.corruptions import CORRUPTIONS
from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.evaluator import Predict, SplitErrors, split_errors, subset_masks
from lcgcn_jax.uncertainty import UncertaintyModel, assess, cross_validate, fit_uncertainty


@dataclasses.dataclass(frozen=True)
class CalibrationFit:
    """A fitted calibration and the quality of cross-validated ones.

    Attributes:
      calibration: fitted on all faces.
      figures: for each dataset, by the name of the damage, what `calibration.assess` says of maps that were
        fitted without the face's image (`calibration.cross_validate`).
      subsets: for each dataset the same of each of its subsets, such as poses, undamaged, with the number of
        its faces, `num_faces`.
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
    """Fits a calibration to a model.

    Every face counts once as it is, and once under each damage of `CORRUPTIONS`: good faces alone hold
    few large errors, and the map can say no larger ones than it has seen. For the same reason some of the
    datasets should be of hard faces, such as profiles. Each dataset counts the same. Landmarks without an
    annotation do not count; faces without a normalizing distance do (`SplitErrors.percent_errors`).

    Args:
      predict: the model.
      datasets: the data, each with its annotation offsets removed if it has any.
      split: faces that the model was not trained on, of all datasets.
      image_size: side of the crops.
      batch_size: faces in a batch.

    Raises:
      InputError: there is no such split, or not one face of it can be measured, or all are of one image.
    """
    parts: list[tuple[int, str]] = []  # a dataset's number and a damage
    found: list[SplitErrors] = []
    groups: list[str] = []
    for number, dataset in enumerate(datasets):
        of_faces = [record["group"] for record in dataset.source(split, with_images=False)]
        for corruption in CORRUPTIONS:
            parts.append((number, corruption))
            groups += of_faces
            found.append(
                split_errors(
                    predict,
                    dataset,
                    split,
                    image_size=image_size,
                    batch_size=batch_size,
                    corruption=corruption,
                )
            )
    errors = np.concatenate([f.percent_errors() for f in found])
    confidence = np.concatenate([f.confidence for f in found])
    heatmap_std = np.concatenate([f.heatmap_std for f in found])
    # A large dataset of easy faces would else outweigh a small one of hard faces.
    weights = _equal_weights([number for number, _ in parts], found)
    try:
        expected = cross_validate(errors, confidence, heatmap_std, groups, weights=weights)
    except ValueError as error:
        paths = ", ".join(str(dataset.path) for dataset in datasets)
        raise InputError(f"{paths}: {split}: {error}; give another --split") from error
    ends = np.cumsum([len(f.measured) for f in found])[:-1]
    columns = zip(
        *(np.split(values, ends) for values in (errors, expected, confidence)), strict=True
    )
    by_part = dict(zip(parts, columns, strict=True))
    return CalibrationFit(
        fit_uncertainty(
            errors, confidence, heatmap_std, _fitted_on(datasets, split), weights=weights
        ),
        [
            {name: assess(*by_part[number, name]) for name in CORRUPTIONS}
            for number in range(len(datasets))
        ],
        [
            _assess_subsets(dataset, split, by_part[number, "none"])
            for number, dataset in enumerate(datasets)
        ],
    )


def _assess_subsets(
    dataset: FaceDataset, split: str, columns: tuple[np.ndarray, ...]
) -> dict[str, dict[str, Any]]:
    """What `calibration.assess` says of each subset that has a known error."""
    return {
        name: {"num_faces": int(faces.sum()), **assess(*(values[faces] for values in columns))}
        for name, faces in subset_masks(dataset, split).items()
        if np.isfinite(columns[0][faces]).any()
    }


def _equal_weights(numbers: Sequence[int], found: Sequence[SplitErrors]) -> np.ndarray | None:
    """Weights of the faces with which all datasets count the same; None for one dataset."""
    owner = np.repeat(numbers, [len(f.measured) for f in found])
    sizes = np.bincount(owner)
    return None if len(sizes) == 1 else (len(owner) / len(sizes) / sizes)[owner]


def _fitted_on(datasets: Sequence[FaceDataset], split: str) -> dict[str, str]:
    fitted_on = {
        "dataset": "+".join(dataset.name for dataset in datasets),
        "fingerprint": "+".join(dataset.fingerprint for dataset in datasets),
        "split": split,
    }
    if any(dataset.offsets is not None for dataset in datasets):
        digests = ("" if d.offsets is None else d.offsets.digest for d in datasets)
        fitted_on["offsets"] = "+".join(digests)
    return fitted_on

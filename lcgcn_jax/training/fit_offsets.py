"""Fit of the annotation offsets of a dataset relative to a model of another annotation style."""

import collections
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from lcgcn_jax.data.annotation_offsets import (
    AnnotationOffsets,
    has_mirror_pairs,
    mean_face,
    min_located,
    mirrored,
    similarity_factor,
    to_complex,
    to_pairs,
)
from lcgcn_jax.data.dataset import FaceDataset, require_scheme
from lcgcn_jax.data.pipeline import eval_batches
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.predictions import Predict, with_flip_test
from lcgcn_jax.geometry import transform_points
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.tables import format_table

ALL = "all"
"""Name of all faces together, in reports."""

Residuals = Float[np.ndarray, "n k 2"]

_MIN_COMPLETE = 10  # faces with all landmarks to compute the mean face from
_SIGNIFICANT = 3.0  # standard errors
# Standard error of a median, from the median absolute deviation of normally distributed values.
_MEDIAN_ERROR = 1.2533 * 1.4826


@dataclasses.dataclass(frozen=True)
class GroupFit:
    """Fit of the offsets of one group of faces; lengths in percent of the outer eye distance.

    Attributes:
      name: attribute of the faces, or `ALL`.
      num_faces: number of faces, without mirror images of other groups.
      before: mean distance of the annotated from the predicted landmarks.
      after: mean distance after removing the offsets.
      num_fitted: landmarks with an offset that was fitted to this group.
      fallback: source of the offsets of the other landmarks, for messages; empty if there are none.
    """

    name: str
    num_faces: int
    before: float
    after: float
    num_fitted: int
    fallback: str


@dataclasses.dataclass(frozen=True)
class OffsetFit:
    """Fitted offsets and their quality.

    Attributes:
      flip_bias: horizontal bias relative to mirror images, a part of the offsets, in percent of the outer eye
        distance; 0 if it was not significant.
      flip_bias_error: standard error of the bias.
      groups: fit of each group, the largest first, then of all faces.
    """

    offsets: AnnotationOffsets
    flip_bias: float
    flip_bias_error: float
    groups: list[GroupFit]

    def __str__(self) -> str:
        rows = [["", "faces", "before", "after", "fitted landmarks"]]
        for group in self.groups:
            fallback = f", others {group.fallback}" if group.fallback else ""
            fitted = f"{group.num_fitted} of {len(self.offsets.mean_face)}{fallback}"
            errors = (f"{group.before:.2f}", f"{group.after:.2f}")
            rows.append([group.name, str(group.num_faces), *errors, fitted])
        note = "" if self.flip_bias else ", not significant"
        return (
            "mean distance from the predictions on training faces, in % of the outer eye distance\n"
            f"{format_table(rows)}\n"
            f"constant in x that mirror images do not share: {self.flip_bias:.2f} (standard error "
            f"{self.flip_bias_error:.2f}{note})"
        )


def fit_offsets_to_model(
    model: LandmarkModel, dataset: FaceDataset, *, flip_test: bool, **settings: Any
) -> OffsetFit:
    """Fit the offsets of a dataset relative to a model; `settings` are those of `fit_annotation_offsets`.

    Raises:
      InputError: as in `fit_annotation_offsets`, or the model has another landmark scheme.
    """
    require_scheme(dataset, model.scheme)
    predict = model.predict_crops
    if flip_test:
        predict = with_flip_test(predict, model.scheme, model.flip_bias)
    return fit_annotation_offsets(predict, dataset, image_size=model.image_size, **settings)


def fit_annotation_offsets(
    predict: Predict,
    dataset: FaceDataset,
    *,
    image_size: int,
    batch_size: int,
    min_count: int = 30,
    max_ratio: float = 1.5,
) -> OffsetFit:
    """Fit the offsets of a dataset on its training faces; see `fit_offsets`.

    Args:
      predict: model of the annotation style to correct to, not trained on this dataset.
      dataset: dataset. Its attributes are groups, such as poses, if every training face has exactly one.
      image_size: side of the crops in pixels.
      batch_size: faces in a batch.
      min_count: as in `fit_offsets`.
      max_ratio: as in `fit_offsets`.

    Raises:
      InputError: the train split does not exist, or has too few usable faces.
    """
    columns = collections.defaultdict(list)
    for batch in eval_batches(dataset, "train", image_size=image_size, batch_size=batch_size):
        in_crop = np.asarray(predict(batch["image"]).landmarks, np.float64)
        pairs = zip(batch["crop_to_source"], in_crop, strict=True)
        batch["predicted"] = np.stack(
            [transform_points(affine, points) for affine, points in pairs]
        )
        for name in ("source_landmarks", "predicted", "visible", "attributes"):
            columns[name].append(batch[name][batch["mask"]])
    annotated, predicted, located, attributes = (np.concatenate(c) for c in columns.values())
    groups = [""] * len(annotated)
    if attributes.shape[1] and (attributes.sum(axis=1) == 1).all():
        groups = [dataset.attribute_names[i] for i in attributes.argmax(axis=1)]
    try:
        return fit_offsets(
            annotated,
            predicted,
            located,
            groups,
            dataset.scheme,
            min_count=min_count,
            max_ratio=max_ratio,
            provenance={
                "dataset": dataset.name,
                "fingerprint": dataset.fingerprint,
                "split": "train",
            },
        )
    except ValueError as error:
        raise InputError(
            f"{dataset.path}: cannot fit offsets: {error}; use data with more training faces, or a "
            "lower --min-count"
        ) from error


def fit_offsets(
    annotated: Residuals,
    predicted: Residuals,
    located: Bool[np.ndarray, "n k"],
    groups: Sequence[str],
    scheme: LandmarkScheme,
    *,
    min_count: int = 30,
    max_ratio: float = 1.5,
    provenance: Mapping[str, Any] | None = None,
) -> OffsetFit:
    """Fit the offsets between annotated and predicted landmarks.

    The offset of a landmark is the median over the faces of its group and the mirror images of the faces of
    the mirrored group (`right` for `left`), so mirrored groups have mirrored offsets. The horizontal bias
    relative to mirror images is added to it if it exceeds three standard errors.

    A landmark with fewer than `min_count` faces gets the offset of the main group: the largest group that is
    its own mirror image, or all faces. A group in which the distances vary more than `max_ratio` times as
    much as in the main group gets a constant offset, the main group's median: the model fails on these faces,
    and its errors are not an annotation style.

    Args:
      annotated: landmarks in image pixels; may be NaN where not located.
      predicted: landmarks of the model in the same pixels.
      groups: group of each face; "" for none.
      min_count: smallest number of located landmarks, mirror images included, to fit an offset to.
      provenance: data and model of the fit, stored with the offsets (`AnnotationOffsets`).

    Raises:
      ValueError: fewer than `min_count` faces have enough located landmarks.
    """
    min_landmarks = min_located(scheme.num_landmarks)
    usable = located.sum(axis=1) >= min_landmarks
    if usable.sum() < min_count:
        raise ValueError(
            f"{usable.sum()} training faces with at least {min_landmarks} located landmarks, fewer than "
            f"{min_count}"
        )
    annotated, predicted, located = annotated[usable], predicted[usable], located[usable]
    face_groups = np.array(groups, object)[usable]
    is_complete = located.all(axis=1)
    shapes = np.where(located[..., None], annotated, predicted)
    frame = mean_face(shapes[is_complete] if is_complete.sum() >= _MIN_COMPLETE else shapes, scheme)
    residuals = _residuals(annotated, predicted, located, frame)

    names = sorted(set(face_groups) - {""}, key=lambda name: (-(face_groups == name).sum(), name))
    partners = {name: _mirrored_name(name, names) for name in names} | {"": ""}
    by_group = {name: residuals[face_groups == name] for name in names} | {"": residuals}
    bias, bias_error = 0.0, 0.0
    if has_mirror_pairs(scheme):
        bias, bias_error = _flip_bias(by_group, partners, scheme)
    shift = np.array([bias, 0.0])
    statistics = {
        name: _group_statistics(
            rows, by_group[partners[name]], shift, scheme, name == partners[name]
        )
        for name, rows in by_group.items()
    }
    medians = {name: s.medians for name, s in statistics.items()}
    is_fitted = {name: s.counts >= min_count for name, s in statistics.items()}
    main = next((name for name in names if partners[name] == name), "")
    if not is_fitted[main].any():
        main = ""
    constant = np.zeros(2)
    if is_fitted[main].any():
        constant[1] = _median(medians[main][is_fitted[main], 1])
    base = np.where(is_fitted[main][:, None], medians[main], constant)
    offsets, reports = {}, []
    for name in names:
        fails = statistics[name].deviation > max_ratio * statistics[main].deviation
        is_own = is_fitted[name] & (not fails)
        other, fallback = base, f"of {main or ALL}"
        if fails or name == main:
            other, fallback = constant, "constant"
        offsets[name] = np.where(is_own[:, None], medians[name], other) + shift
        reports.append(_report(name, by_group[name], offsets[name], is_own, fallback))
    default = base + shift
    face_offsets = np.stack([offsets.get(name, default) for name in face_groups])
    reports.append(_report(ALL, residuals, face_offsets, is_fitted[main], "constant"))
    return OffsetFit(
        AnnotationOffsets(scheme.name, frame, default, offsets, dict(provenance or {})),
        100 * bias,
        100 * bias_error,
        reports,
    )


class _Statistics(NamedTuple):
    """Residuals of a group, pooled with the mirror images of its mirrored group."""

    medians: Float[np.ndarray, "k 2"]
    counts: Int[np.ndarray, "k"]
    deviation: float


def _group_statistics(
    rows: Residuals,
    partner: Residuals,
    shift: Float[np.ndarray, "2"],
    scheme: LandmarkScheme,
    is_own_mirror: bool,
) -> _Statistics:
    pooled = rows - shift
    if has_mirror_pairs(scheme):
        pooled = np.concatenate([pooled, mirrored(partner - shift, scheme)])
    counted = rows if is_own_mirror else pooled
    medians = _median(pooled)
    deviation = float(_median(np.linalg.norm(pooled - medians, axis=-1).ravel()))
    return _Statistics(medians, np.isfinite(counted[..., 0]).sum(axis=0), deviation)


def _residuals(
    annotated: Residuals,
    predicted: Residuals,
    located: Bool[np.ndarray, "n k"],
    frame: Float[np.ndarray, "k 2"],
) -> Residuals:
    """Annotated minus predicted landmarks in the canonical frame; NaN where not located."""
    factors = [similarity_factor(frame, *face) for face in zip(annotated, located, strict=True)]
    residuals = to_pairs(to_complex(annotated - predicted) / np.array(factors)[:, None])
    return np.where(located[..., None], residuals, np.nan)


def _flip_bias(
    by_group: Mapping[str, Residuals], partners: Mapping[str, str], scheme: LandmarkScheme
) -> tuple[float, float]:
    """Horizontal bias relative to mirror images, 0 if not significant, and its standard error.

    In the mean over a group and its mirrored group, everything that mirror images share cancels.
    """
    estimates, errors = [], []
    for name in [name for name in partners if name] or [""]:
        partner = partners[name]
        if partner not in by_group or partner < name:
            continue
        medians = []
        for group in dict.fromkeys((name, partner)):
            x = by_group[group][..., 0]
            # Only pairs with both landmarks located cancel.
            x = np.where(np.isfinite(x[:, list(scheme.mirror)]), x, np.nan)
            values = _median(x.T)
            medians.append(values[np.isfinite(values)])
        if min(map(len, medians)) < 2:
            continue
        estimates.append(np.mean([np.median(values) for values in medians]))
        variances = [
            (_MEDIAN_ERROR * np.median(abs(values - np.median(values)))) ** 2 / len(values)
            for values in medians
        ]
        errors.append(np.sqrt(np.sum(variances)) / len(variances))
    if not estimates:
        return 0.0, 0.0
    weights = 1 / np.maximum(errors, 1e-9) ** 2
    bias, error = float(np.average(estimates, weights=weights)), float(weights.sum() ** -0.5)
    return (bias if abs(bias) > _SIGNIFICANT * error else 0.0), error


def _median(values: Float[np.ndarray, "n *d"]) -> Float[np.ndarray, "*d"]:
    """Median over the first axis without NaN; NaN if all values are NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # slices of only NaN
        return np.asarray(np.nanmedian(values, axis=0))


def _mirrored_name(name: str, names: Sequence[str]) -> str:
    """Group of the mirrored faces: the name with `left` and `right` swapped, if that group exists."""
    swapped = name.replace("left", "\0").replace("right", "left").replace("\0", "right")
    return swapped if swapped in names else name


def _report(
    name: str,
    residuals: Residuals,
    offsets: Float[np.ndarray, "*n k 2"],
    is_fitted: Bool[np.ndarray, "k"],
    fallback: str,
) -> GroupFit:
    before, after = (
        100 * float(np.nanmean(np.linalg.norm(values, axis=-1)))
        for values in (residuals, residuals - offsets)
    )
    fallback = "" if is_fitted.all() else fallback
    return GroupFit(name, len(residuals), before, after, int(is_fitted.sum()), fallback)

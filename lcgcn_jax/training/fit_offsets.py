"""Fit of the annotation offsets of a data set to a model of another annotation style."""

import collections
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

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
from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.data.pipeline import eval_batches
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.evaluator import Predict
from lcgcn_jax.geometry import transform_points
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.tables import format_table

ALL = "all"
"""Name, in reports, of all faces together."""

Residuals = Float[np.ndarray, "n k 2"]

_MIN_COMPLETE = 10  # faces with all landmarks from which the mean face is made
_SIGNIFICANT = 3.0  # standard errors
# Standard error of a median, from the median absolute deviation of normally distributed values.
_MEDIAN_ERROR = 1.2533 * 1.4826


@dataclasses.dataclass(frozen=True)
class GroupFit:
    """Fit of the offsets of one group of faces; lengths in percent of the outer eye distance.

    Attributes:
      name: the attribute of the faces, or `ALL`.
      num_faces: its faces, without mirror images of other groups.
      before: mean distance of the annotated from the predicted landmarks.
      after: the same once the offsets are removed.
      num_fitted: landmarks with an offset that was fitted to this group.
      fallback: which offsets the other landmarks have, in words; empty if there are none.
    """

    name: str
    num_faces: int
    before: float
    after: float
    num_fitted: int
    fallback: str


@dataclasses.dataclass(frozen=True)
class OffsetFit:
    """Fitted offsets, and how well they fit.

    Attributes:
      offsets: the offsets.
      lean: the part of them that is a constant in x and that mirror images do not share, in percent of
        the outer eye distance; 0 where it was not significant.
      lean_error: standard error of that constant.
      groups: the fit of each group, the largest first, and last of all faces.
    """

    offsets: AnnotationOffsets
    lean: float
    lean_error: float
    groups: list[GroupFit]

    def __str__(self) -> str:
        rows = [["", "faces", "before", "after", "fitted landmarks"]]
        for group in self.groups:
            fallback = f", others {group.fallback}" if group.fallback else ""
            fitted = f"{group.num_fitted} of {len(self.offsets.mean_face)}{fallback}"
            errors = (f"{group.before:.2f}", f"{group.after:.2f}")
            rows.append([group.name, str(group.num_faces), *errors, fitted])
        note = "" if self.lean else ", not significant"
        return (
            "mean distance from the predictions on training faces, in % of the outer eye distance\n"
            f"{format_table(rows)}\n"
            f"constant in x that mirror images do not share: {self.lean:.2f} (standard error "
            f"{self.lean_error:.2f}{note})"
        )


def fit_annotation_offsets(
    predict: Predict,
    dataset: FaceDataset,
    *,
    image_size: int,
    batch_size: int,
    min_count: int = 30,
    max_spread: float = 1.5,
) -> OffsetFit:
    """Fit the offsets of a data set on its training faces; see `fit_offsets`.

    Args:
      predict: a model of the annotation style that the offsets lead to, not trained on this data set.
      dataset: the data set. Its attributes are groups, such as poses, where every training face has
        exactly one of them.
      image_size: side of the crops.
      batch_size: faces in a batch.
      min_count: see `fit_offsets`.
      max_spread: see `fit_offsets`.

    Raises:
      InputError: there is no train split, or too few of its faces can be used.
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
            max_spread=max_spread,
            about={"dataset": dataset.name, "fingerprint": dataset.fingerprint, "split": "train"},
        )
    except ValueError as error:
        raise InputError(
            f"{dataset.path}: cannot fit offsets: {error}; give data with more training faces, or a "
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
    max_spread: float = 1.5,
    about: Mapping[str, Any] | None = None,
) -> OffsetFit:
    """Fit the offsets between annotated and predicted landmarks.

    The offset of a landmark is the median over the faces of its group and over the mirror images of the
    faces of the mirrored group (`right` for `left`), so mirrored groups have mirrored offsets. Added to it
    is the lean, a constant in x that mirror images do not share, where it is over three standard errors.

    A landmark with fewer than `min_count` faces has the offset of the main group: the largest one that is
    its own mirror image, or all faces together. A group in which the distances scatter more than
    `max_spread` times as far as in the main group has a constant offset, the main group's median: the model
    fails on these faces, and its errors are not an annotation style.

    Args:
      annotated: landmarks in image pixels; others than the located ones may be NaN.
      predicted: landmarks of the model in the same pixels.
      located: which landmarks are annotated.
      groups: the group of each face; "" for none.
      scheme: what the landmarks are.
      min_count: located landmarks, mirror images included, that an offset is fitted to at least.
      max_spread: see above.
      about: see `AnnotationOffsets`.

    Raises:
      ValueError: fewer than `min_count` faces have enough located landmarks.
    """
    needed = min_located(scheme.num_landmarks)
    used = located.sum(axis=1) >= needed
    if used.sum() < min_count:
        raise ValueError(
            f"{used.sum()} training faces with at least {needed} located landmarks, fewer than {min_count}"
        )
    annotated, predicted, located = annotated[used], predicted[used], located[used]
    owner = np.array(groups, object)[used]
    is_complete = located.all(axis=1)
    shapes = np.where(located[..., None], annotated, predicted)
    frame = mean_face(shapes[is_complete] if is_complete.sum() >= _MIN_COMPLETE else shapes, scheme)
    residuals = _residuals(annotated, predicted, located, frame)

    names = sorted(
        {name for name in owner if name}, key=lambda name: (-(owner == name).sum(), name)
    )
    partners = {name: _mirrored_name(name, names) for name in names}
    parts = {name: residuals[owner == name] for name in names} | {"": residuals}
    partners[""] = ""
    lean, lean_error = 0.0, 0.0
    if has_mirror_pairs(scheme):
        lean, lean_error = _lean(parts, partners, scheme)
    lean_vector = np.array([lean, 0.0])
    medians, counts, spreads = {}, {}, {}
    for name, rows in parts.items():
        pooled = rows - lean_vector
        if has_mirror_pairs(scheme):
            pooled = np.concatenate([pooled, mirrored(parts[partners[name]] - lean_vector, scheme)])
        own = rows if partners[name] == name else pooled
        counts[name] = np.isfinite(own[..., 0]).sum(axis=0)
        medians[name] = _median(pooled)
        spreads[name] = float(_median(np.linalg.norm(pooled - medians[name], axis=-1).ravel()))

    main = next((name for name in names if partners[name] == name), "")
    is_fitted = {name: count >= min_count for name, count in counts.items()}
    if not is_fitted[main].any():
        main = ""
    constant = (
        np.array([0.0, _median(medians[main][is_fitted[main], 1])])
        if is_fitted[main].any()
        else np.zeros(2)
    )
    base = np.where(is_fitted[main][:, None], medians[main], constant)
    offsets, reports = {"": base + lean_vector}, []
    for name in names:
        fails = spreads[name] > max_spread * spreads[main]
        own = is_fitted[name] & (not fails)
        other, fallback = base, f"of {main or ALL}"
        if fails or name == main:
            other, fallback = constant, "constant"
        offsets[name] = np.where(own[:, None], medians[name], other) + lean_vector
        reports.append(_report(name, parts[name], offsets[name], own, fallback))
    of_faces = np.stack([offsets[name] for name in owner])
    reports.append(_report(ALL, residuals, of_faces, is_fitted[main], "constant"))
    default = offsets.pop("")
    return OffsetFit(
        AnnotationOffsets(scheme.name, frame, default, offsets, dict(about or {})),
        100 * lean,
        100 * lean_error,
        reports,
    )


def _residuals(
    annotated: Residuals,
    predicted: Residuals,
    located: Bool[np.ndarray, "n k"],
    frame: Float[np.ndarray, "k 2"],
) -> Residuals:
    """Annotated minus predicted landmarks in the canonical frame; NaN where not located."""
    factors = [similarity_factor(frame, *face) for face in zip(annotated, located, strict=True)]
    found = to_pairs(to_complex(annotated - predicted) / np.array(factors)[:, None])
    return np.where(located[..., None], found, np.nan)


def _lean(
    parts: Mapping[str, Residuals],
    partners: Mapping[str, str],
    scheme: LandmarkScheme,
) -> tuple[float, float]:
    """The constant in x that mirror images do not share, 0 if not significant, and its standard error.

    In the mean over a group and its mirrored group, all that mirror images share cancels.
    """
    estimates, errors = [], []
    names = [name for name in partners if name] or [""]
    for name in names:
        partner = partners[name]
        if partner not in parts or partner < name:
            continue
        medians = []
        for rows in dict.fromkeys((name, partner)):
            x = parts[rows][..., 0]
            # Only pairs of which both are located cancel.
            x = np.where(np.isfinite(x[:, list(scheme.mirror)]), x, np.nan)
            medians.append(_median(x.T))
        medians = [values[np.isfinite(values)] for values in medians]
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
    lean, error = float(np.average(estimates, weights=weights)), float(weights.sum() ** -0.5)
    return (lean if abs(lean) > _SIGNIFICANT * error else 0.0), error


def _median(values: Float[np.ndarray, "n *d"]) -> Float[np.ndarray, "*d"]:
    """Median over the first axis without NaN; NaN where all are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of slices of NaN only
        return np.asarray(np.nanmedian(values, axis=0))


def _mirrored_name(name: str, names: Sequence[str]) -> str:
    """The group of mirrored faces: `left` and `right` in a name exchanged, if there is such a group."""
    exchanged = name.replace("left", "\0").replace("right", "left").replace("\0", "right")
    return exchanged if exchanged in names else name


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
    return GroupFit(
        name,
        len(residuals),
        before,
        after,
        int(is_fitted.sum()),
        "" if is_fitted.all() else fallback,
    )

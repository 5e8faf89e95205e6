"""Metrics of landmark errors (NME, failure rate, AUC), of visibility and of predicted errors.

The error of a face is the mean distance of its annotated landmarks from the truth, divided by the
normalizing distance of its scheme; 0.04 is 4 %.
"""

# SciPy has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

THRESHOLD = 0.1
"""Error above which a face counts as a failure, and upper limit of the AUC."""

_RELIABILITY_BINS = 10

Errors = Float[np.ndarray, "n"]
PerLandmark = Float[np.ndarray, "*b k"]


def face_errors(
    predicted: Float[np.ndarray, "n k 2"],
    true: Float[np.ndarray, "n k 2"],
    visible: Bool[np.ndarray, "n k"],
    distance: Errors,
) -> Errors:
    """Normalized mean error of each face, as a fraction of its normalizing distance.

    Args:
      predicted: predicted landmarks, in pixels.
      true: annotated landmarks, in pixels of the same image.
      visible: which landmarks are annotated; the coordinates of the others may be NaN.
      distance: normalizing distance of each face in pixels (`LandmarkScheme.normalizing_distance`).

    Raises:
      ValueError: a face has no annotated landmark, or a distance is not positive.
    """
    if not visible.any(axis=1).all():
        raise ValueError("a face has no annotated landmark")
    if not (distance > 0).all():
        raise ValueError("a normalizing distance is not positive")
    distances = np.linalg.norm(predicted.astype(np.float64) - true, axis=-1)
    return np.where(visible, distances, 0.0).sum(axis=1) / visible.sum(axis=1) / distance


def error_metrics(errors: Errors) -> dict[str, Any]:
    """NME with its confidence interval, failure rate and AUC of a set of faces.

    The AUC is the mean of max(0, 1 - error / THRESHOLD). This is the exact area under the cumulative
    distribution of the errors from 0 to THRESHOLD, divided by THRESHOLD.

    Returns:
      `nme`, `nme_ci95` and `fr10` in percent, and `auc10` in 0..1; NaN for an empty set.
    """
    count = len(errors)
    if count == 0:
        return {"nme": np.nan, "nme_ci95": [np.nan, np.nan], "fr10": np.nan, "auc10": np.nan}
    low, high = bootstrap_interval(errors)
    return {
        "nme": 100.0 * float(errors.sum()) / count,
        "nme_ci95": [100 * low, 100 * high],
        "fr10": 100.0 * int((errors > THRESHOLD).sum()) / count,
        "auc10": float(np.maximum(0.0, 1.0 - errors / THRESHOLD).sum()) / count,
    }


def bootstrap_interval(
    values: Errors, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, in the unit of the values.

    For a paired comparison of two systems, pass the differences of their errors on each face.
    """
    if len(values) < 2:  # scipy needs two values
        mean = float(values[0]) if len(values) else np.nan
        return mean, mean
    from scipy import stats  # takes a second to import

    interval: Any = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=200,  # limits the memory
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def roc_auc_and_average_precision(
    scores: Errors, positive: Bool[np.ndarray, "n"]
) -> tuple[float, float] | tuple[None, None]:
    """Areas under the ROC curve and, without interpolation, under the precision-recall curve.

    The first is the probability that a positive scores higher than a negative, where ties count one half.
    The second is the sum over thresholds of the precision times the increase in recall. Equal scores are
    one threshold, so their order does not matter.

    Args:
      scores: higher where a positive is more likely.

    Returns:
      Both areas in 0..1; None if there are only positives or only negatives.
    """
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return None, None
    order = np.argsort(-scores, kind="stable")
    is_threshold = np.append(np.diff(scores[order]) != 0, True)
    true_positives = np.cumsum(positive[order])[is_threshold]
    false_positives = np.flatnonzero(is_threshold) + 1 - true_positives
    area = np.trapezoid(np.append(0, true_positives), np.append(0, false_positives))
    precision = true_positives / (true_positives + false_positives)
    precision_sum = (precision * np.diff(true_positives, prepend=0)).sum()
    return float(area / num_positive / num_negative), float(precision_sum / num_positive)


def sparsification_error(errors: Errors, uncertainty: Errors) -> float:
    """Area between the sparsification curve and that of the oracle, over the mean error (AUSE).

    From Ilg et al. 2018. The curve is the mean error of the remaining landmarks after a fraction of them,
    the most uncertain first, is removed. The oracle removes the largest errors first. 0 means as good as
    the oracle.

    Args:
      uncertainty: in any unit. Landmarks of equal uncertainty count with their mean error.
    """
    count = np.arange(1, len(errors) + 1)
    _, group, sizes = np.unique(uncertainty, return_inverse=True, return_counts=True)
    group_means = np.bincount(group, errors) / sizes
    curve = np.cumsum(np.repeat(group_means, sizes)) / count
    oracle = np.cumsum(np.sort(errors)) / count
    return float((curve - oracle).mean() / errors.mean())


def uncertainty_metrics(
    errors: PerLandmark, predicted: PerLandmark, confidence: PerLandmark
) -> dict[str, Any]:
    """Quality of predicted errors.

    Args:
      errors: measured errors, in percent; NaN where unknown.
      predicted: predicted errors, in percent.
      confidence: heatmap peaks, for comparison.

    Returns:
      - `num_landmarks`;
      - `expected_error` and `measured_error`: means of the predicted and measured errors, in percent;
      - `calibration_error`: mean absolute difference of the two over the bins, in percent;
      - `ause`: `sparsification_error`;
      - `ause_confidence`, `ause_random`: that of the heatmap peak and of a constant uncertainty;
      - `reliability`: bins of equal size by predicted error, in ascending order, each with
        `num_landmarks`, `expected_error` and `measured_error`.

    Raises:
      ValueError: no error is known.
    """
    known = np.isfinite(errors)
    if not known.any():
        raise ValueError("no landmark with a known error")
    errors, predicted, confidence = errors[known], predicted[known], confidence[known]
    order = np.argsort(predicted, kind="stable")
    bins = [
        {
            "num_landmarks": len(rows),
            "expected_error": float(predicted[rows].mean()),
            "measured_error": float(errors[rows].mean()),
        }
        for rows in np.array_split(order, min(_RELIABILITY_BINS, len(order)))
    ]
    differences = (
        abs(row["expected_error"] - row["measured_error"]) * row["num_landmarks"] for row in bins
    )
    return {
        "num_landmarks": len(errors),
        "expected_error": float(predicted.mean()),
        "measured_error": float(errors.mean()),
        "calibration_error": sum(differences) / len(errors),
        "ause": sparsification_error(errors, predicted),
        "ause_confidence": sparsification_error(errors, -confidence),
        "ause_random": sparsification_error(errors, np.zeros_like(errors)),
        "reliability": bins,
    }

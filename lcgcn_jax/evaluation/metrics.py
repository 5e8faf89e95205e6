"""NME, failure rate and AUC, as sums that can be merged, and a bootstrap interval.

Every figure starts from one error a face: the mean distance of its visible landmarks over the scheme's
normalizing distance, as a fraction (0.04 is 4 %).
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

THRESHOLD = 0.1
"""Error above which a face counts as failed, and up to which the AUC integrates."""

Errors = Float[np.ndarray, "n"]


def face_errors(
    predicted: Float[np.ndarray, "n k 2"],
    true: Float[np.ndarray, "n k 2"],
    visible: Bool[np.ndarray, "n k"],
    distance: Float[np.ndarray, "n"],
) -> Errors:
    """Normalised mean error of each face, as a fraction of its normalizing distance.

    Args:
      predicted: predicted landmarks, in pixels.
      true: annotated landmarks, in the same pixels.
      visible: which landmarks are annotated.
      distance: the normalizing distances in the same pixels (`LandmarkScheme.normalizing_distance`).

    Raises:
      ValueError: a face has no visible landmark, or a distance is not positive.
    """
    if not visible.any(axis=1).all():
        raise ValueError("a face without any visible landmark has no error")
    if not (distance > 0).all():
        raise ValueError("a normalizing distance is not positive")
    distances = np.linalg.norm(predicted.astype(np.float64) - true, axis=-1)
    # Coordinates of landmarks that are not annotated may be NaN.
    return np.where(visible, distances, 0.0).sum(axis=1) / visible.sum(axis=1) / distance


@dataclasses.dataclass(frozen=True)
class MetricState:
    """Sums over faces, from which the metrics follow; states of parts of a split add up.

    Attributes:
      error_sum: sum of the errors.
      failures: number of faces with an error above `THRESHOLD`.
      area_sum: sum of max(0, 1 - error / THRESHOLD): its mean is the exact area under the curve of the
        fraction of faces below an error, from 0 to THRESHOLD, over THRESHOLD.
      count: number of faces.
    """

    error_sum: float = 0.0
    failures: int = 0
    area_sum: float = 0.0
    count: int = 0

    @classmethod
    def from_errors(cls, errors: Errors) -> "MetricState":
        """The state of some faces."""
        return cls(
            error_sum=float(errors.sum()),
            failures=int((errors > THRESHOLD).sum()),
            area_sum=float(np.maximum(0.0, 1.0 - errors / THRESHOLD).sum()),
            count=len(errors),
        )

    def merge(self, other: "MetricState") -> "MetricState":
        """The state of the faces of both."""
        return MetricState(
            self.error_sum + other.error_sum,
            self.failures + other.failures,
            self.area_sum + other.area_sum,
            self.count + other.count,
        )

    def compute(self) -> dict[str, float]:
        """`nme` and `fr10` in percent, `auc10` in 0..1; NaN where there is no face."""
        if self.count == 0:
            return {"nme": np.nan, "fr10": np.nan, "auc10": np.nan}
        return {
            "nme": 100.0 * self.error_sum / self.count,
            "fr10": 100.0 * self.failures / self.count,
            "auc10": self.area_sum / self.count,
        }


def bootstrap_interval(
    values: Errors, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, in the unit of the values.

    For a paired comparison of two systems, give the differences of their errors, face by face.
    """
    if len(values) == 0:
        return (np.nan, np.nan)
    rng = np.random.default_rng(seed)
    # Counts of a multinomial draw, rather than the drawn faces, keep this at [resamples] rows at a time.
    means = np.empty(resamples)
    for start in range(0, resamples, 200):
        rows = slice(start, min(start + 200, resamples))
        picks = rng.integers(0, len(values), size=(rows.stop - rows.start, len(values)))
        means[rows] = values[picks].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def roc_auc(scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> float | None:
    """Area under the ROC curve: the probability that a positive scores higher than a negative.

    Ties count one half (the Mann-Whitney U statistic).

    Args:
      scores: higher for what is more likely positive.
      positive: the truth.

    Returns:
      The area in 0..1; None where positives or negatives are missing.
    """
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return None
    from scipy.stats import rankdata  # takes a second to import

    rank_sum = rankdata(scores)[positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / num_positive / num_negative)


def average_precision(
    scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]
) -> float | None:
    """Average precision: the sum over thresholds of the precision times the gain in recall.

    Equal scores are one threshold, so their order does not matter; there is no interpolation.

    Args:
      scores: higher for what is more likely positive.
      positive: the truth.

    Returns:
      The value in 0..1; None where positives or negatives are missing.
    """
    num_positive = int(positive.sum())
    if not 0 < num_positive < len(positive):
        return None
    order = np.argsort(-scores, kind="stable")
    is_last = np.append(np.diff(scores[order]) != 0, True)  # of its threshold
    hits = np.cumsum(positive[order])[is_last]
    precision = hits / (np.flatnonzero(is_last) + 1)
    return float((precision * np.diff(hits, prepend=0)).sum() / num_positive)

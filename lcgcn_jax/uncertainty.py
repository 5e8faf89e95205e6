"""How far off a landmark may be, from the peak and the spread of its heatmap: fitted, applied and judged.

The score of landmark k is

    s = a log(1 - peak + 0.001) + b log(spread) + c_k                a, b >= 0

with the weights that fit the log of the error best, and a constant for each landmark, for a jaw is told less
exactly than a corner of an eye. A nondecreasing, piecewise linear map then gives the predicted error: so it
never falls where the peak gets lower or the spread wider.

Errors here are in percent of the normalizing distance.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

PerLandmark = Float[np.ndarray, "*b k"]

FOLDS = 5

_PEAK_FLOOR = 1e-3  # added to 1 - peak
_STD_FLOOR = 1e-3  # of the map's side
_ERROR_FLOOR = 0.05  # %; the log of a lucky hit would say nothing else
_PRIOR = 20  # observations; how many of a landmark weigh as much as what all landmarks say
# Where the bins of the map end, as parts of the observations: fine where the errors are large.
_BIN_ENDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.9875, 0.99375, 1.0)
_BIN_SIZE = 30  # observations at least
_RELIABILITY_BINS = 10


@dataclasses.dataclass(frozen=True)
class UncertaintyModel:
    """The map from a heatmap's peak and spread to the predicted error of its landmark.

    Attributes:
      peak_weight: a, at least 0.
      std_weight: b, at least 0.
      offsets: c, one a landmark.
      scores: where the map has its knots, increasing; beyond them it is constant.
      errors: its values there, in percent, nondecreasing.
      fitted_on: what it was fitted on: `dataset`, its `fingerprint`, and `split`.

    Raises:
      ValueError: the map is not monotone, or something is not finite.
    """

    peak_weight: float
    std_weight: float
    offsets: Float[np.ndarray, "k"]
    scores: Float[np.ndarray, "m"]
    errors: Float[np.ndarray, "m"]
    fitted_on: Mapping[str, str]

    def __post_init__(self):
        arrays = (np.array([self.peak_weight, self.std_weight]), self.offsets, self.scores)
        if not all(np.isfinite(values).all() for values in (*arrays, self.errors)):
            raise ValueError("calibration: something is not finite")
        if min(self.peak_weight, self.std_weight) < 0:
            raise ValueError("calibration: a weight is negative")
        if not len(self.scores) or len(self.scores) != len(self.errors):
            raise ValueError("calibration: as many scores as errors are wanted, and one at least")
        if (np.diff(self.scores) <= 0).any() or (np.diff(self.errors) < 0).any():
            raise ValueError("calibration: the map is not monotone")

    def expected_error(self, confidence: PerLandmark, heatmap_std: PerLandmark) -> PerLandmark:
        """The predicted error of each landmark, in percent of the normalizing distance.

        Args:
          confidence: the heatmaps' peaks.
          heatmap_std: as `heatmaps.heatmap_std` gives it.
        """
        peak, width = _inputs(confidence, heatmap_std)
        score = self.peak_weight * peak + self.std_weight * width + self.offsets
        return np.interp(score, self.scores, self.errors)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON; `from_dict` reads it back."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "UncertaintyModel":
        """Builds a calibration from plain types.

        Raises:
          KeyError: a field is missing.
          TypeError: a field is of another type, or unknown.
          ValueError: as the class says.
        """
        arrays = {
            name: np.array(fields[name], np.float64) for name in ("offsets", "scores", "errors")
        }
        weights = {name: float(fields[name]) for name in ("peak_weight", "std_weight")}
        return cls(**{**fields, **arrays, **weights})


def _inputs(confidence: PerLandmark, heatmap_std: PerLandmark) -> tuple[PerLandmark, PerLandmark]:
    """The two logarithms of the score."""
    peak = np.log(1 - confidence.astype(np.float64).clip(0, 1) + _PEAK_FLOOR)
    return peak, np.log(np.maximum(heatmap_std.astype(np.float64), _STD_FLOOR))


def fit_uncertainty(
    errors: Float[np.ndarray, "n k"],
    confidence: Float[np.ndarray, "n k"],
    heatmap_std: Float[np.ndarray, "n k"],
    fitted_on: Mapping[str, str],
    *,
    weights: Float[np.ndarray, "n"] | None = None,
) -> UncertaintyModel:
    """Fits the map to faces whose errors are known.

    The weights are those of a least squares fit of the log of the error within each landmark, the map's
    values the mean errors of neighboring scores, pooled until they do not fall (isotonic regression by
    pool-adjacent-violators).

    Args:
      errors: in percent; NaN where a landmark is not annotated.
      confidence: the heatmaps' peaks.
      heatmap_std: as `heatmaps.heatmap_std` gives it.
      fitted_on: see `UncertaintyModel`.
      weights: how much each face counts, 1 on average; None: all the same.

    Raises:
      ValueError: not one error is known.
    """
    known = np.isfinite(errors)
    if not known.any():
        raise ValueError("no landmark with a known error")
    weight = np.where(known, 1.0 if weights is None else weights[:, None], 0.0)
    count = weight.sum(axis=0)
    inputs = np.stack(_inputs(confidence, heatmap_std), axis=-1)
    target = np.log(np.maximum(np.where(known, errors, 1.0), _ERROR_FLOOR))

    def within_landmark(values):
        total = np.where(known[..., None], values * weight[..., None], 0.0).sum(axis=0)
        mean = total / np.where(count > 0, count, 1.0)[:, None]
        return ((values - mean) * np.sqrt(weight)[..., None])[known]

    peak_weight, std_weight = _nonnegative_weights(
        within_landmark(inputs), within_landmark(target[..., None])[:, 0]
    )
    scores = inputs @ np.array([peak_weight, std_weight])
    rest = np.where(known, weight * (target - scores), 0.0)
    overall = rest.sum() / count.sum()
    offsets = (rest.sum(axis=0) + _PRIOR * overall) / (count + _PRIOR)
    score = (scores + offsets)[known]
    knots, values = _monotone_map(score, errors[known], weight[known])
    return UncertaintyModel(peak_weight, std_weight, offsets, knots, values, dict(fitted_on))


def _nonnegative_weights(
    inputs: Float[np.ndarray, "n 2"], target: Float[np.ndarray, "n"]
) -> tuple[float, float]:
    """Least squares with two weights that are not negative."""
    weights = np.linalg.lstsq(inputs, target, rcond=None)[0]
    if (weights < 0).any():
        # Then the best lies on a border, where one weight is 0.
        squares = np.maximum((inputs**2).sum(axis=0), np.finfo(np.float64).tiny)
        alone = np.maximum(inputs.T @ target, 0.0) / squares
        better = int(np.argmax(alone**2 * squares))
        weights = np.where(np.arange(2) == better, alone, 0.0)
    return float(weights[0]), float(weights[1])


def _monotone_map(
    score: Float[np.ndarray, "n"], errors: Float[np.ndarray, "n"], weight: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Mean scores of bins, increasing, and nondecreasing mean errors there."""
    order = np.argsort(score, kind="stable")
    ends = [0]
    for end in np.round(np.array(_BIN_ENDS) * len(order)).astype(int).tolist():
        if end - ends[-1] >= _BIN_SIZE:
            ends.append(end)
    ends = [*ends[: max(1, len(ends) - 1)], len(order)]
    starts = ends[:-1]
    sizes = np.add.reduceat(weight[order], starts)
    knots, values = (np.add.reduceat((v * weight)[order], starts) / sizes for v in (score, errors))
    values = pool_adjacent_violators(values, sizes)
    # Bins of one and the same score, as where nothing tells the landmarks apart, are one knot.
    knots, first = np.unique(knots, return_index=True)
    return knots, values[first]


def pool_adjacent_violators(
    values: Float[np.ndarray, "n"], weights: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """Isotonic regression: the nondecreasing values with the least weighted squared difference."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, total, length = value, weight, 1
        while blocks and blocks[-1][0] > mean:
            before, its_weight, its_length = blocks.pop()
            mean = (before * its_weight + mean * total) / (its_weight + total)
            total, length = total + its_weight, length + its_length
        blocks.append((mean, total, length))
    return np.repeat([mean for mean, _, _ in blocks], [length for _, _, length in blocks])


def cross_validate(
    errors: Float[np.ndarray, "n k"],
    confidence: Float[np.ndarray, "n k"],
    heatmap_std: Float[np.ndarray, "n k"],
    groups: Sequence[str],
    *,
    weights: Float[np.ndarray, "n"] | None = None,
) -> Float[np.ndarray, "n k"]:
    """Predicted errors of faces by maps that were fitted without them, as `fit_uncertainty` does.

    Args:
      errors: in percent; NaN where a landmark is not annotated.
      confidence: the heatmaps' peaks.
      heatmap_std: as `heatmaps.heatmap_std` gives it.
      groups: what each face belongs to; a group, such as a image, stays together.
      weights: see `fit_uncertainty`.

    Raises:
      ValueError: there are not two groups.
    """
    _, number = np.unique(np.array(groups), return_inverse=True)
    folds = number % FOLDS
    if number.max() == 0:
        raise ValueError("faces of one image alone")
    expected = np.empty(errors.shape)
    for fold in np.unique(folds):
        held_out = folds == fold
        kept = (values[~held_out] for values in (errors, confidence, heatmap_std))
        part = None if weights is None else weights[~held_out]
        fitted = fit_uncertainty(*kept, fitted_on={}, weights=part)
        expected[held_out] = fitted.expected_error(confidence[held_out], heatmap_std[held_out])
    return expected


def sparsification_error(
    errors: Float[np.ndarray, "n"], uncertainty: Float[np.ndarray, "n"]
) -> float:
    """Area between the sparsification curve and the oracle's, over the mean error (AUSE; Ilg et al. 2018).

    The curve is the mean error of what is left when the most uncertain are taken away, over the part that
    is taken; the oracle takes the largest errors away first. 0 is as good as the oracle.

    Args:
      errors: the true ones.
      uncertainty: in any unit. Among equals, none goes before the other.
    """
    count = np.arange(1, len(errors) + 1)
    _, group, sizes = np.unique(uncertainty, return_inverse=True, return_counts=True)
    group_means = np.bincount(group, errors) / sizes
    left = np.cumsum(np.repeat(group_means, sizes)) / count
    best = np.cumsum(np.sort(errors)) / count
    return float((left - best).mean() / errors.mean())


def assess(errors: PerLandmark, expected: PerLandmark, confidence: PerLandmark) -> dict[str, Any]:
    """How good predicted errors are.

    Args:
      errors: what was measured, in percent; NaN where it is not known.
      expected: the predicted errors, in percent.
      confidence: the heatmaps' peaks, for comparison.

    Returns:
      `num_landmarks`; the means `expected_error` and `measured_error`, in percent; `calibration_error`, the
      mean difference of the two over the bins of `reliability`, in percent; `ause`
      (`sparsification_error`), and beside it `ause_confidence`, of the bare peak, and `ause_random`, of no
      knowledge at all; `reliability`, a list of bins of as many landmarks each by predicted error, with
      `num_landmarks`, `expected_error` and `measured_error`.

    Raises:
      ValueError: not one error is known.
    """
    known = np.isfinite(errors)
    if not known.any():
        raise ValueError("no landmark with a known error")
    errors, expected, confidence = errors[known], expected[known], confidence[known]
    order = np.argsort(expected, kind="stable")
    bins = [
        {
            "num_landmarks": len(part),
            "expected_error": float(expected[part].mean()),
            "measured_error": float(errors[part].mean()),
        }
        for part in np.array_split(order, min(_RELIABILITY_BINS, len(order)))
    ]
    off = sum(abs(b["expected_error"] - b["measured_error"]) * b["num_landmarks"] for b in bins)
    return {
        "num_landmarks": len(errors),
        "expected_error": float(expected.mean()),
        "measured_error": float(errors.mean()),
        "calibration_error": off / len(errors),
        "ause": sparsification_error(errors, expected),
        "ause_confidence": sparsification_error(errors, -confidence),
        "ause_random": sparsification_error(errors, np.zeros_like(errors)),
        "reliability": bins,
    }

"""Predicted error of a landmark from the peak and the standard deviation of its heatmap.

The score of landmark k is

    s = a log(1 - peak + 0.001) + b log(heatmap_std) + c_k           a, b >= 0

A nondecreasing, piecewise linear function maps the score to the predicted error. The predicted error thus
never decreases when the peak gets lower or the heatmap wider. The offset c_k of each landmark accounts for
landmarks that are less well defined, such as those of the jaw. `evaluation.fit_uncertainty` fits the
parameters.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

PerLandmark = Float[np.ndarray, "*b k"]

_MIN_PEAK_DISTANCE = 1e-3  # added to 1 - peak
_MIN_STD = 1e-3  # fraction of the heatmap side


@dataclasses.dataclass(frozen=True)
class UncertaintyModel:
    """Map from the peak and the standard deviation of a heatmap to the predicted error of its landmark.

    Attributes:
      peak_weight: a, at least 0.
      std_weight: b, at least 0.
      offsets: c, one per landmark.
      scores: knots of the piecewise linear function, increasing; it is constant outside them.
      errors: its values at the knots, in percent of the normalizing distance, nondecreasing.
      fitted_on: `dataset`, its `fingerprint` and `split` that the parameters were fitted on.

    Raises:
      ValueError: the function is not monotone, or a value is not finite.
    """

    peak_weight: float
    std_weight: float
    offsets: Float[np.ndarray, "k"]
    scores: Float[np.ndarray, "m"]
    errors: Float[np.ndarray, "m"]
    fitted_on: Mapping[str, str]

    def __post_init__(self):
        weights = np.array([self.peak_weight, self.std_weight])
        if not all(
            np.isfinite(values).all()
            for values in (weights, self.offsets, self.scores, self.errors)
        ):
            raise ValueError("calibration: a value is not finite")
        if weights.min() < 0:
            raise ValueError("calibration: a weight is negative")
        if not len(self.scores) or len(self.scores) != len(self.errors):
            raise ValueError(
                "calibration: scores and errors have to be of one length, which is at least 1"
            )
        if (np.diff(self.scores) <= 0).any() or (np.diff(self.errors) < 0).any():
            raise ValueError("calibration: the errors are not a monotone function of the scores")

    def predict(self, confidence: PerLandmark, heatmap_std: PerLandmark) -> PerLandmark:
        """Predicted error of each landmark, in percent of the normalizing distance.

        Args:
          heatmap_std: standard deviations of the heatmaps (`heatmaps.heatmap_std`).
        """
        inputs = score_inputs(confidence, heatmap_std)
        score = inputs @ np.array([self.peak_weight, self.std_weight]) + self.offsets
        return np.interp(score, self.scores, self.errors)

    def take(self, indices: Sequence[int] | None) -> "UncertaintyModel":
        """Select landmarks; None selects all."""
        return (
            self
            if indices is None
            else dataclasses.replace(self, offsets=self.offsets[list(indices)])
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types for JSON; `from_dict` is the inverse."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "UncertaintyModel":
        """Build an uncertainty model from plain types.

        Raises:
          KeyError: a field is missing.
          TypeError: a field is unknown or of another type.
          ValueError: as for the class.
        """
        arrays = {
            name: np.array(fields[name], np.float64) for name in ("offsets", "scores", "errors")
        }
        weights = {name: float(fields[name]) for name in ("peak_weight", "std_weight")}
        return cls(**{**fields, **arrays, **weights})


def score_inputs(confidence: PerLandmark, heatmap_std: PerLandmark) -> Float[np.ndarray, "*b k 2"]:
    """The two logarithms of the score, which `peak_weight` and `std_weight` multiply."""
    peak = np.log(1 - confidence.astype(np.float64).clip(0, 1) + _MIN_PEAK_DISTANCE)
    width = np.log(np.maximum(heatmap_std.astype(np.float64), _MIN_STD))
    return np.stack([peak, width], axis=-1)

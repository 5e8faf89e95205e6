import dataclasses
import json

import numpy as np
import pytest

from lcgcn_jax.models.bundles import load_bundle
from lcgcn_jax.uncertainty import UncertaintyModel

MODEL = UncertaintyModel(
    0.1,
    1.0,
    np.zeros(1),
    np.array([0.0, 1.0]),
    np.array([1.0, 2.0]),
    {"dataset": "d", "fingerprint": "f", "split": "validation"},
)


def test_json_round_trip():
    loaded = UncertaintyModel.from_dict(json.loads(json.dumps(MODEL.to_dict())))
    assert loaded.to_dict() == MODEL.to_dict()
    assert loaded.fitted_on == MODEL.fitted_on


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peak_weight": -0.1}, "negative"),
        ({"std_weight": np.nan}, "not finite"),
        ({"scores": np.array([1.0, 1.0])}, "monotone"),
        ({"errors": np.array([2.0, 1.0])}, "monotone"),
        ({"scores": np.zeros(0), "errors": np.zeros(0)}, "at least 1"),
        ({"offsets": np.array([np.inf])}, "not finite"),
    ],
)
def test_invalid_parameters_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MODEL, **changes)


def test_predicted_errors_of_the_shipped_model():
    """The score and its map, computed independently for one landmark."""
    model = load_bundle("w300-lcgcn-small").calibration
    confidence, heatmap_std = np.full(68, 0.7, np.float32), np.full(68, 0.03, np.float32)
    score = model.peak_weight * np.log(0.301) + model.std_weight * np.log(0.03) + model.offsets[5]
    expected = np.interp(score, model.scores, model.errors)
    assert model.predict(confidence, heatmap_std)[5] == pytest.approx(expected, abs=1e-6)
    assert model.predict(np.zeros((2, 68)), np.ones((2, 68))).shape == (2, 68)

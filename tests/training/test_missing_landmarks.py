"""Landmarks without a location, whose coordinates are NaN, in losses and evaluation."""

import dataclasses
import itertools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcgcn_jax.evaluation.face_errors import errors_of
from lcgcn_jax.landmarks import IBUG68
from lcgcn_jax.models.lcgcn import LCGCNOutput
from lcgcn_jax.training.config_types import HeatmapLoss, LossConfig
from lcgcn_jax.training.steps import COORDINATE_LOSSES, total_loss

LOSSES = sorted(itertools.product(get_args(HeatmapLoss), COORDINATE_LOSSES))


@pytest.mark.parametrize(("heatmap", "coordinate"), LOSSES)
def test_missing_landmarks_change_neither_the_loss_nor_its_gradient(heatmap, coordinate):
    rng = np.random.default_rng(0)
    located = np.array([[True, False, True], [False, False, False]])
    logits = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    points = jnp.asarray(rng.uniform(0, 32, (2, 3, 2)), jnp.float32)
    config = LossConfig(heatmap=heatmap, coordinate=coordinate)

    def loss(values, landmarks):
        logits, points = values
        output = LCGCNOutput(logits, points, None, None, points, points[:, None])
        return total_loss(
            output,
            jnp.asarray(landmarks, jnp.float32),
            jnp.asarray(located),
            config=config,
            groups=("heatmap", "graph"),
            size=32,
        )[0]

    truth = rng.uniform(4, 28, (2, 3, 2))
    missing = np.where(located[..., None], truth, np.nan)
    expected, gradient = jax.value_and_grad(loss)((logits, points), truth)
    result, gradient_of_missing = jax.value_and_grad(loss)((logits, points), missing)
    assert np.isfinite(result)
    assert result == expected
    for a, b in zip(gradient, gradient_of_missing, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (np.asarray(gradient_of_missing[1])[~located] == 0).all()


def make_errors(located):
    """Errors of 3 px on faces whose outer eye distance is 60 px and whose box is 100 px large."""
    n = len(located)
    truth = np.tile(np.linspace(20.0, 80.0, 68)[:, None], (n, 1, 2))
    truth[:, 0], truth[:, 1] = 0.0, 100.0
    truth[:, 36], truth[:, 45] = (20.0, 50.0), (80.0, 50.0)
    predicted = jnp.asarray(truth + np.array([3.0, 0.0]), jnp.float32)
    truth = np.where(located[..., None], truth, np.nan)
    ones = jnp.ones((n, 68))
    output = LCGCNOutput(
        None, predicted, ones, None, predicted, predicted[:, None], heatmap_std=ones
    )
    batch = {
        "source_landmarks": truth,
        "visible": located,
        "normalizer": np.full(n, np.nan, np.float32),
        "crop_to_source": np.tile(np.eye(3)[:2], (n, 1, 1)),
        "record": np.arange(n),
        "mask": np.ones(n, bool),
    }
    return errors_of([(output, batch)], IBUG68)


def test_faces_without_an_outer_eye_corner_are_normalized_by_box_size():
    located = np.ones((4, 68), bool)
    located[2, [36, 5]] = False  # a profile
    located[3, 5] = False
    errors = make_errors(located)
    assert errors.measured.tolist() == [True, True, False, True]
    percent = errors.percent_errors()
    np.testing.assert_array_equal(np.isfinite(percent), located)
    np.testing.assert_allclose(percent[located], 100 * 3 / 60, rtol=1e-5)
    np.testing.assert_allclose(errors.box_landmarks[located], 3 / 100, rtol=1e-5)


def test_perfect_predictions_have_no_error():
    errors = make_errors(np.ones((2, 68), bool))
    none = np.zeros((2, 68))
    perfect = dataclasses.replace(errors, landmarks=none, box_landmarks=none)
    assert (perfect.percent_errors() == 0).all()

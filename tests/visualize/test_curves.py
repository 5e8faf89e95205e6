"""Tests of `visualize.curves`."""

from typing import get_args

import numpy as np

from lcgcn_jax.training.config_types import HeatmapLoss
from lcgcn_jax.training.steps import COORDINATE_LOSSES
from lcgcn_jax.visualize import curves


def test_curves_of_losses_and_of_both_stages():
    rows = [
        {"step": s, "train/loss": 1 / s, "train/focal": 1 / s, "train/l1": 0.1 / s}
        for s in (1, 2, 3)
    ]
    rows += [
        {"step": s, "validation/heatmap_nme": 9 / s, "validation/graph_nme": 8 / s} for s in (2, 3)
    ]
    loss_axes, nme_axes = curves.plot_curves(rows).axes
    assert [line.get_label() for line in nme_axes.lines] == ["heatmap stage", "graph stage"]
    np.testing.assert_allclose(nme_axes.lines[1].get_xydata(), [(2, 4), (3, 8 / 3)])
    assert len(loss_axes.lines) == 3


def test_every_loss_has_a_label():
    assert set(COORDINATE_LOSSES) <= set(curves.LOSSES)
    assert set(get_args(HeatmapLoss)) <= set(curves.LOSSES)
    assert {"heatmap_coordinate", "visibility"} <= set(curves.LOSSES)

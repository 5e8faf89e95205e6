"""Every config in its `:small` form takes a step, validates and logs."""

import numpy as np
import pytest

from lcgcn_jax.training import sharding
from lcgcn_jax.training.config import config_names
from lcgcn_jax.training.loop import Training
from lcgcn_jax.training.metric_writer import read_metrics

NAMES = [name for name in config_names() if name != "demo"]


@pytest.mark.parametrize("name", NAMES)
def test_small_form_takes_a_step(config_of, tmp_path, name):
    config = config_of(f"{name}:small")
    config.train.batch_size = 8
    config.train.steps = 1
    config.init_from = ""  # what a run of another config would leave
    training = Training(config, tmp_path / "run", sharding.make_mesh(1))
    assert training.run()
    figures = {k: v for row in read_metrics(tmp_path / "run") for k, v in row.items()}
    assert np.isfinite(figures["train/loss"])
    assert ("validation/graph_nme" in figures) == (config.model.graph is not None)

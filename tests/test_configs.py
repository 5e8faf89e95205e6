"""Every config runs: full size traced and lowered at its own shapes, `:small` for a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcgcn_jax.training import sharding
from lcgcn_jax.training.config import load_config
from lcgcn_jax.training.loop import Training
from lcgcn_jax.training.metric_writer import read_metrics

NAMES = ("w300_lcgcn", "w300_hrnet18", "wflw_lcgcn", "wflw_hrnet18", "w300_hourglass")


@pytest.fixture
def config_of(synthetic68, synthetic98):
    def load(spec):
        config = load_config(spec)
        config.data.dir = str(synthetic68 if config.scheme == "ibug68" else synthetic98)
        return config

    return load


@pytest.mark.parametrize("name", NAMES)
def test_full_size_step_lowers(config_of, tmp_path, name):
    config = config_of(name)
    training = Training(config, tmp_path / "run", sharding.make_mesh(1))
    size, batch = config.data.image_size, config.train.batch_size
    landmarks = training.dataset.scheme.num_landmarks
    assert (size, batch) == (256, 16)
    shapes = {
        "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
        "landmarks": jax.ShapeDtypeStruct((batch, landmarks, 2), jnp.float32),
        "visible": jax.ShapeDtypeStruct((batch, landmarks), jnp.bool_),
    }
    lowered = training.train_step.lower(training.state, shapes)
    if config.model.heatmap.name != "hrnet":
        return
    assert config.model.heatmap.arch == "w18"
    # Forward and backward of 9.8 GFLOP an image, three times the forward.
    assert lowered.cost_analysis()["flops"] == pytest.approx(batch * 3 * 9.8e9, rel=0.15)


@pytest.mark.parametrize("name", NAMES)
def test_small_form_takes_a_step(config_of, tmp_path, name):
    config = config_of(f"{name}:small")
    config.train.batch_size = 8
    config.train.steps = 1
    training = Training(config, tmp_path / "run", sharding.make_mesh(1))
    assert training.run()
    figures = {k: v for row in read_metrics(tmp_path / "run") for k, v in row.items()}
    assert np.isfinite(figures["train/loss"])
    assert ("validation/graph_nme" in figures) == (config.model.graph is not None)

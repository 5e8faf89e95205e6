"""Training step of the configs at full size: tracing and lowering."""

import jax
import jax.numpy as jnp
import pytest

from lcgcn_jax.training import sharding
from lcgcn_jax.training.trainer import Trainer

pytestmark = pytest.mark.slow
NAMES = ["w300_dag", "w300_hourglass", "wflw_hrnet18", "w300_lcgcn", "wflw_lcgcn_best"]
"""Every model once; the other configs differ in their data."""


@pytest.mark.parametrize("name", NAMES)
def test_full_size_step_lowers(config_of, tmp_path, name):
    config = config_of(name)
    training = Trainer(config, tmp_path / "run", sharding.make_mesh(1)).prepare()
    size, batch = config.data.image_size, config.train.batch_size
    landmarks = training.dataset.scheme.num_landmarks
    assert (size, batch) == (256, 64 if name.endswith("_best") else 16)
    shapes = {
        "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
        "landmarks": jax.ShapeDtypeStruct((batch, landmarks, 2), jnp.float32),
        "visible": jax.ShapeDtypeStruct((batch, landmarks), jnp.bool_),
    }
    lowered = training.train_step.lower(training.state, shapes)
    if config.model.heatmap.name != "hrnet":
        return
    assert config.model.heatmap.arch == "w18"
    # The forward pass takes 9.8 GFLOP per image; forward and backward pass take three times as much.
    assert lowered.cost_analysis()["flops"] == pytest.approx(batch * 3 * 9.8e9, rel=0.15)

"""Small form of every config: tracing; for each kind of graph, a step with validation and logging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcgcn_jax.training import sharding
from lcgcn_jax.training.config import config_names
from lcgcn_jax.training.metric_writer import read_metrics
from lcgcn_jax.training.trainer import Trainer

NAMES = [name for name in config_names() if name != "demo"]


@pytest.fixture
def small_config(config_of):
    def load(name):
        config = config_of(f"{name}:small")
        config.train.batch_size = 8
        config.train.steps = 1
        config.init_from = ""  # a run of another config, which does not exist here
        return config

    return load


@pytest.mark.parametrize("name", NAMES)
def test_small_config_is_traced_with_a_toy_heatmap_model(toy, small_config, tmp_path, name):
    config = small_config(name)
    config.unlock().model.heatmap = {"name": "toy"}
    size = config.data.image_size = 32
    training = Trainer(config, tmp_path / "run", sharding.make_mesh(1)).prepare()
    k = training.dataset.scheme.num_landmarks
    batch = {
        "image": jax.ShapeDtypeStruct((8, size, size, 3), jnp.uint8),
        "landmarks": jax.ShapeDtypeStruct((8, k, 2), jnp.float32),
        "visible": jax.ShapeDtypeStruct((8, k), jnp.bool_),
    }
    state, scalars = jax.eval_shape(training.train_step, training.state, batch)
    shapes = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), s) for s in (state, training.state)
    ]
    assert shapes[0] == shapes[1]
    assert (config.loss.coordinate in scalars) == (config.model.graph is not None)
    assert config.loss.heatmap in scalars


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w300_dag", "w300_lcgcn", "wflw_lcgcn_best", "wflw_hrnet18"])
def test_small_config_takes_a_step(toy, small_config, tmp_path, name):
    config = small_config(name)
    config.unlock().model.heatmap = {"name": "toy"}  # HRNet compiles for most of a minute
    training = Trainer(config, tmp_path / "run", sharding.make_mesh(1)).prepare()
    assert training.run()
    figures = {k: v for row in read_metrics(tmp_path / "run") for k, v in row.items()}
    assert np.isfinite(figures["train/loss"])
    assert ("validation/graph_nme" in figures) == (config.model.graph is not None)

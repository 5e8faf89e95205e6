"""Config `demo:small` with the heatmap model `toy` of conftest.py, for unit tests of commands."""

import ml_collections

from lcgcn_jax.training.config import load_config


def get_config() -> ml_collections.ConfigDict:
    config = load_config("demo:small")
    config.model.heatmap = ml_collections.ConfigDict({"name": "toy"})
    return config

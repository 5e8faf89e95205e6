"""Config of `lcgcn demo`: a small LCGCN on synthetic faces, which trains in minutes on two CPU cores.

    lcgcn demo --out runs/demo

Data: synthetic faces with the 98 landmarks of WFLW, which the demo renders.

`:small` is a smoke test: two steps of the tiny HRNet on 64 px crops.
"""

import ml_collections

from lcgcn_jax.training.config import default_config, parse_argument, reduce_for_cpu


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    config = default_config()
    config.data.dir = "runs/demo/data"
    reduce_for_cpu(config, epochs=3)
    config.train.steps = 240
    config.data.augment.rotation = 15.0
    config.train.ema_decay = 0.98
    config.train.eval_every = config.train.checkpoint_every = 80
    if "small" in parse_argument(argument, ["small"]):
        config.model.heatmap.arch = "tiny"
        config.data.image_size = 64
        config.train.batch_size = 8
        config.train.steps = config.train.eval_every = config.train.checkpoint_every = 2
        config.train.keep = 1
    return config

"""LCGCN on 300W at 256 px with two stacked hourglasses of width 128 as the heatmap model.

    lcgcn prepare 300w --src 300W --out data/w300
    lcgcn train --config configs/w300_hourglass.py --workdir runs/w300_hourglass

60 epochs at batch size 16, with the focal loss only on the last stack. The time on an accelerator has
not been measured. Data: the 3,145 training faces of 300W without the LFPW overlap; about a tenth of
them is for validation.

`:small` is for two CPU cores: one hourglass of width 64 at 128 px, 26 epochs
(see `training.config.reduce_for_cpu`).
"""

import ml_collections

from lcgcn_jax.training.config import default_config, parse_argument, reduce_for_cpu, set_epochs


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    config = default_config()
    config.scheme = "ibug68"
    config.data.dir = "data/w300"
    config.model.heatmap = {
        "name": "hourglass",
        "stacks": 2,
        "width": 128,
        "activation": "sigmoid",
    }
    set_epochs(config, 60, eval_every=2)
    if "small" in parse_argument(argument, ["small"]):
        reduce_for_cpu(config, epochs=26)
        config.model.heatmap.stacks = 1
        config.model.heatmap.width = 64
    return config

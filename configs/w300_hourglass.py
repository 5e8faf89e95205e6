"""LCGCN on 300W with another heatmap model: two stacked hourglasses of width 128; 256 px.

    lcgcn prepare 300w --src 300W --out data/w300
    lcgcn train --config configs/w300_hourglass.py --workdir runs/w300_hourglass

Data: 300W's 3,145 training faces (without the LFPW overlap), about a tenth of them kept for
validation. 60 epochs at batch 16, focal loss on the last stack alone. Time on an accelerator: not
measured.

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

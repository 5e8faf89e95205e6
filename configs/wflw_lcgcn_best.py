"""Best recipe of 300W (`w300_lcgcn_best`) on WFLW, where it has not been measured yet.

    lcgcn prepare wflw --src WFLW --out data/wflw
    lcgcn train --config configs/wflw_lcgcn_best.py --workdir runs/wflw_lcgcn_best

HRNet-W18 at 256 px from scratch, 150 epochs at batch size 64.

`:small` is for two CPU cores: HRNet-W18-small-v1 at 128 px, from scratch, 12 epochs.
"""

import ml_collections

from lcgcn_jax.training.config import (
    default_config,
    parse_argument,
    reduce_for_cpu,
    train_from_scratch,
    use_best_recipe,
)


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    config = default_config()
    if "small" in parse_argument(argument, ["small"]):
        reduce_for_cpu(config, epochs=12)
    else:
        train_from_scratch(config, epochs=150)
    use_best_recipe(config)
    return config

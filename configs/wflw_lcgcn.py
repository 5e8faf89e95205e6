"""LCGCN on WFLW as in the paper: HRNet-W18 at 256 px with per-image edges, trained end to end.

    lcgcn prepare wflw --src WFLW --out data/wflw
    lcgcn train --config configs/wflw_lcgcn.py --workdir runs/wflw_lcgcn

60 epochs at batch size 16, without the ImageNet weights of the paper. The time on an accelerator has not been
measured.
Data: the 7,500 training faces of WFLW; about a tenth of them is for validation.

`:small` is for two CPU cores: HRNet-W18-small-v1 at 128 px, from scratch, 12 epochs
(see `training.config.reduce_for_cpu`).
"""

import ml_collections

from lcgcn_jax.training.config import default_config, parse_argument, reduce_for_cpu, set_epochs


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    config = default_config()
    set_epochs(config, 60, eval_every=2)
    if "small" in parse_argument(argument, ["small"]):
        reduce_for_cpu(config, epochs=12)
    return config

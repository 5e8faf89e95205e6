"""LCGCN on 300W as in the paper: HRNet-W18 at 256 px with per-image edges, trained end to end.

    lcgcn prepare 300w --src 300W --out data/w300
    lcgcn train --config configs/w300_lcgcn.py --workdir runs/w300_lcgcn

60 epochs at batch size 16, without the ImageNet weights of the paper. The time on an accelerator has not been
measured.
Data: the 3,145 training faces of 300W without the LFPW overlap; about a tenth of them is for validation.

`:small` is for two CPU cores: HRNet-W18-small-v1 at 128 px, from scratch, 26 epochs
(see `training.config.reduce_for_cpu`).

`:frozen` or `:small,frozen` trains only the graph, on the heatmap model of `w300_hrnet18`, as in the
ablation of the paper (see `training.config.freeze_heatmap_model`): 32 epochs, which take minutes on two
CPU cores.
"""

import ml_collections

from lcgcn_jax.training.config import (
    default_config,
    freeze_heatmap_model,
    parse_argument,
    reduce_for_cpu,
    set_epochs,
)


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    config = default_config()
    config.scheme = "ibug68"
    config.data.dir = "data/w300"
    set_epochs(config, 60, eval_every=2)
    words = parse_argument(argument, ["small", "frozen"])
    if "small" in words:
        reduce_for_cpu(config, epochs=26)
    if "frozen" in words:
        run = "runs/w300_hrnet18_small" if "small" in words else "runs/w300_hrnet18"
        freeze_heatmap_model(config, init_from=run)
    return config

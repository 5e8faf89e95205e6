"""Two-stage cascade from the mean shape (Li et al. 2020) on 300W at 256 px, a baseline of the paper.

    lcgcn prepare 300w --src 300W --out data/w300
    lcgcn train --config configs/w300_dag.py --workdir runs/w300_dag

HRNet-W18 features, static edges, one coarse step and three fine steps, trained jointly with the heatmaps
for 60 epochs at batch size 16. The time on an accelerator has not been measured.
Data: the 3,145 training faces of 300W without the LFPW overlap; about a tenth of them is for validation.

`:small` is for two CPU cores: HRNet-W18-small-v1 at 128 px, from scratch, 26 epochs
(see `training.config.reduce_for_cpu`).
"""

import dataclasses

import ml_collections

from lcgcn_jax.models.config import CascadeConfig
from lcgcn_jax.training.config import default_config, parse_argument, reduce_for_cpu, set_epochs


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    config = default_config()
    config.scheme = "ibug68"
    config.data.dir = "data/w300"
    config.model.graph = {"name": "dag", **dataclasses.asdict(CascadeConfig())}
    set_epochs(config, 60, eval_every=2)
    if "small" in parse_argument(argument, ["small"]):
        reduce_for_cpu(config, epochs=26)
    return config

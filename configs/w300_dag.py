"""The two-stage cascade from the mean shape (Li et al. 2020) on 300W, the paper's main rival; 256 px.

    lcgcn prepare 300w --src 300W --out data/w300
    lcgcn train --config configs/w300_dag.py --workdir runs/w300_dag

HRNet-W18's features, static edges, one coarse turn and three fine ones; the heatmaps train beside it.
Data: 300W's 3,145 training faces (without the LFPW overlap), about a tenth of them kept for
validation. 60 epochs at batch 16. Time on an accelerator: not measured.

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

"""HRNet-W18 alone on WFLW, the heatmap model of the paper without its graph; 256 px.

    lcgcn prepare wflw --src WFLW --out data/wflw
    lcgcn train --config configs/wflw_hrnet18.py --workdir runs/wflw_hrnet18

Data: WFLW's 7,500 training faces, about a tenth of them kept for validation. 60 epochs at batch 16,
focal loss, quarter-offset decoding as in HRNet's own code. Time on an accelerator: not measured.

`:small` is for two CPU cores: HRNet-W18-small-v1 at 128 px, from scratch, 12 epochs
(see `training.config.reduce_for_cpu`).
"""

import ml_collections

from lcgcn_jax.training.config import default_config, parse_argument, reduce_for_cpu, set_epochs


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    config = default_config()
    config.model.graph = None
    config.model.decode = "quarter"
    config.train.mode = "heatmap_only"
    set_epochs(config, faces=6750, epochs=60, eval_every=2)
    if parse_argument(argument, ["small"]) == "small":
        reduce_for_cpu(config, faces=6750, epochs=12)
    return config

"""HRNet-W18 on 300W at 256 px: the heatmap model of the paper without its graph.

    lcgcn prepare 300w --src 300W --out data/w300
    lcgcn train --config configs/w300_hrnet18.py --workdir runs/w300_hrnet18

60 epochs at batch size 16, with MSE on linear heatmaps and quarter-offset decoding, as in HRNet's own
code. The time on an accelerator has not been measured. Data: the 3,145 training faces of 300W without
the LFPW overlap; about a tenth of them is for validation.

`:small` is for two CPU cores: HRNet-W18-small-v1 at 128 px, from scratch, 26 epochs (see
`training.config.reduce_for_cpu`), with the focal loss on a sigmoid, which trains faster: in a prototype
the validation NME was 5.8 % after 4 epochs, compared to 17.0 % with MSE.
"""

import ml_collections

from lcgcn_jax.training.config import default_config, parse_argument, reduce_for_cpu, set_epochs


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    config = default_config()
    config.scheme = "ibug68"
    config.data.dir = "data/w300"
    config.model.graph = None
    config.model.decode = "quarter"
    config.model.heatmap.activation = "linear"
    config.loss.heatmap = "mse"
    config.train.mode = "heatmap_only"
    set_epochs(config, 60, eval_every=2)
    if "small" in parse_argument(argument, ["small"]):
        config.model.heatmap.activation = "sigmoid"
        config.loss.heatmap = "focal"
        reduce_for_cpu(config, epochs=26)
    return config

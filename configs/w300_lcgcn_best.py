"""What won on 300W's faces: neighbours' guesses, then windows of the maps read again, trained end to end.

    lcgcn prepare 300w --src 300W --out data/w300
    lcgcn train --config configs/w300_lcgcn_best.py --workdir runs/w300_lcgcn_best

HRNet-W18 at 256 px from scratch: 300 epochs at batch 64, warm-up and cosine, DARK, damaged training faces. Expected, not
measured: 13,280 steps, an hour or two on one large GPU.

`:small` is for two CPU cores: HRNet-W18-small-v1 at 192 px, on from the heatmap model that
`w300_hrnet18:small` leaves in `runs/w300_hrnet18_small` (another: `--config.init_from`). 1,900 steps, 80 minutes. Its figures are in
RESULTS.md.
"""

import ml_collections

from lcgcn_jax.training.config import default_config, parse_argument, reduce_for_cpu, set_epochs


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    config = default_config()
    config.scheme = "ibug68"
    config.data.dir = "data/w300"
    small = "small" in parse_argument(argument, ["small"])
    if small:
        reduce_for_cpu(config, faces=1802, epochs=17)
        config.data.image_size = 192
        config.init_from = "runs/w300_hrnet18_small"
        config.optimizer.learning_rate.heatmap = 6e-4
    else:
        config.model.decode = "dark"
        config.model.graph.output = "residual"
        config.model.graph.sampling = "bilinear"
        config.optimizer.learning_rate = {"heatmap": 1e-3, "graph": 1e-3}
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 500
        config.train.batch_size = 64
        config.train.ema_decay = 0.998
        set_epochs(config, faces=2833, epochs=300, eval_every=10)
    config.model.graph.message = "offsets"
    config.model.graph.refinements = 2
    # The gradient that reaches the heatmap model is then about half of the focal loss's, and not a fortieth.
    config.loss.coordinate_weight = 20.0
    config.loss.sigma = 1.25 if small else 1.5
    config.data.augment.occlusion = 0.3
    config.data.augment.blur = 0.25
    config.data.augment.noise = 0.1
    config.data.augment.darkness = 0.1
    return config

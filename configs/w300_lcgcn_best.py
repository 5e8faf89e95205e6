"""What won on 300W's faces: neighbors' guesses, then windows of the maps read again, end to end.

    lcgcn prepare 300w --src 300W --out data/w300
    lcgcn train --config configs/w300_lcgcn_best.py --workdir runs/w300_lcgcn_best

HRNet-W18 at 256 px from scratch, 300 epochs at batch 64 (see `training.config.use_best_recipe` and
`train_from_scratch`). With all of 300W these are 13,265 steps. Not run to the end yet. An H200 that
also did other work took 150 steps at 8.6 steps per second, so all of them should take half an hour
there.

`:small` is for two CPU cores: HRNet-W18-small-v1 at 192 px, 17 epochs on from the heatmap model
of `w300_hrnet18:small` in `runs/w300_hrnet18_small` (another: `--config.init_from`).
Figures: docs/research/results.md.
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
    config.scheme = "ibug68"
    config.data.dir = "data/w300"
    if "small" in parse_argument(argument, ["small"]):
        reduce_for_cpu(config, epochs=17)
        config.data.image_size = 192
        config.loss.sigma = 1.25
        config.init_from = "runs/w300_hrnet18_small"
        config.optimizer.learning_rate.heatmap = 6e-4
    else:
        train_from_scratch(config, epochs=300)
    use_best_recipe(config)
    # So far to the right of where a model of mirrored faces has them lie the points of the training faces.
    config.data.augment.flip_bias = 0.0038
    return config

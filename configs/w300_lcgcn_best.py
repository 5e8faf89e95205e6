"""Best recipe on 300W: LCGCN with offset votes and two patch refinement stages, trained end to end.

    lcgcn prepare 300w --src 300W --out data/w300
    lcgcn train --config configs/w300_lcgcn_best.py --workdir runs/w300_lcgcn_best

HRNet-W18 at 256 px from scratch, 300 epochs at batch size 64 (see `training.config.use_best_recipe` and
`train_from_scratch`), which are 13,265 steps with all of 300W. This has not been run completely. 150
steps ran at 8.6 steps per second on a shared H200, so the whole run should take half an hour there.

`:small` is for two CPU cores: HRNet-W18-small-v1 at 192 px, 17 epochs from the weights of
`w300_hrnet18:small` in `runs/w300_hrnet18_small` (set `--config.init_from` for others). Results:
docs/research/results.md.
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
    # Horizontal bias of the 300W annotations relative to their mirror image, as a fraction of the crop.
    config.data.augment.flip_bias = 0.0038
    return config

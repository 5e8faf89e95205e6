"""Adam or Muon, with a learning rate per parameter group."""

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any

import jax
import optax
import optax.contrib

from lcgcn_jax.errors import InputError
from lcgcn_jax.models.weights import Weights
from lcgcn_jax.training.config_types import OptimizerConfig, TrainMode

GROUPS = {"heatmap": ("heatmap_model",), "graph": ("graph", "visibility")}
"""Parameter group -> the submodules of the model that belong to it."""

TRAINED: dict[TrainMode, tuple[str, ...]] = {
    "joint": ("heatmap", "graph"),
    "frozen": ("graph",),
    "heatmap_only": ("heatmap",),
}
"""Training mode -> the parameter groups that train."""

_KERNELS = "kernels"
_HEATMAP_LAYERS = tuple(
    f"heatmap_model.{name}." for name in ("head_out", "outs", "from_heatmaps", "head")
)
_MUON_RMS = 0.4
"""RMS of Muon's updates at a learning rate of 1; that of Adam's is 0.2 to 0.4 (arXiv 2502.16982)."""


def trained_names(mode: TrainMode, params: Weights) -> frozenset[str]:
    """Names of the parameters that train in a mode.

    Raises:
      InputError: the mode trains the graph, and the model has none.
    """
    parts = {part for group in TRAINED[mode] for part in GROUPS[group]}
    if "graph" in TRAINED[mode] and not any(name.startswith("graph.") for name in params):
        raise InputError(
            f"config train.mode: {mode!r} trains the graph, and model.graph is null; use 'heatmap_only'"
        )
    return frozenset(name for name in params if name.split(".")[0] in parts)


def make_schedule(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """Learning rate over the steps: linear warm-up to `peak`, then the decay of the configuration.

    Args:
      config: uses `schedule`, `milestones` and `warmup_steps`.
    """
    warmup = min(config.warmup_steps, steps // 2)
    if config.schedule == "constant":
        decay = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, steps - warmup)
    else:
        # In a short run, several milestones can be at the same step.
        milestones = Counter(max(1, int(part * steps) - warmup) for part in config.milestones)
        factors = {step: 0.1**count for step, count in milestones.items()}
        decay = optax.piecewise_constant_schedule(peak, factors)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), decay], [warmup])


def make_optimizer(
    config: OptimizerConfig, mode: TrainMode, steps: int
) -> tuple[optax.GradientTransformation, dict[str, optax.Schedule]]:
    """Create the optimizer of the trained parameters, and the learning rate of each group for the log."""
    schedules = {
        group: make_schedule(config, getattr(config.learning_rate, group), steps)
        for group in TRAINED[mode]
    }
    decay = config.weight_decay

    def adam(schedule: optax.Schedule) -> optax.GradientTransformation:
        # On one vector of all parameters: W18 has 900 small arrays, and a program with a kernel per array is
        # slow to compile and to load from the cache (docs/research/compilation.md).
        update = optax.flatten(optax.adam(schedule))
        if not decay:
            return update
        shrink = optax.add_decayed_weights(lambda step: -decay * schedule(step), mask=_is_matrix)
        return optax.chain(update, shrink)

    updates: dict[Hashable, optax.GradientTransformation] = {
        group: adam(schedule) for group, schedule in schedules.items()
    }
    muon = config.method == "muon" and "heatmap" in schedules
    if muon:
        # One update for each kernel, which takes longer to compile than Adam (docs/research/compilation.md).
        updates[_KERNELS] = optax.contrib.muon(
            schedules["heatmap"],
            weight_decay=decay,
            consistent_rms=_MUON_RMS,
            muon_weight_dimension_numbers=_kernel_dimensions,
        )
    optimizer = optax.partition(updates, _muon_labels if muon else _group_labels)
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer, schedules


def is_muon_kernel(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a kernel that Muon updates: not of an image or of heatmaps."""
    is_kernel = name.startswith("heatmap_model.") and name.endswith("kernel") and len(shape) == 4
    return is_kernel and shape[2] > 3 and not name.startswith(_HEATMAP_LAYERS)


def _is_matrix(params: Mapping[str, Any]) -> dict[str, bool]:
    # optax.partition masks other groups' parameters with a leaf that has no dimensions.
    return {name: getattr(value, "ndim", 0) > 1 for name, value in params.items()}


def _group_labels(params: Mapping[str, Any]) -> dict[str, str]:
    by_part = {part: group for group, parts in GROUPS.items() for part in parts}
    return {name: by_part[name.split(".")[0]] for name in params}


def _muon_labels(params: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: _KERNELS if label == "heatmap" and is_muon_kernel(name, params[name].shape) else label
        for name, label in _group_labels(params).items()
    }


def _kernel_dimensions(kernels: Any) -> Any:
    """Kernels `[height, width, inputs, outputs]` as matrices `[height * width * inputs, outputs]`."""
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    return jax.tree.map(lambda _: matrix, kernels)

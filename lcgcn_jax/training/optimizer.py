"""Adam with a learning rate for each part of the model."""

from collections.abc import Mapping
from typing import Any

import optax

from lcgcn_jax.errors import InputError
from lcgcn_jax.models.weights import Weights

SCHEDULES = ("constant", "cosine", "step")

GROUPS = {"heatmap": ("heatmap_model",), "graph": ("graph", "visibility")}
"""Labels of the parameter groups, and the model's parts that each one is."""

TRAINED = {
    "joint": ("heatmap", "graph"),
    "frozen": ("graph",),
    "heatmap_only": ("heatmap",),
}
"""The groups that each training mode trains."""


def trained_names(mode: str, params: Weights) -> frozenset[str]:
    """Names of the parameters that a mode trains.

    Raises:
      InputError: an unknown mode, or one that trains nothing of this model.
    """
    if mode not in TRAINED:
        raise InputError(
            f"config train.mode: unknown mode {mode!r}; use one of {', '.join(TRAINED)}"
        )
    parts = {part for group in TRAINED[mode] for part in GROUPS[group]}
    names = frozenset(name for name in params if name.split(".")[0] in parts)
    if not names:
        raise InputError(f"config train.mode: {mode!r} trains the graph, and model.graph is None")
    return names


def make_schedule(config: Mapping[str, Any], peak: float, steps: int) -> optax.Schedule:
    """Learning rate over the steps: linear warm-up to `peak`, then the configured decay.

    Args:
      config: `schedule` (`constant`, `cosine` to zero, or `step`: a tenth after each of `milestones`,
        parts of the whole) and `warmup_steps` (at most half of the training).
      peak: the highest rate.
      steps: length of the training.

    Raises:
      InputError: an unknown schedule.
    """
    warmup = min(config["warmup_steps"], steps // 2)
    rest = steps - warmup
    kind = config["schedule"]
    if kind == "constant":
        decay = optax.constant_schedule(peak)
    elif kind == "cosine":
        decay = optax.cosine_decay_schedule(peak, rest)
    elif kind == "step":
        milestones = [max(1, int(part * steps) - warmup) for part in config["milestones"]]
        decay = optax.piecewise_constant_schedule(peak, dict.fromkeys(milestones, 0.1))
    else:
        raise InputError(
            f"config optimizer.schedule: unknown schedule {kind!r}; use constant, cosine or step"
        )
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), decay], [warmup])


def make_optimizer(
    config: Mapping[str, Any], mode: str, steps: int
) -> tuple[optax.GradientTransformation, dict[str, optax.Schedule]]:
    """The optimizer of the trained parameters, and each group's learning rate for the log.

    Args:
      config: `learning_rate` (a number a group), `schedule`, `milestones`, `warmup_steps`,
        `weight_decay` (decoupled, on weights of rank 2 and more) and `clip_norm` (0: no clipping).
      mode: a key of `TRAINED`.
      steps: length of the training.
    """
    schedules = {
        group: make_schedule(config, config["learning_rate"][group], steps)
        for group in TRAINED[mode]
    }
    decay = config["weight_decay"]

    def adam(schedule: optax.Schedule) -> optax.GradientTransformation:
        # On one vector of all: W18 has 900 small weights, and a program with kernels for each of them is
        # slow to compile, and slower to take from the cache (docs/research/compilation.md).
        update = optax.flatten(optax.adam(schedule))
        if not decay:
            return update
        shrink = optax.add_decayed_weights(lambda step: -decay * schedule(step), mask=_is_matrix)
        return optax.chain(update, shrink)

    optimizer = optax.partition(
        {group: adam(schedule) for group, schedule in schedules.items()}, _group_labels
    )
    if config["clip_norm"]:
        optimizer = optax.chain(optax.clip_by_global_norm(config["clip_norm"]), optimizer)
    return optimizer, schedules


def _is_matrix(params: Mapping[str, Any]) -> dict[str, bool]:
    # optax.partition masks other groups' parameters with a leaf that has no dimensions.
    return {name: getattr(value, "ndim", 0) > 1 for name, value in params.items()}


def _group_labels(params: Mapping[str, Any]) -> dict[str, str]:
    by_part = {part: group for group, parts in GROUPS.items() for part in parts}
    return {name: by_part[name.split(".")[0]] for name in params}

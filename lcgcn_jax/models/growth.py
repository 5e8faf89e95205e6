"""Growth of a trained HRNet to a larger one that computes the same function.

Follows Net2Net (Chen, Goodfellow and Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR
2016), but new channels are random and unused at first, instead of copies.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lcgcn_jax.models.config import HRNetArch
from lcgcn_jax.models.hrnet import ARCHS, Arch

_HEATMAP = "heatmap_model."
_HEAD = f"{_HEATMAP}head_"


def can_grow(arch: HRNetArch, larger: HRNetArch) -> bool:
    """Whether each part of an HRNet fits in another one."""
    a, b = ARCHS[arch], ARCHS[larger]
    return (
        a.bottleneck_width <= b.bottleneck_width
        and a.bottlenecks <= b.bottlenecks
        and a.blocks <= b.blocks
        and all(m <= n for m, n in zip(a.widths, b.widths, strict=True))
        and all(m <= n for m, n in zip(a.modules, b.modules, strict=True))
    )


def grow_weights(
    weights: Mapping[str, np.ndarray],
    initial: Mapping[str, Any],
    arch: HRNetArch,
    larger: HRNetArch,
) -> dict[str, Any]:
    """Embed the weights of a model in random weights of one with a larger HRNet.

    The larger model has the same outputs, except for a visibility head, which normalizes the features over
    all channels. The weights from new channels to those of the smaller model are 0, and new residual blocks
    and modules add 0, since the last BatchNorm of each of their branches has scale and bias 0. Both train
    from the first step.

    Args:
      weights: weights of the smaller model by flat name.
      initial: random weights of the larger model.
      arch: HRNet of the smaller model.
      larger: HRNet of the larger model, see `can_grow`.

    Returns:
      The weights of `weights`, with the shapes of `initial`, and those of all new layers in the HRNet. A
      weight whose shape has no place in the larger model is unchanged.
    """
    small, large = ARCHS[arch], ARCHS[larger]
    grown: dict[str, Any] = {}
    for name, value in weights.items():
        target = initial.get(name)
        grown[name] = value if target is None else _embed(name, value, target, small, large)
    for name, target in initial.items():
        if name.startswith(_HEATMAP) and not name.startswith(_HEAD) and name not in weights:
            grown[name] = np.zeros(target.shape) if _ends_branch(name) else target
    return grown


def _embed(name: str, value: np.ndarray, target: Any, small: Arch, large: Arch) -> Any:
    if value.ndim != target.ndim:
        return value
    places = []
    for size, larger in zip(value.shape, target.shape, strict=True):
        place = _channels(name, size, larger, small, large)
        if place is None:
            return value
        places.append(place)
    result = np.array(target, np.float32)
    if value.ndim > 1:
        result[..., places[-1]] = 0  # from new inputs to the outputs of the smaller model
    result[np.ix_(*places)] = value
    return result


def _channels(name: str, size: int, larger: int, small: Arch, large: Arch) -> np.ndarray | None:
    """Indices of the smaller model's channels on an axis of the larger one."""
    if size == larger:
        return np.arange(size)
    if name.startswith(_HEATMAP) and not name.startswith(_HEAD):
        return np.arange(size) if size < larger else None
    if (size, larger) != (sum(small.widths), sum(large.widths)):
        return None
    # The features are the concatenated branches.
    starts = np.cumsum((0, *large.widths[:-1]))
    return np.concatenate(
        [start + np.arange(n) for start, n in zip(starts, small.widths, strict=True)]
    )


def _ends_branch(name: str) -> bool:
    """Whether a weight is the scale or bias of the last BatchNorm before a sum."""
    *path, last = name.split(".")
    if last not in ("scale", "bias"):
        return False
    if "fuse" in path:
        # heatmap_model.stages.STAGE.MODULE.fuse.TARGET.SOURCE.STEP.bn
        target, source, step = map(int, path[5:8])
        return step == max(target - source, 1) - 1
    return path[-2] == ("conv3" if path[1] == "stage1" else "conv2")

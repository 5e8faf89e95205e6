"""Models from their configuration.

A model's configuration is a mapping of plain types, as a config file or a bundle's `config.json` holds it:

    {"heatmap": {"name": "hrnet", "arch": "w18", ...}, "heatmap_offset": None, "decode": "argmax",
     "graph": {"name": "lcgcn", ...} or None, "visibility": {"head": "none", ...}, "bn_momentum": 0.99}

`heatmap_offset` is the input pixel, in x and in y, of the middle of heatmap cell (0, 0). None, or no such
field: the cells cover the input evenly, (stride - 1) / 2. Without `visibility` there is no visibility head.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lcgcn_jax.errors import InputError, choose
from lcgcn_jax.models.cascade import CascadeConfig
from lcgcn_jax.models.hourglass import StackedHourglass
from lcgcn_jax.models.hrnet import HRNet
from lcgcn_jax.models.lcgcn import LCGCN, GraphConfig
from lcgcn_jax.models.visibility import VisibilityConfig

HeatmapModelFactory = Callable[..., nnx.Module]

_HEATMAP_MODELS: dict[str, HeatmapModelFactory] = {
    "hrnet": HRNet,
    "hourglass": StackedHourglass,
}
GRAPHS = {"lcgcn": GraphConfig, "dag": CascadeConfig}
"""`model.graph.name` -> its options: the paper's graph head, or Li et al.'s cascade."""


def register_heatmap_model(name: str, factory: HeatmapModelFactory) -> None:
    """Makes a heatmap model known as `model.heatmap.name`.

    Args:
      name: its name in configs.
      factory: `factory(num_landmarks=, bn_momentum=, dtype=, rngs=, **options)` gives a module that maps
        images `[b h w 3]` (keyword `train`) to logits `[b hh hw k]` and features `[b hh hw c]`, with
        attributes `stride` (input pixels a cell) and `feature_channels` (c) and, where the logits are
        not for a sigmoid, `activation` (one of `heatmaps.ACTIVATIONS`). The options are the other
        fields of `model.heatmap`. An attribute `head_modules`, a tuple, names the submodules that are
        its head: those whose shapes follow the number of landmarks, and what comes with these. The
        backbone, which `init_scope` can take alone, is all the rest. An attribute `remat`, False at
        first, says that it heeds `train.remat`: while it is True, what the model computes on its way
        is to be computed again for the gradient (`models.layers.run_module`). What is not made of
        `models.layers` and can fold its BatchNorm says so by a method `fold_batch_norm()`
        (`folding.fold_batch_norm`).

    Raises:
      ValueError: the name is taken.
    """
    if name in _HEATMAP_MODELS:
        raise ValueError(f"a heatmap model named {name!r} is there already")
    _HEATMAP_MODELS[name] = factory


def heatmap_model_factory(config: Mapping[str, Any]) -> HeatmapModelFactory | None:
    """The heatmap model that a configuration names; None: no such model."""
    heatmap = config.get("heatmap")
    name = heatmap.get("name") if isinstance(heatmap, Mapping) else None
    return _HEATMAP_MODELS.get(name) if isinstance(name, str) else None


def create_model(
    config: Mapping[str, Any],
    num_landmarks: int,
    *,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> LCGCN:
    """Builds a model with fresh weights.

    Raises:
      InputError: an unknown field or value, with the nearest one that exists.
    """
    require_known(
        "model",
        config,
        ("heatmap", "heatmap_offset", "decode", "graph", "visibility", "bn_momentum"),
    )
    options = dict(config["heatmap"])
    name = options.pop("name", None)
    if name not in _HEATMAP_MODELS:
        raise InputError(
            f"model.heatmap.name: no heatmap model {name!r}; there are {', '.join(_HEATMAP_MODELS)}"
        )
    factory = _HEATMAP_MODELS[name]
    own = {"self", "num_landmarks", "bn_momentum", "dtype", "rngs"}
    # A module class has its metaclass's signature; its own stands at __init__.
    signature = inspect.signature(factory.__init__ if inspect.isclass(factory) else factory)
    require_known("model.heatmap", options, set(signature.parameters) - own)
    graph = None if config["graph"] is None else graph_config(config["graph"])
    try:
        return LCGCN(
            factory(
                num_landmarks=num_landmarks,
                bn_momentum=config["bn_momentum"],
                dtype=dtype,
                rngs=rngs,
                **options,
            ),
            num_landmarks,
            decode=config["decode"],
            graph=graph,
            bn_momentum=config["bn_momentum"],
            rngs=rngs,
            heatmap_offset=_pixel_or_none(config.get("heatmap_offset")),
            visibility=visibility_config(config.get("visibility")),
        )
    except ValueError as error:
        raise InputError(f"config: {error}") from error


def graph_config(config: Mapping[str, Any]) -> GraphConfig | CascadeConfig:
    """The options of a graph from its configuration, `model.graph`.

    Raises:
      InputError: an unknown name, field or value.
    """
    options = dict(config)
    name = options.pop("name", "lcgcn")  # older bundles do not name theirs
    if name not in GRAPHS:
        raise InputError(f"model.graph.name: no graph {name!r}; there are {', '.join(GRAPHS)}")
    require_known("model.graph", options, [f.name for f in dataclasses.fields(GRAPHS[name])])
    try:
        return GRAPHS[name](**_with_tuples(options))
    except ValueError as error:
        raise InputError(f"config: {error}") from error


def visibility_config(config: Mapping[str, Any] | None) -> VisibilityConfig:
    """The options of a visibility head from its configuration, `model.visibility`.

    Raises:
      InputError: an unknown field or value.
    """
    options = dict(config or {})
    require_known(
        "model.visibility", options, [f.name for f in dataclasses.fields(VisibilityConfig)]
    )
    try:
        return VisibilityConfig(**options)
    except ValueError as error:
        raise InputError(f"config: {error}") from error


def require_known(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses keys that are not known, naming the nearest one that is.

    Raises:
      InputError: with the first unknown key.
    """
    known = sorted(known)
    for key in given:
        choose(where, key, known, kind="field")


def _pixel_or_none(origin: Any) -> float | None:
    number = isinstance(origin, int | float) and not isinstance(origin, bool)
    if origin is not None and not (number and math.isfinite(origin)):
        raise InputError(
            f"model.heatmap_offset: {origin!r} is no place in pixels; give a number, or null for cells "
            "that cover the input evenly"
        )
    return None if origin is None else float(origin)


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in fields.items()}

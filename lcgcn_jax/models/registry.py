"""Models from their configuration.

A model's configuration is a mapping of plain types, as a config file or a bundle's `config.json` holds it:

    {"heatmap": {"name": "hrnet", "arch": "w18", ...}, "decode": "argmax", "graph": {...} or None,
     "bn_momentum": 0.99}
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lcgcn_jax.errors import InputError
from lcgcn_jax.models.hourglass import StackedHourglass
from lcgcn_jax.models.hrnet import HRNet
from lcgcn_jax.models.lcgcn import LCGCN, GraphConfig

HeatmapModelFactory = Callable[..., nnx.Module]

_HEATMAP_MODELS: dict[str, HeatmapModelFactory] = {
    "hrnet": HRNet,
    "hourglass": StackedHourglass,
}


def register_heatmap_model(name: str, factory: HeatmapModelFactory) -> None:
    """Makes a heatmap model known as `model.heatmap.name`.

    Args:
      name: its name in configs.
      factory: `factory(num_landmarks=, bn_momentum=, dtype=, rngs=, **options)` gives a module that maps
        images `[b h w 3]` (keyword `train`) to logits `[b hh hw k]` and features `[b hh hw c]`, with
        attributes `stride` (input pixels a cell) and `feature_channels` (c) and, where the logits are
        not for a sigmoid, `activation` (one of `heatmaps.ACTIVATIONS`). The options are the other
        fields of `model.heatmap`. What is not made of `models.layers` and can fold its BatchNorm says so
        by a method `fold_batch_norm()` (`folding.fold_batch_norm`).

    Raises:
      ValueError: the name is taken.
    """
    if name in _HEATMAP_MODELS:
        raise ValueError(f"a heatmap model named {name!r} is there already")
    _HEATMAP_MODELS[name] = factory


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
    require_known("model", config, ("heatmap", "decode", "graph", "bn_momentum"))
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
    graph = config["graph"]
    if graph is not None:
        require_known("model.graph", graph, [f.name for f in dataclasses.fields(GraphConfig)])
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
            graph=None if graph is None else GraphConfig(**_with_tuples(graph)),
            bn_momentum=config["bn_momentum"],
            rngs=rngs,
        )
    except ValueError as error:
        raise InputError(f"config: {error}") from error


def require_known(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses keys that are not known, naming the nearest one that is.

    Raises:
      InputError: with the first unknown key.
    """
    known = sorted(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise InputError(f"{where}: unknown field {key!r}; did you mean {near[0]!r}?")


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in fields.items()}

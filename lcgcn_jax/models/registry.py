"""Registry of heatmap models and graphs, and construction of models from configurations.

The configuration of a model is a mapping of plain types, as in a config file or the `config.json` of a
bundle:

    {"heatmap": {"name": "hrnet", "arch": "w18", ...}, "heatmap_offset": None, "decode": "argmax",
     "graph": {"name": "lcgcn", ...} or None, "visibility": {"head": "none", ...}, "bn_momentum": 0.99}

`heatmap_offset` and `visibility` are optional, see `config.ModelConfig`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lcgcn_jax.errors import InputError
from lcgcn_jax.fields import constraints_of, require_known
from lcgcn_jax.models.config import (
    GRAPHS,
    HEATMAP_CONFIGS,
    CascadeConfig,
    GraphConfig,
    ModelConfig,
    VisibilityConfig,
)
from lcgcn_jax.models.hourglass import StackedHourglass
from lcgcn_jax.models.hrnet import HRNet
from lcgcn_jax.models.interfaces import HeatmapModel
from lcgcn_jax.models.lcgcn import LCGCN

HeatmapModelFactory = Callable[..., HeatmapModel]

_HEATMAP_MODELS: dict[str, HeatmapModelFactory] = {"hrnet": HRNet, "hourglass": StackedHourglass}
_REQUIRED_FIELDS = ("heatmap", "decode", "graph", "bn_momentum")
_COMMON_ARGUMENTS = {"self", "num_landmarks", "bn_momentum", "dtype", "remat", "rngs"}


def register_heatmap_model(name: str, factory: HeatmapModelFactory) -> None:
    """Register a heatmap model under a name for `model.heatmap.name`.

    Args:
      factory: class or function. `factory(num_landmarks=, bn_momentum=, dtype=, rngs=, **options)` returns
        an `nnx.Module` that implements `interfaces.HeatmapModel`, and optionally `interfaces.HasActivation`
        and `interfaces.HasHead`. The options are all other fields of `model.heatmap`. With an argument
        `remat`, it supports `train.remat`: if true, the module recomputes activations in the backward pass
        (`layers.run_module`). Modules other than those in `models.layers` can implement
        `interfaces.FoldsBatchNorm`.

    Raises:
      ValueError: the name is in use for another class or function.
    """
    other = _HEATMAP_MODELS.get(name)
    if other is not None and _place(other) != _place(factory):
        raise ValueError(f"a heatmap model named {name!r} is already registered; use another name")
    _HEATMAP_MODELS[name] = factory


def _place(factory: Any) -> object:
    """Module and name of a class or function, whose definition a notebook cell may execute again."""
    name = getattr(factory, "__qualname__", "<lambda>")
    return factory if "<lambda>" in name else (factory.__module__, name)


def heatmap_model_factory(config: Mapping[str, Any]) -> HeatmapModelFactory | None:
    """Factory of the heatmap model of a configuration; None if it is not registered."""
    heatmap: Any = config.get("heatmap")
    if not isinstance(heatmap, Mapping):
        return None
    name = cast("Mapping[str, Any]", heatmap).get("name")
    return _HEATMAP_MODELS.get(name) if isinstance(name, str) else None


def create_model(
    config: Mapping[str, Any],
    num_landmarks: int,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> LCGCN:
    """Create a model with random weights.

    Args:
      config: configuration, see the module docstring.
      remat: whether the heatmap model recomputes activations in the backward pass (`train.remat`).

    Raises:
      InputError: an unknown field or value; the message has the most similar valid one.
    """
    options = model_config(config)
    common: dict[str, Any] = {
        "num_landmarks": num_landmarks,
        "bn_momentum": options.bn_momentum,
        "dtype": dtype,
        "rngs": rngs,
    }
    try:
        heatmap_model = _create_heatmap_model(options.heatmap, common, remat=remat)
        return LCGCN(heatmap_model, num_landmarks, options, rngs=rngs)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"config: {error}") from error


def _create_heatmap_model(
    config: Mapping[str, Any], common: dict[str, Any], *, remat: bool
) -> HeatmapModel:
    options = _fields("model.heatmap", config)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in _HEATMAP_MODELS:
        raise InputError(
            f"model.heatmap.name: no heatmap model {name!r}; available: {', '.join(_HEATMAP_MODELS)}"
        )
    factory = _HEATMAP_MODELS[name]
    if name in HEATMAP_CONFIGS:
        options = _parse("model.heatmap", HEATMAP_CONFIGS[name], options)
        return factory(options, remat=remat, **common)
    # `inspect.signature` of an nnx.Module class is that of its metaclass.
    arguments = inspect.signature(
        factory.__init__ if inspect.isclass(factory) else factory
    ).parameters
    require_known("model.heatmap", options, set(arguments) - _COMMON_ARGUMENTS)
    if not remat:
        return factory(**common, **options)
    if "remat" not in arguments:
        raise InputError(
            f"config train.remat: the heatmap model {name} cannot recompute activations; set it to false, "
            "or add an argument `remat` to the model (models.layers.run_module)"
        )
    return factory(remat=True, **common, **options)


def model_config(config: Any) -> ModelConfig:
    """Parse a configuration in plain types.

    Raises:
      InputError: a required field is missing, or a field or value is unknown.
    """
    options = _fields("model", config)
    if missing := [name for name in _REQUIRED_FIELDS if name not in options]:
        raise InputError(f"model: no {missing[0]!r}; give it, as in the config of a run")
    options["heatmap"] = _fields("model.heatmap", options["heatmap"])
    if options["graph"] is not None:
        options["graph"] = graph_config(options["graph"])
    options["visibility"] = visibility_config(options.get("visibility"))
    if type(offset := options.get("heatmap_offset")) is int:
        options["heatmap_offset"] = float(offset)
    return _parse("model", ModelConfig, options)


def graph_config(config: Any) -> GraphConfig | CascadeConfig:
    """Parse `model.graph`.

    Raises:
      InputError: an unknown name, field or value.
    """
    options = _fields("model.graph", config)
    name = options.pop("name", "lcgcn")  # older bundles have no name
    if name not in GRAPHS:
        raise InputError(f"model.graph.name: no graph {name!r}; available: {', '.join(GRAPHS)}")
    return _parse("model.graph", GRAPHS[name], _with_tuples(options))


def visibility_config(config: Any) -> VisibilityConfig:
    """Parse `model.visibility`; None: no visibility head.

    Raises:
      InputError: an unknown field or value.
    """
    options = {} if config is None else _fields("model.visibility", config)
    return _parse("model.visibility", VisibilityConfig, options)


def _fields(name: str, config: Any) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise InputError(f"{name}: got {config!r}; expected fields")
    return dict(cast("Mapping[str, Any]", config))


def _parse(name: str, config_class: type[Any], options: Mapping[str, Any]) -> Any:
    parameters = dict(inspect.signature(config_class).parameters)
    require_known(name, options, parameters)
    for field, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and field not in options:
            raise InputError(f"{name}: no {field!r}; give it, as in the config of a run")
    for field, constraint in constraints_of(config_class).items():
        if field in options and not constraint.accepts(options[field]):
            raise InputError(
                f"config {name}.{field}: got {options[field]!r}; expected {constraint.text}"
            )
    try:
        return config_class(**options)
    except ValueError as error:
        raise InputError(f"config: {error}") from error


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(cast("list[Any]", value)) if isinstance(value, list | tuple) else value
        for name, value in fields.items()
    }

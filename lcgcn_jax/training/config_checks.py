"""Check of a configuration: ranges of its fields (`fields`), and rules that combine several fields."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from lcgcn_jax.errors import InputError, did_you_mean
from lcgcn_jax.fields import Constraint, constraints_of
from lcgcn_jax.models.config import GRAPHS, HEATMAP_CONFIGS
from lcgcn_jax.training.config import apply_overrides, load_config, parse_overrides
from lcgcn_jax.training.config_types import Config
from lcgcn_jax.training.optimizer import TRAINED

_STRIDE = 4  # of the heatmap models of this package

FIELDS = constraints_of(Config)
"""Field of `training.config.default_config` -> its range. `model.heatmap` and `model.graph` are below."""

HEATMAP_MODEL_FIELDS = {name: constraints_of(options) for name, options in HEATMAP_CONFIGS.items()}
"""`model.heatmap.name` -> ranges of its options. Registered models check their options themselves."""

GRAPH_FIELDS = {name: constraints_of(options) for name, options in GRAPHS.items()}
"""`model.graph.name` -> ranges of its options."""


def check_config(config: ml_collections.ConfigDict) -> None:
    """Refuse a configuration with a field that is missing, unknown or out of range.

    Raises:
      InputError: naming the field, its value and its range, or fields that contradict each other.
    """
    fields = config.to_dict()
    model = fields.get("model") or {}
    options = {
        part: model.pop(part, None)
        for part in ("heatmap", "graph")
        if isinstance(model.get(part), Mapping) or model.get(part) is None
    }
    leaves = leaf_fields(fields)
    for name, value in leaves.items():
        if group := [field for field in FIELDS if field.startswith(f"{name}.")]:
            raise InputError(f"config {name}: got {value!r}; expected fields such as {group[0]}")
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS, cutoff=0.0)
            raise InputError(f"config {name}: unknown field{hint}")
    for name, constraint in FIELDS.items():
        if name not in leaves:
            raise InputError(f"config {name}: is missing; expected {constraint.text}")
        _check(name, leaves[name], constraint)
    if options.get("heatmap") is None:
        raise InputError(
            "config model.heatmap: got None; expected fields, with the name of a model"
        )
    # `create_model` refuses options that are not in these tables, with the names of those that exist.
    for part, known, default in (
        ("heatmap", HEATMAP_MODEL_FIELDS, None),
        ("graph", GRAPH_FIELDS, "lcgcn"),
    ):
        part_options = options.get(part) or {}
        for option, constraint in known.get(part_options.get("name", default), {}).items():
            if option in part_options:
                _check(f"model.{part}.{option}", part_options[option], constraint)
    _check_together(config)


def load_checked_config(
    spec: str, words: Sequence[str]
) -> tuple[ml_collections.ConfigDict, dict[str, str]]:
    """Load a config, override fields by words `--config.NAME=VALUE`, and check it.

    Returns:
      The config, and the overrides by field name.

    Raises:
      InputError: the config cannot be used.
    """
    config, overrides = load_config(spec), parse_overrides(list(words))
    apply_overrides(config, overrides)
    check_config(config)
    return config, overrides


def leaf_fields(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of nested mappings by dotted name."""
    leaves = {}
    for key, value in fields.items():
        if isinstance(value, Mapping):
            leaves |= leaf_fields(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def check_image_size(image_size: int, stride: int) -> None:
    """Refuse crop sizes that are not a multiple of the heatmap stride.

    Args:
      stride: input pixels for each heatmap pixel of the heatmap model.

    Raises:
      InputError: naming the nearest valid sizes.
    """
    if image_size % stride:
        low = image_size // stride * stride
        raise InputError(
            f"config data.image_size: got {image_size}; expected a multiple of {stride}, the stride of the "
            f"heatmap model, such as {low or stride} or {low + stride}"
        )


def _check(name: str, value: Any, constraint: Constraint) -> None:
    if constraint.accepts(value):
        return
    hint = did_you_mean(value, constraint.choices) if isinstance(value, str) else ""
    raise InputError(f"config {name}: got {value!r}; expected {constraint.text}{hint}")


def _check_together(config: ml_collections.ConfigDict) -> None:
    train, loss, rates = config.train, config.loss, config.optimizer.learning_rate
    if config.model.heatmap.get("name") in HEATMAP_MODEL_FIELDS:
        check_image_size(config.data.image_size, _STRIDE)
    groups = TRAINED[train.mode]
    weights = {"heatmap": ["heatmap_weight"], "graph": ["coordinate_weight"]}
    if loss.heatmap_coordinate != "none":
        weights["heatmap"].append("heatmap_coordinate_weight")
    if config.model.visibility.head != "none":
        weights["graph"].append("visibility_weight")
    for values in (
        {f"loss.{name}": loss[name] for group in groups for name in weights[group]},
        {f"optimizer.learning_rate.{group}": rates[group] for group in groups},
    ):
        if not any(values.values()):
            raise InputError(
                f"config {' and '.join(values)}: got 0, so that nothing is learned in train.mode "
                f"{train.mode!r}; expected a number above 0"
            )
    if config.optimizer.method == "muon" and not ("heatmap" in groups and rates["heatmap"]):
        raise InputError(
            "config optimizer.method: 'muon' is for the kernels of the heatmap model, which does not train "
            f"with train.mode {train.mode!r} and optimizer.learning_rate.heatmap {rates['heatmap']!r}; "
            "use 'adam'"
        )
    if train.cache and (train.mode != "frozen" or config.data.views < 1):
        raise InputError(
            "config train.cache: needs a frozen heatmap model and fixed views of each face; set train.mode "
            "to frozen and data.views to the number of views, or train.cache to false"
        )
    is_built_in = config.model.heatmap.get("name") in HEATMAP_MODEL_FIELDS
    if is_built_in and train.mode == "frozen" and not config.init_from:
        raise InputError(
            "config train.mode: 'frozen' does not train the heatmap model, and its weights would be random; "
            "set init_from to a trained model"
        )
    if config.init_grow and not config.init_from:
        raise InputError("config init_grow: grows the model of init_from, which is empty; set it")

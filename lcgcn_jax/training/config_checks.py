"""Ranges of configuration fields, and rules that combine several fields."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import ml_collections

from lcgcn_jax import geometry, heatmaps
from lcgcn_jax.data.augment import DISTRIBUTIONS
from lcgcn_jax.errors import InputError, did_you_mean
from lcgcn_jax.models.config import GraphConfig, HRNetConfig, VisibilityConfig, choices_of
from lcgcn_jax.models.visibility import CLASSES
from lcgcn_jax.training.config import apply_overrides, load_config, parse_overrides
from lcgcn_jax.training.optimizer import SCHEDULES, TRAINED
from lcgcn_jax.training.pretrained import INIT_SCOPES
from lcgcn_jax.training.steps import (
    COORDINATE_LOSSES,
    HEATMAP_COORDINATE_LOSSES,
    HEATMAP_LOSSES,
)


@runtime_checkable
class Constraint(Protocol):
    """The type and the range of a field."""

    def accepts(self, value: Any) -> bool:
        """Whether the field can have this value."""
        ...

    def __str__(self) -> str:
        """What the field expects, for an error message."""
        ...


@dataclasses.dataclass(frozen=True)
class Number:
    """A number in a range, which includes its ends unless stated otherwise.

    Attributes:
      low: smallest value.
      high: largest value; infinity: any finite number from `low`.
      whole: whether it must be an `int`.
      above: whether `low` itself is excluded.
      below: whether `high` itself is excluded.
      multiple: number of which a whole number must be a multiple.
    """

    low: int | float
    high: int | float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False
    multiple: int = 1

    def accepts(self, value: Any) -> bool:
        """Whether the field can have this value."""
        # A bool is an int in Python; here it is a mistake.
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if (isinstance(value, float) and not math.isfinite(value)) or (
            self.whole and value % self.multiple
        ):
            return False
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.multiple > 1:
            kind = f"a multiple of {self.multiple}"
        low, high = f"{self.low:,}", f"{self.high:,}"
        if self.high == math.inf:
            return f"{kind} above {low}" if self.above else f"{kind} of at least {low}"
        if self.above or self.below:
            return (
                f"{kind} {'above' if self.above else 'of at least'} {low} and "
                f"{'below' if self.below else 'at most'} {high}"
            )
        return f"{kind} from {low} to {high}"


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A tuple of numbers.

    Attributes:
      item: range of each number.
      length: number of items; None: any number of at least `shortest`.
      shortest: smallest length.
      ordered: `""`; `ascending`, each above the previous one; or `low_high`, none below the previous one.
      last: required last number.
    """

    item: Number
    length: int | None = None
    shortest: int = 0
    ordered: str = ""
    last: int | None = None

    def accepts(self, value: Any) -> bool:
        """Whether the field can have this value."""
        if not isinstance(value, tuple | list) or not all(map(self.item.accepts, value)):
            return False
        if len(value) < self.shortest or self.length not in (None, len(value)):
            return False
        if self.last is not None and value[-1] != self.last:
            return False
        steps = list(itertools.pairwise(value))
        if self.ordered == "ascending":
            return all(a < b for a, b in steps)
        return self.ordered != "low_high" or all(a <= b for a, b in steps)

    def __str__(self) -> str:
        if self.ordered == "low_high":
            return f"low and high, low <= high, each {self.item}"
        text = f"a tuple, each item {self.item}"
        if self.length is not None:
            text += f", with {self.length} items"
        if self.shortest:
            text += f", with at least {self.shortest} item"
        if self.ordered == "ascending":
            text += ", in ascending order"
        return text if self.last is None else f"{text}, the last one {self.last}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A name from a list."""

    names: tuple[str, ...]

    def accepts(self, value: Any) -> bool:
        """Whether the field can have this value."""
        return isinstance(value, str) and value in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}"


@dataclasses.dataclass(frozen=True)
class Text:
    """A string."""

    may_be_empty: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether the field can have this value."""
        return isinstance(value, str) and (self.may_be_empty or bool(value.strip()))

    def __str__(self) -> str:
        return "a text" if self.may_be_empty else "a text that is not empty"


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or false."""

    def accepts(self, value: Any) -> bool:
        """Whether the field can have this value."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclasses.dataclass(frozen=True)
class Sources:
    """Folders with their weights and, for some, files of annotation offsets."""

    def accepts(self, value: Any) -> bool:
        """Whether the field can have this value."""
        if not isinstance(value, tuple | list):
            return False
        are_sources = all(
            isinstance(source, tuple | list)
            and len(source) in (2, 3)
            and Text().accepts(source[0])
            and Number(0, above=True).accepts(source[1])
            and all(map(Text().accepts, source[2:]))
            for source in value
        )
        return are_sources and len({source[0] for source in value}) == len(value)

    def __str__(self) -> str:
        return (
            "((dir, weight), ...) or (dir, weight, offsets file) for some, each folder once and each weight "
            "a number above 0"
        )


@dataclasses.dataclass(frozen=True)
class OrNull:
    """A field that may be null."""

    other: Constraint

    def accepts(self, value: Any) -> bool:
        """Whether the field can have this value."""
        return value is None or self.other.accepts(value)

    def __str__(self) -> str:
        return f"{self.other}, or null"


_STRIDE = 4  # of the heatmap models of this package
_LARGEST_INT = 2**31 - 1  # the step is an int32 in the training state

_count = Number(1, _LARGEST_INT, whole=True)
_probability = Number(0, 1)
_strength = Number(0, 1)
_not_negative = Number(0)
_widths = Numbers(Number(1, 65_536, whole=True), shortest=1)
_activation = Choice(heatmaps.ACTIVATIONS)


def _range(low: int | float, high: int | float, *, above: bool = False) -> Numbers:
    return Numbers(Number(low, high, above=above), length=2, ordered="low_high")


FIELDS: dict[str, Constraint] = {
    "scheme": Text(),
    "seed": Number(0, 2**32 - 1, whole=True),
    "init_from": Text(may_be_empty=True),
    "init_scope": Choice(tuple(INIT_SCOPES)),
    "data.dir": Text(),
    "data.sources": Sources(),
    "data.offsets": Text(may_be_empty=True),
    "data.train_split": Text(),
    "data.validation_split": Text(),
    "data.image_size": Number(16, 4_096, whole=True),
    "data.num_workers": Number(0, 1_024, whole=True),
    "data.num_threads": Number(0, 1_024, whole=True),
    "data.views": Number(0, 1_000_000, whole=True),
    "data.augment.distribution": Choice(DISTRIBUTIONS),
    "data.augment.rotation": Number(0, 180),
    "data.augment.zoom": _range(0.1, 10),
    "data.augment.shift": Number(0, 0.5),
    "data.augment.shear": Number(0, 60),
    "data.augment.aspect": Number(0, 4),
    "data.augment.perspective": Number(0, 0.3),
    "data.augment.mirror": _probability,
    "data.augment.flip_bias": Number(-0.5, 0.5),
    "data.augment.brightness": _strength,
    "data.augment.contrast": _strength,
    "data.augment.saturation": _strength,
    "data.augment.gamma": Number(0, 1, below=True),
    "data.augment.gray": _probability,
    "data.augment.motion_blur": _probability,
    "data.augment.motion_blur_length": _range(0, 0.5),
    "data.augment.noise_blend": _probability,
    "data.augment.noise_blend_weight": _range(0, 1),
    "data.augment.jpeg": _probability,
    "data.augment.jpeg_quality": _range(1, 100),
    "data.augment.occlusion": _probability,
    "data.augment.occlusion_side": _range(0, 1),
    "data.augment.blur": _probability,
    "data.augment.blur_sigma": _range(0, 0.5, above=True),
    "data.augment.noise": _probability,
    "data.augment.noise_sigma": _range(0, 255),
    "data.augment.low_light": _probability,
    "data.augment.low_light_factor": _range(0, 1),
    "data.augment.border": Choice(tuple(geometry.BORDERS)),
    "model.heatmap_offset": OrNull(Number(-64, 64)),
    "model.decode": Choice(heatmaps.DECODERS),
    "model.visibility.head": Choice(choices_of(VisibilityConfig)["head"]),
    "model.visibility.width": Number(1, 65_536, whole=True),
    "model.bn_momentum": Number(0, 1, below=True),
    "loss.sigma": Number(0.25, 16),
    "loss.heatmap": Choice(HEATMAP_LOSSES),
    "loss.heatmap_coordinate": Choice(HEATMAP_COORDINATE_LOSSES),
    "loss.heatmap_coordinate_weight": _not_negative,
    "loss.heatmap_normalization": Choice(heatmaps.NORMALIZATIONS),
    "loss.heatmap_temperature": Number(0, 1_000, above=True),
    "loss.coordinate": Choice(tuple(COORDINATE_LOSSES)),
    "loss.coordinate_weight": _not_negative,
    "loss.heatmap_weight": _not_negative,
    "loss.visibility_weight": _not_negative,
    "loss.visibility_class_weights": Numbers(_not_negative, length=len(CLASSES)),
    "optimizer.learning_rate.heatmap": _not_negative,
    "optimizer.learning_rate.graph": _not_negative,
    "optimizer.schedule": Choice(SCHEDULES),
    "optimizer.milestones": Numbers(Number(0, 1, above=True), ordered="ascending"),
    "optimizer.warmup_steps": Number(0, _LARGEST_INT, whole=True),
    "optimizer.weight_decay": Number(0, 10),
    "optimizer.clip_norm": _not_negative,
    "train.mode": Choice(tuple(TRAINED)),
    "train.cache": Flag(),
    "train.epochs": Number(0, 1_000_000, above=True),
    "train.steps": OrNull(_count),
    "train.batch_size": Number(1, 1_000_000, whole=True),
    "train.dtype": Choice(("float32", "bfloat16", "auto")),
    "train.remat": Flag(),
    "train.ema_decay": Number(0, 1, below=True),
    "train.log_every": _count,
    "train.eval_every_epochs": Number(0, 1_000_000, above=True),
    "train.eval_every": OrNull(_count),
    "train.checkpoint_every_epochs": Number(0, 1_000_000, above=True),
    "train.checkpoint_every": OrNull(_count),
    "train.keep": _count,
}
"""Field of `training.config.default_config` -> its range. `model.heatmap` and `model.graph` are below."""

HEATMAP_MODEL_FIELDS: dict[str, dict[str, Constraint]] = {
    "hrnet": {field: Choice(choices) for field, choices in choices_of(HRNetConfig).items()},
    "hourglass": {
        "stacks": Number(1, 64, whole=True),
        "width": Number(2, 65_536, whole=True, multiple=2),
        "activation": _activation,
    },
}
"""`model.heatmap.name` -> ranges of its options. Registered models check their options themselves."""

GRAPH_FIELDS: dict[str, dict[str, Constraint]] = {
    "lcgcn": {
        **{field: Choice(choices) for field, choices in choices_of(GraphConfig).items()},
        "pair_width": Number(1, 65_536, whole=True),
        "authors_conventions": Flag(),
        "embedding_widths": _widths,
        "class_widths": _widths,
        "edge_widths": dataclasses.replace(_widths, shortest=0),
        "visibility_gradient": Flag(),
        "gcn_widths": dataclasses.replace(_widths, last=2),
        "refinements": Number(0, 64, whole=True),
        "shape_refiner": Flag(),
    },
    "dag": {
        "width": Number(1, 65_536, whole=True),
        "blocks": Number(1, 64, whole=True),
        "fine_steps": Number(1, 64, whole=True),
    },
}
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
            raise InputError(f"config {name}: is missing; expected {constraint}")
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
      image_size: side of the crops, `data.image_size`.
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
    hint = ""
    if isinstance(constraint, Choice) and isinstance(value, str):
        hint = did_you_mean(value, constraint.names)
    raise InputError(f"config {name}: got {value!r}; expected {constraint}{hint}")


def _check_together(config: ml_collections.ConfigDict) -> None:
    train, loss, rates = config.train, config.loss, config.optimizer.learning_rate
    if config.model.heatmap.get("name") in HEATMAP_MODEL_FIELDS:
        check_image_size(config.data.image_size, _STRIDE)
    groups = TRAINED[train.mode]
    weights = {"heatmap": "heatmap_weight", "graph": "coordinate_weight"}
    if not any(loss[weights[group]] for group in groups):
        fields = " and ".join(f"loss.{weights[group]}" for group in groups)
        raise InputError(
            f"config {fields}: got 0, so that nothing is learned in train.mode {train.mode!r}; expected "
            "a number above 0"
        )
    if not any(rates[group] for group in groups):
        fields = " and ".join(f"optimizer.learning_rate.{group}" for group in groups)
        raise InputError(
            f"config {fields}: got 0, so that nothing is learned in train.mode {train.mode!r}; expected "
            "a number above 0"
        )
    if train.cache and (train.mode != "frozen" or config.data.views < 1):
        raise InputError(
            "config train.cache: needs a frozen heatmap model and fixed views of each face; set train.mode "
            "to frozen and data.views to the number of views, or train.cache to false"
        )
    if train.cache and config.data.sources:
        raise InputError(
            "config train.cache: is for one dataset; set data.sources to () or it to false"
        )

"""Experiment configurations: the fields there are, config files, and overrides from the command line."""

import contextlib
import dataclasses
import importlib.util
import inspect
import json
import math
import traceback
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import yaml

from lcgcn_jax import compat
from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.models.config import GraphConfig, VisibilityConfig
from lcgcn_jax.models.registry import require_known

RUN_CONFIG = "config.json"
"""Name of the configuration in a run's folder."""


def default_config() -> ml_collections.ConfigDict:
    """All fields with their default values, those of the paper; a config file changes some of them.

    - `scheme`: landmark scheme, a name or a file.
    - `seed`: of the initial weights, the order of the faces and their augmentation.
    - `init_from`: whose weights to begin with: a bundle, a workdir, a checkpoint of one, or a PyTorch
      file; see `training.pretrained.read_source`. Empty: fresh ones.
    - `init_scope`: what to take from there: `heatmap`, the heatmap model (of an ImageNet file, which has
      no head for landmarks, its backbone); `whole`; or `backbone`, the heatmap model without its head,
      for another number of landmarks.
    - `data.dir`: what `lcgcn prepare` wrote. `data.sources`: folders to train on in place of it, as
      `((dir, weight), ...)`: the faces of a batch come from them in proportion to the weights, and an epoch
      is as many faces as all of them have. The validation faces and the mean shape are those of `data.dir`.
      A source can be `(dir, weight, offsets)`, with a file that `lcgcn fit-offsets` wrote: these annotation
      offsets are removed from its landmarks, before any augmentation. `data.offsets`: the same for
      `data.dir`; empty: none. `data.train_split`, `data.validation_split`.
    - `data.image_size`: side of the crops, in pixels.
    - `data.num_workers`: worker processes of the input pipeline; 0: threads of this process.
    - `data.num_threads`: threads that make batches, in each worker if there are any.
    - `data.augment`: see `AugmentConfig`. `data.views`: how many different views of a face there are,
      one an epoch in turn; 0: without end.
    - `model.heatmap`: `name` and options of a heatmap model. `model.heatmap_offset`: input pixel of the
      middle of heatmap cell (0, 0), for weights of codes that place it elsewhere; see
      `interop.torch_weights`; None: cells cover the input evenly. `model.decode`: see `heatmaps.decode`.
      `model.graph`: `name` and options of a graph, `lcgcn` (see `GraphConfig`) or `dag` (see
      `CascadeConfig`); None for a heatmap model alone. `model.visibility`: options of the head that
      predicts which landmarks are visible (see `VisibilityConfig`); `head` `none` is no head. It
      trains with the graph, on faces whose data has visibility labels, such as MERL-RAV's.
      `model.bn_momentum`: part of BatchNorm's running statistics kept a step.
    - `loss.sigma`: of the target heatmaps, in cells. `loss.heatmap`: `focal` (the paper), `mse` or
      `adaptive_wing`, of a sigmoid or, with `model.heatmap.activation` `linear`, of the outputs
      themselves. `loss.coordinate`: `l1` (the paper), `smooth_l1` or `wing`; see `steps.total_loss`.
      `loss.coordinate_weight` and `loss.heatmap_weight`: the paper's lambda1 and lambda2.
      `loss.visibility_weight`: of the visibility head's cross entropy. `loss.visibility_class_weights`: of
      the classes visible, externally occluded and self-occluded in it. Other weights than equal ones
      counter rare classes, but then `visibility` is not the probability in the data any more.
    - `optimizer`: see `training.optimizer`.
    - `train.mode`: `joint`, `frozen` (the heatmap model does not train) or `heatmap_only`.
      `train.cache`: in `frozen` mode and with `data.views`, compute what the graph sees once and keep it
      in memory.
    - `train.epochs`: length of the training, in epochs of the training split; `train.steps`: the same in
      steps, and where it is given it counts. `train.eval_every_epochs` and `train.eval_every`,
      `train.checkpoint_every_epochs` and `train.checkpoint_every`: between two validations and between two
      checkpoints, likewise. `resolve_steps` turns epochs into steps when the training starts.
    - `train.batch_size` (over all devices), `train.dtype` (`float32`, `bfloat16`, or
      `auto`: bfloat16 where there is an accelerator), `train.remat` (forget what the heatmap model's
      modules compute on their way, and compute it again for the gradient: less memory, a larger
      batch), `train.ema_decay` (0: none), `train.log_every` (in steps); `train.keep` checkpoints stay.

    The types and ranges of all fields are in `training.config_checks`.
    """
    return ml_collections.ConfigDict(
        {
            "scheme": "wflw98",
            "seed": 0,
            "init_from": "",
            "init_scope": "heatmap",
            "data": {
                "dir": "data/wflw",
                "sources": (),
                "offsets": "",
                "train_split": "train",
                "validation_split": "validation",
                "image_size": 256,
                "num_workers": 0,
                "num_threads": 4,
                "augment": dataclasses.asdict(AugmentConfig()),
                "views": 0,
            },
            "model": {
                "heatmap": {
                    "name": "hrnet",
                    "arch": "w18",
                    "features": "concat",
                    "activation": "sigmoid",
                },
                "heatmap_offset": None,
                "decode": "argmax",
                "graph": {"name": "lcgcn", **dataclasses.asdict(GraphConfig.paper())},
                "visibility": dataclasses.asdict(VisibilityConfig()),
                "bn_momentum": 0.99,
            },
            "loss": {
                "sigma": 1.5,
                "heatmap": "focal",
                "coordinate": "l1",
                "coordinate_weight": 1.0,
                "heatmap_weight": 1.0,
                "visibility_weight": 1.0,
                "visibility_class_weights": (1.0, 1.0, 1.0),
            },
            "optimizer": {
                "learning_rate": {"heatmap": 1e-4, "graph": 1e-3},
                "schedule": "step",
                "milestones": (0.5, 0.83),
                "warmup_steps": 0,
                "weight_decay": 0.0,
                "clip_norm": 0.0,
            },
            "train": {
                "mode": "joint",
                "cache": False,
                "epochs": 60.0,
                "steps": None,
                "batch_size": 16,
                "dtype": "auto",
                "remat": False,
                "ema_decay": 0.0,
                "log_every": 20,
                "eval_every_epochs": 2.0,
                "eval_every": None,
                "checkpoint_every_epochs": 2.0,
                "checkpoint_every": None,
                "keep": 2,
            },
        }
    )


def reduce_for_cpu(config: ml_collections.ConfigDict, *, epochs: int | float) -> None:
    """Turns a full-size configuration into one for two CPU cores, trained from scratch at 128 px.

    HRNet-W18-small-v1 (another heatmap model stays as it is), batch 16, a higher learning rate with
    warm-up and cosine decay, a moving average of the weights; and, since a cell of the 32 x 32 maps is 4
    pixels, sub-pixel decoding, and a graph that refines instead of replacing it.

    Args:
      config: changed in place.
      epochs: how often each training face is seen.
    """
    config.data.image_size = 128
    if config.model.heatmap.name == "hrnet":
        config.model.heatmap.arch = "w18-small-v1"
    config.model.bn_momentum = 0.95
    _start_between_cells(config)
    config.loss.sigma = 1.0
    config.optimizer.learning_rate = {"heatmap": 1e-3, "graph": 1e-3}
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.train.batch_size = 16
    config.train.ema_decay = 0.998
    set_epochs(config, epochs, eval_every=2)


def _start_between_cells(config: ml_collections.ConfigDict) -> None:
    config.model.decode = "dark"
    if config.model.graph is not None and config.model.graph.name == "lcgcn":
        config.model.graph.output = "residual"
        config.model.graph.sampling = "bilinear"


def use_best_recipe(config: ml_collections.ConfigDict) -> None:
    """Turns a configuration into the one that won on 300W's faces (docs/research/results.md).

    A sub-pixel start, neighbors' guesses, two more turns that read windows of the maps, a coordinate loss
    that the heatmap model feels too, and damaged training faces.

    Args:
      config: changed in place.
    """
    _start_between_cells(config)
    config.model.graph.update(dataclasses.asdict(GraphConfig.best()))
    # At 1, as in the paper, its gradient in the heatmap model was a fortieth of the focal loss's.
    config.loss.coordinate_weight = 20.0
    config.data.augment.rotation = 15.0
    config.data.augment.zoom = (0.88, 1.12)
    config.data.augment.shift = 0.05
    config.data.augment.occlusion = 0.3
    config.data.augment.blur = 0.25
    config.data.augment.noise = 0.1
    config.data.augment.low_light = 0.1


def train_from_scratch(config: ml_collections.ConfigDict, *, epochs: int | float) -> None:
    """Sets a schedule for a full-size model without pretrained weights, on an accelerator.

    Batch 64, 1e-3 with warm-up and cosine decay, a moving average of the weights.

    Args:
      config: changed in place.
      epochs: how often each training face is seen.
    """
    config.optimizer.learning_rate = {"heatmap": 1e-3, "graph": 1e-3}
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 500
    config.train.batch_size = 64
    config.train.ema_decay = 0.998
    set_epochs(config, epochs, eval_every=10)


def set_epochs(
    config: ml_collections.ConfigDict, epochs: int | float, *, eval_every: int | float
) -> None:
    """Sets the length of the training, with a validation and a checkpoint every `eval_every` epochs."""
    config.train.epochs = epochs
    config.train.eval_every_epochs = config.train.checkpoint_every_epochs = eval_every
    config.train.update(dict.fromkeys(EPOCHS))


EPOCHS = {
    "steps": "epochs",
    "eval_every": "eval_every_epochs",
    "checkpoint_every": "checkpoint_every_epochs",
}
"""Fields of `train` in steps -> the field that gives the same length in epochs."""


def resolve_steps(
    config: ml_collections.ConfigDict,
    num_faces: int,
    started_with: Mapping[str, Any] | None = None,
    overridden: Collection[str] = (),
) -> ml_collections.ConfigDict:
    """A copy of a configuration with the number of steps in every field of `EPOCHS`.

    Args:
      config: as `default_config` describes. A number of steps that is given stays as it is.
      num_faces: faces in the training split, over which an epoch goes once.
      started_with: the configuration that the run was started with, if it was started before. Versions of
        before `train.epochs` wrote the steps only: the run keeps those.
      overridden: names of the fields that were set on the command line. A length in epochs among them
        takes the place of the steps that the run was started with.
    """
    old = (started_with or {}).get("train", {})
    kept = old if "epochs" not in old else {}
    resolved = config.copy_and_resolve_references()
    for steps, epochs in EPOCHS.items():
        if config.train[steps] is None:
            # Rounded, so that 0.1 epochs of 30 faces are 3 and not 3.0000000000000004.
            batches = round(config.train[epochs] * num_faces / config.train.batch_size, 6)
            in_epochs = max(1, math.floor(batches))
            is_overridden = f"train.{epochs}" in overridden
            resolved.train[steps] = in_epochs if is_overridden else kept.get(steps) or in_epochs
    return resolved


def describe_steps(config: ml_collections.ConfigDict, num_faces: int) -> str:
    """The length of a training, for people. The configuration is one of `resolve_steps`."""
    train = config.train
    epochs = train.steps * train.batch_size / num_faces
    return (
        f"{train.steps:,} steps of {train.batch_size} faces, {epochs:.1f} epochs of {num_faces:,}; "
        f"validation every {train.eval_every:,} steps, checkpoint every {train.checkpoint_every:,}"
    )


def freeze_heatmap_model(config: ml_collections.ConfigDict, *, init_from: str) -> None:
    """Turns a configuration into the paper's ablation: the graph alone trains, on a trained heatmap model.

    Learning rate 1e-3 for 2 epochs, then 1e-4 for 30, on what the heatmap model says of 8 views of each
    face, computed once.

    Args:
      config: changed in place.
      init_from: where the heatmap model's weights are.
    """
    config.init_from = init_from
    config.train.mode = "frozen"
    config.train.cache = True
    config.data.views = 8
    config.optimizer.learning_rate.graph = 1e-3
    config.optimizer.schedule = "step"
    config.optimizer.milestones = (2 / 32,)
    config.optimizer.warmup_steps = 0
    set_epochs(config, 32, eval_every=4)


def parse_argument(argument: str | None, known: Iterable[str]) -> set[str]:
    """The words behind the colon of `--config file.py:word,word`.

    Raises:
      InputError: one is none of the known ones.
    """
    words = [word for word in (argument or "").split(",") if word]
    require_known("config argument", words, known)
    return set(words)


def load_config(spec: str) -> ml_collections.ConfigDict:
    """Reads a config file.

    Args:
      spec: a file, or the name of one that comes with the project (`demo`); behind a colon the argument
        of its `get_config`, e.g. `configs/w300_lcgcn.py:small`.

    Raises:
      InputError: no such file, no `get_config` in it, or fields that are not there.
    """
    name, _, argument = spec.partition(":")
    path = _find(name)
    module_spec = importlib.util.spec_from_file_location(f"lcgcn_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # a config file is a program, and may raise anything
        raise InputError(f"{path}: cannot be run as a config: {_raised(error, path)}") from error
    if not hasattr(module, "get_config"):
        raise InputError(f"{path}: a config file defines get_config(arg)")
    takes_argument = inspect.signature(module.get_config).parameters
    if argument and not takes_argument:
        raise InputError(f"{path}: takes no argument, but got {argument!r}")
    try:
        config = module.get_config(argument) if takes_argument else module.get_config()
    except InputError:
        raise
    except Exception as error:  # as above
        raise InputError(f"{path}: {_raised(error, path)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(
            f"{path}: get_config has to return a ConfigDict, not {type(config).__name__}"
        )
    return config.lock()


def _raised(error: Exception, path: Path) -> str:
    """An exception of a config file in one line, with the line of the file that it comes from."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    place = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {one_line(error)}{place}"


def config_names() -> list[str]:
    """The configs that come with the project, by the names that `load_config` knows them by."""
    return sorted(_own_configs())


def _own_configs() -> dict[str, Path]:
    package = importlib.util.find_spec("lcgcn_jax.configs")
    folders = package.submodule_search_locations if package else ()
    return {file.stem: file for folder in folders for file in Path(folder).glob("[!_]*.py")}


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    own = _own_configs()
    if name in own:
        return own[name]
    raise InputError(f"{name}: no such config file; the project's own are {', '.join(sorted(own))}")


def apply_overrides(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets fields by their dotted names, from text as the command line gives it.

    A length in epochs takes the place of one in steps that the config file gives (`EPOCHS`).

    Raises:
      InputError: an unknown field (the nearest one is named), a value of another type, or the same length
        in steps and in epochs.
    """
    for steps, epochs in ((f"train.{a}", f"train.{b}") for a, b in EPOCHS.items()):
        if steps in overrides and epochs in overrides:
            raise InputError(
                f"config {steps} and {epochs}: both set the same length; give one of them"
            )
        if epochs in overrides:
            overrides = {steps: "null", **overrides}
    for name, text in overrides.items():
        *path, last = name.split(".")
        node = config
        for i, part in enumerate(path):
            require_known("config " + ".".join(path[:i]), [part], _keys(node))
            node = node[part]
            if not isinstance(node, ml_collections.ConfigDict):
                raise InputError(f"config {name}: {'.'.join(path[: i + 1])} has no fields")
        require_known("config " + ".".join(path), [last], _keys(node))
        node[last] = _typed(name, text, node[last])


def _keys(node: ml_collections.ConfigDict) -> list[str]:
    return list(node.keys())


def _typed(name: str, text: str, old: Any) -> Any:
    if name == "data.sources":  # [[a, 1], [b, 2]]
        pairs = _from_yaml(name, text) or []
        if not isinstance(pairs, list):
            raise InputError(f"config {name}: {text!r} is no list; give [[DIR, WEIGHT], ...]")
        return tuple(tuple(pair) if isinstance(pair, list) else pair for pair in pairs)
    if isinstance(old, tuple):
        # (a, b), [a, b] or a,b
        items = _from_yaml(name, "[" + text.strip().strip("()[]") + "]")
        return tuple(_typed(name, str(item), old[0]) for item in items) if old else tuple(items)
    value = text if isinstance(old, str) else _from_yaml(name, text)
    if value is None and name.removeprefix("train.") in EPOCHS:
        return None
    if isinstance(old, float) and type(value) in (int, str):
        # YAML reads 1e-3 as text.
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(old, ml_collections.ConfigDict):
        if value is None:
            return None
        raise InputError(f"config {name}: has fields of its own; set one of them, or null")
    if old is not None and type(value) is not type(old):
        raise InputError(f"config {name}: {text!r} is not of the type of its value {old!r}")
    return value


def _from_yaml(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date that is none
        raise InputError(f"config {name}: {text!r} cannot be read: {one_line(error)}") from error


def to_json(config: ml_collections.ConfigDict) -> str:
    """The configuration as text, the same for the same fields."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True) + "\n"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Fields in which two configurations differ, as `name: old -> new`."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), prefix + key
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, name + ".")
        elif a != b:
            found.append(f"{name}: {a!r} -> {b!r}")
    return found


def fill_in(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """An older version's configuration, and at their defaults the fields of `new` that it did not know."""
    return _filled(old, new, json.loads(to_json(default_config())))


def _filled(old: Mapping, new: Mapping, default: Mapping) -> dict[str, Any]:
    unknown = (new.keys() & default.keys()) - old.keys()
    filled = {key: default[key] for key in unknown}
    for key, value in old.items():
        nested = (value, new.get(key), default.get(key))
        filled[key] = _filled(*nested) if all(isinstance(n, Mapping) for n in nested) else value
    return filled


_PREFIX = "--config."


def parse_overrides(rest: list[str]) -> dict[str, str]:
    """`--config.a.b=v` and `--config.a.b v` to `{"a.b": "v"}`.

    Raises:
      InputError: something else is among them, or a value is missing.
    """
    overrides, words = {}, iter(rest)
    for word in words:
        if not word.startswith(_PREFIX):
            raise InputError(
                f"unrecognized: {word}; fields of the config are set with {_PREFIX}NAME=VALUE"
            )
        name, equals, value = word[len(_PREFIX) :].partition("=")
        if not equals:
            value = next(words, None)
            if value is None:
                raise InputError(f"{word}: a value is missing; give {word}=VALUE")
        overrides[name] = value
    return compat.upgrade_overrides(overrides)

"""Config files as `ml_collections.ConfigDict`: defaults, recipes, files, and command-line overrides.

Recipes change a configuration in place.
"""

import dataclasses
import importlib.machinery
import importlib.util
import inspect
import json
import os
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import ml_collections
import yaml

from lcgcn_jax import compat
from lcgcn_jax.errors import InputError, choose, one_line
from lcgcn_jax.fields import constraints_of, require_known
from lcgcn_jax.models.config import GRAPHS, HEATMAP_CONFIGS, GraphConfig
from lcgcn_jax.training.config_types import EPOCHS, Config

RUN_CONFIG = "config.json"
"""Name of the configuration file in the workdir of a run."""

_NUMBERS: dict[str, tuple[Callable[[str], int | float], str]] = {
    "tag:yaml.org,2002:int": (int, r"[-+]?\d[\d_]*$"),
    "tag:yaml.org,2002:float": (
        lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
        r"([-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.?(inf|nan))$",
    ),
}
"""YAML tag -> conversion and pattern of numbers on the command line."""


def default_config() -> ml_collections.ConfigDict:
    """All fields of `config_types.Config` with the choices of the paper. Config files change them."""
    return ml_collections.ConfigDict(Config().to_dict())


def reduce_for_cpu(config: ml_collections.ConfigDict, *, epochs: int | float) -> None:
    """Reduce a full-size configuration to one for two CPU cores, trained from scratch at 128 px.

    Sets HRNet-W18-small-v1 (another heatmap model stays), batch 16, a higher learning rate with warm-up and
    cosine decay, and a moving average of the weights. Since a pixel of the 32 x 32 heatmaps covers 4 pixels,
    it also sets sub-pixel decoding and a graph with residual output.
    """
    config.data.image_size = 128
    if config.model.heatmap.name == "hrnet":
        config.model.heatmap.arch = "w18-small-v1"
    config.model.bn_momentum = 0.95
    _use_subpixel_decoding(config)
    config.loss.sigma = 1.0
    config.optimizer.learning_rate = {"heatmap": 1e-3, "graph": 1e-3}
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.train.batch_size = 16
    config.train.ema_decay = 0.998
    set_epochs(config, epochs, eval_every=2)


def _use_subpixel_decoding(config: ml_collections.ConfigDict) -> None:
    config.model.decode = "dark"
    if config.model.graph is not None and config.model.graph.name == "lcgcn":
        config.model.graph.output = "residual"
        config.model.graph.sampling = "bilinear"


def use_best_recipe(config: ml_collections.ConfigDict) -> None:
    """Apply the settings with the lowest error on 300W (docs/research/results.md).

    Sub-pixel decoding, offset voting, two patch refinement stages, a coordinate loss with a large gradient in
    the heatmap model, and corruptions of the training faces.
    """
    _use_subpixel_decoding(config)
    config.model.graph.update(dataclasses.asdict(GraphConfig.best()))
    # At 1, as in the paper, its gradient in the heatmap model was 1/40 of that of the focal loss.
    config.loss.coordinate_weight = 20.0
    config.data.augment.rotation = 15.0
    config.data.augment.zoom = (0.88, 1.12)
    config.data.augment.shift = 0.05
    config.data.augment.occlusion = 0.3
    config.data.augment.blur = 0.25
    config.data.augment.noise = 0.1
    config.data.augment.low_light = 0.1


def train_from_scratch(config: ml_collections.ConfigDict, *, epochs: int | float) -> None:
    """Set a schedule for a full-size model without pretrained weights, on an accelerator.

    Batch 64, 1e-3 with warm-up and cosine decay, a moving average of the weights.
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
    """Set the length of the training, with a validation and a checkpoint every `eval_every` epochs."""
    config.train.epochs = epochs
    config.train.eval_every_epochs = config.train.checkpoint_every_epochs = eval_every
    config.train.update(dict.fromkeys(EPOCHS))


def freeze_heatmap_model(config: ml_collections.ConfigDict, *, init_from: str) -> None:
    """Set up the paper's ablation: only the graph trains, on a trained heatmap model.

    Learning rate 1e-3 for 2 epochs, then 1e-4 for 30, on cached features of 8 views of each face.
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
    """Parse the words after the colon of `--config file.py:word,word`.

    Raises:
      InputError: a word is not among the known ones.
    """
    words = [word for word in (argument or "").split(",") if word]
    require_known("config argument", words, known)
    return set(words)


def load_config(spec: str | Path) -> ml_collections.ConfigDict:
    """Read a config file.

    Args:
      spec: a file, or the name of a config of the project (`demo`); after a colon the argument of its
        `get_config`, as in `configs/w300_lcgcn.py:small`.

    Raises:
      InputError: the file does not exist, has no `get_config`, or sets unknown fields.
    """
    name, _, argument = str(spec).partition(":")
    path = _find_config(name)
    if path.suffix.lower() != ".py":
        raise InputError(
            f"{path}: a config is a Python file; a run resumes from the config.json of its workdir by itself"
        )
    loader = importlib.machinery.SourceFileLoader(f"lcgcn_config_{path.stem}", str(path))
    module_spec = importlib.util.spec_from_file_location(loader.name, path, loader=loader)
    assert module_spec is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a config file is a program, and may raise anything
        raise InputError(f"{path}: cannot be run as a config: {_with_line(error, path)}") from error
    if not callable(getattr(module, "get_config", None)):
        raise InputError(f"{path}: a config file defines get_config(arg)")
    takes_argument = inspect.signature(module.get_config).parameters
    if argument and not takes_argument:
        raise InputError(f"{path}: takes no argument, but got {argument!r}")
    try:
        config = module.get_config(argument) if takes_argument else module.get_config()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # as above
        raise InputError(f"{path}: {_with_line(error, path)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(
            f"{path}: get_config has to return a ConfigDict, not {type(config).__name__}"
        )
    return ml_collections.ConfigDict(compat.upgrade_config(config.to_dict())).lock()


def _with_line(error: BaseException, path: Path) -> str:
    """Exception of a config file as one line of text, with its line number in the file."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    place = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {one_line(error)}{place}"


def config_names() -> list[str]:
    """Names of the project's configs, as `load_config` accepts them."""
    return sorted(_project_configs())


def _project_configs() -> dict[str, Path]:
    package = importlib.util.find_spec("lcgcn_jax.configs")
    folders = (package and package.submodule_search_locations) or ()
    # A checkout that is not installed, as with `python -m lcgcn_jax`, has them next to the package.
    checkout = Path(__file__).parents[2]
    if not folders and (checkout / "pyproject.toml").is_file():
        folders = (checkout / "configs",)
    return {file.stem: file for folder in folders for file in Path(folder).glob("[!_]*.py")}


def _find_config(name: str) -> Path:
    if os.path.isfile(name):  # unlike Path.is_file, False for a name that is too long
        return Path(name)
    configs = _project_configs()
    if name in configs:
        return configs[name]
    stem = Path(name).stem
    advice = f"; the project has {', '.join(sorted(configs))}" if configs else ""
    if stem in configs:
        advice = f"; for the config of the project give only its name, {stem}"
    raise InputError(f"{name}: no such config file{advice}")


def apply_overrides(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Set fields by their dotted names, from the text of the command line.

    A length in epochs replaces a length in steps that the config file sets (`EPOCHS`).

    Raises:
      InputError: an unknown field (the message names the nearest one), a value of another type, or the same
        length both in steps and in epochs.
    """
    for steps, epochs in ((f"train.{a}", f"train.{b}") for a, b in EPOCHS.items()):
        if steps in overrides and epochs in overrides:
            raise InputError(
                f"config {steps} and {epochs}: both set the same length; give one of them"
            )
        if epochs in overrides:
            overrides = {steps: "null", **overrides}
    # First, because another name replaces the other options.
    for part, kinds in (("heatmap", HEATMAP_CONFIGS), ("graph", GRAPHS)):
        options, name = config.model.get(part), overrides.get(f"model.{part}.name", "")
        if name and part == "graph":  # heatmap models can be registered
            choose("config model.graph.name", name, GRAPHS)
        if name in kinds and (options is None or name != options.get("name")):
            config.model[part] = {"name": name} | _defaults(kinds[name])
    for name, text in overrides.items():
        *path, last = name.split(".")
        node = config
        for i, part in enumerate(path):
            require_known(f"config {'.'.join(path[:i])}".rstrip(), [part], node.keys())
            node = node[part]
            if not isinstance(node, ml_collections.ConfigDict):
                parent = ".".join(path[: i + 1])
                if node is None and parent == "model.graph":
                    raise InputError(
                        f"config {name}: model.graph is null; set model.graph.name too"
                    )
                raise InputError(f"config {name}: {parent} has no fields")
        require_known(f"config {'.'.join(path)}".rstrip(), [last], node.keys())
        node[last] = _parse_value(name, text, node[last])


def _defaults(options: type[Any]) -> dict[str, Any]:
    """Defaults of the options of a heatmap model or graph; the first choice where there is none."""
    constraints = constraints_of(options)
    return {
        field.name: constraints[field.name].choices[0]
        if field.default is dataclasses.MISSING
        else field.default
        for field in dataclasses.fields(options)
    }


def _parse_value(name: str, text: str, old: Any) -> Any:
    """Parse the text of a field in the type of its old value."""
    if name == "model.graph" and text.lower() in ("none", "null"):
        return None
    if name == "data.sources":  # [[a, 1], [b, 2]]
        pairs = _parse_yaml(name, text) or []
        if not isinstance(pairs, list):
            raise InputError(f"config {name}: {text!r} is not a list; give [[DIR, WEIGHT], ...]")
        return tuple(tuple(pair) if isinstance(pair, list) else pair for pair in pairs)
    if isinstance(old, tuple):
        # (a, b), [a, b] or a,b
        items = _parse_yaml(name, "[" + text.strip().strip("()[]") + "]")
        return tuple(_parse_value(name, str(i), old[0]) for i in items) if old else tuple(items)
    if isinstance(old, str):
        return "" if text in ("None", "null") else text
    value = _parse_yaml(name, text)
    if value is None and name.removeprefix("train.") in EPOCHS:
        return None
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if isinstance(old, ml_collections.ConfigDict):
        advice = ", or null" if name == "model.graph" else ""
        raise InputError(f"config {name}: is a group of fields; set one of them{advice}")
    if old is not None and type(value) is not type(old):
        kinds = {bool: "true or false", int: "a whole number", float: "a number"}
        expected = kinds.get(type(old), type(old).__name__)
        raise InputError(f"config {name}: got {text!r}; expected {expected}, such as {old!r}")
    return value


class _Loader(yaml.SafeLoader):
    """YAML loader with the numbers of YAML 1.2: 010 is ten, 1e-3 a number and 1:30 a text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


for _tag, (_convert, _pattern) in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+.0123456789in"))
    _Loader.add_constructor(_tag, lambda loader, node, convert=_convert: convert(node.value))


def _parse_yaml(name: str, text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date
        raise InputError(f"config {name}: {text!r} cannot be read: {one_line(error)}") from error


_PREFIX = "--config."


def parse_overrides(words: list[str]) -> dict[str, str]:
    """Parse `--config.a.b=v` and `--config.a.b v` to `{"a.b": "v"}`.

    Raises:
      InputError: another argument is among them, or a value is missing.
    """
    overrides, remaining = {}, iter(words)
    for word in remaining:
        if not word.startswith(_PREFIX):
            raise InputError(
                f"unrecognized: {word}; fields of the config are set with {_PREFIX}NAME=VALUE"
            )
        name, equals, value = word[len(_PREFIX) :].partition("=")
        if not equals:
            value = next(remaining, None)
            if value is None:
                raise InputError(f"{word}: a value is missing; give {word}=VALUE")
        overrides[name] = value
    return compat.upgrade_overrides(overrides)


def to_json(config: Config | ml_collections.ConfigDict) -> str:
    """The configuration as JSON with sorted fields."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True) + "\n"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Fields in which two configurations differ, as `name: old -> new`."""
    changes = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), prefix + key
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changes += differences(a, b, name + ".")
        elif a != b:
            changes.append(f"{name}: {a!r} -> {b!r}")
    return changes


def fill_in(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Add the fields of `new` that an older configuration lacks, with their default values."""
    return _fill_in(old, new, json.loads(to_json(Config())))


def _fill_in(old: Mapping, new: Mapping, default: Mapping) -> dict[str, Any]:
    missing = (new.keys() & default.keys()) - old.keys()
    filled = {key: default[key] for key in missing}
    for key, value in old.items():
        nested = (value, new.get(key), default.get(key))
        if all(isinstance(n, Mapping) for n in nested):
            value = _fill_in(value, new[key], default[key])
        filled[key] = value
    return filled

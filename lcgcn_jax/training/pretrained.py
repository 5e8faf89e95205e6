"""Initial weights from a bundle, a checkpoint or a PyTorch file."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lcgcn_jax.errors import InputError
from lcgcn_jax.geometry import centered_offset
from lcgcn_jax.interop.torch_files import PICKLED, SAFETENSORS, read_state_dict
from lcgcn_jax.interop.torch_weights import map_weights
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.bundles import BEST, CONFIG, WEIGHTS, Bundle, check_weights, load_bundle
from lcgcn_jax.models.growth import can_grow, grow_weights
from lcgcn_jax.models.hrnet import ARCHS
from lcgcn_jax.models.hub import hub_reference
from lcgcn_jax.models.interfaces import HasHead
from lcgcn_jax.models.lcgcn import LCGCN
from lcgcn_jax.models.weights import Weights
from lcgcn_jax.storage import BucketPath, as_path
from lcgcn_jax.training.checkpoints import CHECKPOINTS, latest_checkpoint, read_checkpoint
from lcgcn_jax.training.config import differences
from lcgcn_jax.training.config_types import Config, InitScope

INIT_SCOPES: dict[InitScope, str] = {
    "heatmap": "heatmap model",
    "whole": "whole model",
    "backbone": "backbone",
}
"""Value of `init_scope` -> the part of the weights, for messages."""

_HEATMAP = "heatmap_model."
_VISIBILITY = ("visibility.", "graph.gate.")


@dataclasses.dataclass(frozen=True)
class Source:
    """Pretrained weights.

    Attributes:
      model: configuration of their model.
      num_landmarks: number of its landmarks; None for a backbone without a head.
      weights: weights by flat name; without those of a head for a backbone.
    """

    model: Mapping[str, Any]
    num_landmarks: int | None
    weights: Mapping[str, np.ndarray]


def load_pretrained_weights(
    config: Config, scheme: LandmarkScheme, model: LCGCN, params: Weights, batch_stats: Weights
) -> tuple[Weights, Weights, str]:
    """Replace random weights with those of `config.init_from`.

    Args:
      scheme: landmarks to train for.
      model: model to train; its weights are not used.

    Returns:
      Parameters, statistics, and a line of text that describes what was loaded.

    Raises:
      InputError: `init_from` cannot be read or does not fit the model, or weights that it lacks would be
        random and not train.
    """
    path = hub_reference(config.init_from) or as_path(config.init_from)
    scope = config.init_scope
    head = _head_prefixes(config, model)
    source = read_source(path, config)
    if config.init_grow:
        source = _grow(path, source, config, params | batch_stats)
    is_head_random = scope == "backbone" or source.num_landmarks is None
    _check_landmarks(path, source, config, scheme, is_head_random=is_head_random)
    # A visibility head can be added to a trained model, or removed.
    changed = tuple(
        part for part in _VISIBILITY if _has_part(params, part) != _has_part(source.weights, part)
    )
    included, excluded = _HEATMAP, head if is_head_random else ()
    if scope == "whole":
        included, excluded = "", changed

    def in_scope(weights: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in weights.items()
            if name.startswith(included) and not name.startswith(excluded)
        }

    try:
        check_weights(path, in_scope(source.weights), in_scope(params | batch_stats))
    except InputError as error:
        raise InputError(f"{error}{_config_differences(source, config)}") from error
    loaded = {name: jnp.asarray(v, jnp.float32) for name, v in in_scope(source.weights).items()}
    message = f"starts with the {INIT_SCOPES['backbone' if is_head_random else scope]} of {path}"
    if config.init_grow:
        message += f", grown to {config.model.heatmap['arch']}"
    if is_head_random:
        message += "; the head is random"
    else:
        message += _heatmap_differences(path, source, model, config.train.mode)
    if scope == "whole" and changed:
        is_added = any(_has_part(params, prefix) for prefix in changed)
        message += _visibility_change(path, config, is_added=is_added)
    return (
        {name: loaded.get(name, value) for name, value in params.items()},
        {name: loaded.get(name, value) for name, value in batch_stats.items()},
        message,
    )


def _head_prefixes(config: Config, model: LCGCN) -> tuple[str, ...]:
    """Prefixes of the weights in the head of the heatmap model."""
    heatmap_model = model.heatmap_model
    if isinstance(heatmap_model, HasHead):
        return tuple(f"{_HEATMAP}{module}." for module in heatmap_model.head_modules)
    if config.init_scope == "backbone":
        raise InputError(
            f"config init_scope: 'backbone' excludes the head, and model.heatmap "
            f"{config.model.heatmap['name']!r} does not define its head; add an attribute `head_modules`"
        )
    return ()


def _check_landmarks(
    path: str | Path,
    source: Source,
    config: Config,
    scheme: LandmarkScheme,
    *,
    is_head_random: bool,
) -> None:
    """Check that weights have the head that the training needs, for its landmarks."""
    if config.init_scope == "whole" and source.num_landmarks is None:
        raise InputError(f"{path}: has only a backbone; set config.init_scope to 'backbone'")
    if is_head_random and config.train.mode == "frozen":
        raise InputError(
            f"{path}: the head would be random, and train.mode 'frozen' does not train it; start from a "
            "trained heatmap model, or use 'joint' or 'heatmap_only'"
        )
    if not is_head_random and source.num_landmarks != scheme.num_landmarks:
        raise InputError(
            f"{path}: its heatmaps are of {source.num_landmarks} landmarks, and {scheme.name} has "
            f"{scheme.num_landmarks}; set config.init_scope to 'backbone' to use all layers before them"
        )


def _visibility_change(path: str | Path, config: Config, *, is_added: bool) -> str:
    if is_added and config.train.mode == "heatmap_only":
        raise InputError(
            f"{path}: has no visibility head, and train.mode 'heatmap_only' does not train a random "
            "one; use 'joint' or 'frozen', or set config.model.visibility.head to none"
        )
    return f"; the visibility head is {'random' if is_added else 'dropped'}"


def _has_part(weights: Mapping[str, Any], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in weights)


def read_source(path: str | Path, config: Config) -> Source:
    """Read pretrained weights.

    Args:
      path: a bundle; a model on the Hub, `hf://owner/repo`; a training workdir (its best model, or, before
        its first validation, its latest checkpoint); a checkpoint, `WORKDIR/checkpoints/STEP`; or a PyTorch
        file in any layout that `lcgcn import-torch` reads. Of a checkpoint, the moving average is read if it
        has one.
      config: uses `model.heatmap.arch`, the HRNet of a PyTorch file.

    Raises:
      InputError: the path does not exist, or is damaged, or has unknown weights.
    """
    if hub_reference(path) is not None:
        return _source_of(load_bundle(path))
    path = as_path(path)
    if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        path = path.parent
    if path.suffix.lower() in SAFETENSORS + PICKLED and not path.is_dir():
        if isinstance(path, BucketPath):
            raise InputError(
                f"{path}: read from a disk only; copy it with `gcloud storage cp` first"
            )
        heatmap = config.model.heatmap
        if heatmap["name"] != "hrnet":
            raise InputError(
                f"{path}: PyTorch weights can be read for HRNet only, and config.model.heatmap.name is "
                f"{heatmap['name']!r}"
            )
        mapped = map_weights(read_state_dict(path), heatmap["arch"], source=path)
        return Source(mapped.model, mapped.num_landmarks, mapped.weights)
    if path.parent.name == CHECKPOINTS and path.name.isdigit() and path.is_dir():
        return _source_of(read_checkpoint(path))
    latest = None if (path / BEST).is_dir() else latest_checkpoint(path)
    return _source_of(load_bundle(path) if latest is None else read_checkpoint(latest))


def _source_of(bundle: Bundle) -> Source:
    return Source(bundle.model, bundle.scheme.num_landmarks, bundle.weights)


def _grow(path: str | Path, source: Source, config: Config, initial: Weights) -> Source:
    """Embed weights in those of the configured HRNet."""
    old, new = source.model["heatmap"], config.model.heatmap
    if not old["name"] == new["name"] == "hrnet":
        raise InputError(f"{path}: config.init_grow is for HRNet only")
    if not can_grow(old["arch"], new["arch"]):
        raise InputError(
            f"{path}: its HRNet {old['arch']} does not fit in {new['arch']}; set "
            "config.model.heatmap.arch to a larger one"
        )
    weights = grow_weights(source.weights, initial, old["arch"], new["arch"])
    model = {**source.model, "heatmap": {**old, "arch": new["arch"]}}
    return dataclasses.replace(source, model=model, weights=weights)


def _config_differences(source: Source, config: Config) -> str:
    """Fields in which the models differ, of those that both configurations have."""
    old, new = (json.loads(json.dumps(model)) for model in (source.model, config.model.to_dict()))
    changes = []
    for part in ("heatmap", "graph"):
        if old.get(part) and new.get(part):
            common = old[part].keys() & new[part].keys()
            a, b = ({name: model[part][name] for name in common} for model in (old, new))
            changes += differences(a, b, f"model.{part}.")
    if not changes:
        return ""
    small, large = source.model["heatmap"].get("arch"), config.model.heatmap.get("arch")
    fits = small != large and small in ARCHS and large in ARCHS and can_grow(small, large)
    advice = "; --config.init_grow=True embeds a smaller HRNet in a larger one" if fits else ""
    return f"; its config is another one ({'; '.join(changes)}){advice}"


def _heatmap_differences(path: str | Path, source: Source, model: LCGCN, mode: str) -> str:
    """Differences between the heatmap definitions, which training has to overcome."""
    offset = source.model.get("heatmap_offset")
    stride = model.heatmap_model.stride
    old = {
        "model.heatmap.activation": source.model["heatmap"].get("activation", model.activation),
        "model.heatmap_offset": centered_offset(stride) if offset is None else offset,
    }
    new = {
        "model.heatmap.activation": model.activation,
        "model.heatmap_offset": model.heatmap_offset,
    }
    changes = differences(old, new)
    if changes and mode == "frozen":
        fix = " ".join(f"--config.{n}={value}" for n, value in old.items() if value != new[n])
        raise InputError(
            f"{path}: its heatmaps were trained with another config ({'; '.join(changes)}), and train.mode "
            f"'frozen' does not train them; give {fix}"
        )
    if not changes:
        return ""
    return f", whose heatmaps have to learn another config ({'; '.join(changes)})"

"""The weights that a training begins with: a bundle's, a checkpoint's or a PyTorch file's."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from lcgcn_jax.errors import InputError
from lcgcn_jax.geometry import centered_offset
from lcgcn_jax.interop.torch_files import PICKLED, SAFETENSORS, read_state_dict
from lcgcn_jax.interop.torch_weights import map_weights
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.bundles import BEST, CONFIG, WEIGHTS, Bundle, check_weights, load_bundle
from lcgcn_jax.models.interfaces import HasHead
from lcgcn_jax.models.lcgcn import LCGCN
from lcgcn_jax.models.weights import Weights
from lcgcn_jax.training.checkpoints import CHECKPOINTS, latest_checkpoint, read_checkpoint
from lcgcn_jax.training.config import differences, to_json

PARTS = {"heatmap": "heatmap model", "whole": "whole model", "backbone": "backbone"}
"""What `init_scope` can be, in words."""

_HEATMAP = "heatmap_model."
_VISIBILITY = ("visibility.", "graph.gate.")


@dataclasses.dataclass(frozen=True)
class Source:
    """A model whose weights are there to be taken.

    Attributes:
      model: its configuration.
      num_landmarks: k of its heatmaps; None for a backbone alone.
      weights: by their flat names; of a backbone alone, without those of a head.
    """

    model: Mapping[str, Any]
    num_landmarks: int | None
    weights: Mapping[str, np.ndarray]


def load_pretrained_weights(
    config: ml_collections.ConfigDict,
    scheme: LandmarkScheme,
    model: LCGCN,
    params: Weights,
    batch_stats: Weights,
) -> tuple[Weights, Weights, str]:
    """Puts weights of `config.init_from` in the place of fresh ones.

    Args:
      config: as `training.config.default_config` describes.
      scheme: the landmarks to train for.
      model: the model to train, for what it is; its weights are not looked at.
      params: its fresh parameters.
      batch_stats: its fresh statistics.

    Returns:
      Parameters, statistics, and a line that says what was taken, and what is fresh.

    Raises:
      InputError: `init_from` cannot be read or does not fit the model, or what it lacks would stay fresh
        and not be trained.
    """
    path, parts = Path(config.init_from), config.init_scope
    if parts not in PARTS:
        raise InputError(
            f"config init_scope: unknown part {parts!r}; use one of {', '.join(PARTS)}"
        )
    heatmap_model = model.heatmap_model
    head_modules = heatmap_model.head_modules if isinstance(heatmap_model, HasHead) else None
    if parts == "backbone" and head_modules is None:
        raise InputError(
            f"config init_scope: 'backbone' is all but the head, and model.heatmap "
            f"{config.model.heatmap.name!r} does not say what its head is; give it `head_modules`"
        )
    source = read_source(path, config)
    if parts == "whole" and source.num_landmarks is None:
        raise InputError(f"{path}: has a backbone alone; set config.init_scope to 'backbone'")
    fresh_head = parts == "backbone" or source.num_landmarks is None
    if fresh_head:
        if config.train.mode == "frozen":
            raise InputError(
                f"{path}: the head would be fresh, and train.mode 'frozen' does not train it; begin with a "
                "trained heatmap model, or use 'joint' or 'heatmap_only'"
            )
    elif source.num_landmarks != scheme.num_landmarks:
        raise InputError(
            f"{path}: its heatmaps are of {source.num_landmarks} landmarks, and {scheme.name} has "
            f"{scheme.num_landmarks}; with config.init_scope 'backbone' all before them is taken"
        )
    head = tuple(f"{_HEATMAP}{module}." for module in head_modules or ())
    # A trained model may get a visibility head, or lose it.
    changed = tuple(
        prefix
        for prefix in _VISIBILITY
        if _has_part(params, prefix) != _has_part(source.weights, prefix)
    )

    def part_of(weights: Mapping[str, Any]) -> dict[str, Any]:
        if parts == "whole":
            return {name: value for name, value in weights.items() if not name.startswith(changed)}
        return {
            name: value
            for name, value in weights.items()
            if name.startswith(_HEATMAP) and not (fresh_head and name.startswith(head))
        }

    try:
        check_weights(path, part_of(source.weights), part_of(params | batch_stats))
    except InputError as error:
        raise InputError(f"{error}{_other_config(source, config)}") from error
    taken = {name: jnp.asarray(v, jnp.float32) for name, v in part_of(source.weights).items()}
    said = f"begins with the {PARTS['backbone' if fresh_head else parts]} of {path}"
    if fresh_head:
        said += "; the head is fresh"
    else:
        said += _other_meaning(path, source, model, config.train.mode)
    if parts == "whole" and changed:
        added = any(_has_part(params, prefix) for prefix in changed)
        if added and config.train.mode == "heatmap_only":
            raise InputError(
                f"{path}: has no visibility head, and train.mode 'heatmap_only' does not train a fresh "
                "one; use 'joint' or 'frozen', or set config.model.visibility.head to none"
            )
        said += f"; the visibility head is {'fresh' if added else 'left out'}"
    return (
        {name: taken.get(name, value) for name, value in params.items()},
        {name: taken.get(name, value) for name, value in batch_stats.items()},
        said,
    )


def _has_part(weights: Mapping[str, Any], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in weights)


def read_source(path: Path, config: ml_collections.ConfigDict) -> Source:
    """Reads the weights at a path.

    Args:
      path: a bundle; a training workdir (its best model, or, before its first validation, its latest
        checkpoint); one checkpoint, `WORKDIR/checkpoints/STEP`; or a PyTorch file of any layout that
        `lcgcn import-torch` knows. Of a checkpoint, the moving average is read where one is kept.
      config: names the HRNet that a PyTorch file is of, `model.heatmap.arch`.

    Raises:
      InputError: there is nothing to be read, or it is damaged, or not all of it is known.
    """
    if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        path = path.parent
    if path.suffix in SAFETENSORS + PICKLED and not path.is_dir():
        heatmap = config.model.heatmap
        if heatmap.name != "hrnet":
            raise InputError(
                f"{path}: PyTorch weights are known of HRNet alone, and config.model.heatmap.name is "
                f"{heatmap.name!r}"
            )
        found = map_weights(read_state_dict(path), heatmap.arch, source=path)
        return Source(found.model, found.num_landmarks, found.weights)
    if path.parent.name == CHECKPOINTS and path.name.isdigit() and path.is_dir():
        return _source_of(read_checkpoint(path))
    latest = None if (path / BEST).is_dir() else latest_checkpoint(path)
    return _source_of(load_bundle(path) if latest is None else read_checkpoint(latest))


def _source_of(bundle: Bundle) -> Source:
    return Source(bundle.model, bundle.scheme.num_landmarks, bundle.weights)


def _other_config(source: Source, config: ml_collections.ConfigDict) -> str:
    """How two models differ, where both configurations say it."""
    old, new = source.model, json.loads(to_json(config))["model"]
    parts = [part for part in ("heatmap", "graph") if old.get(part) and new.get(part)]
    found = []
    for part in parts:
        both = old[part].keys() & new[part].keys()
        a, b = ({name: model[part][name] for name in both} for model in (old, new))
        found += differences(json.loads(json.dumps(a)), b, f"model.{part}.")
    return f"; its config is another one ({'; '.join(found)})" if found else ""


def _other_meaning(path: Path, source: Source, model: LCGCN, mode: str) -> str:
    """What the same weights' heatmaps mean otherwise here; not right where they stay as they are."""
    origin = source.model.get("heatmap_offset")
    stride = model.heatmap_model.stride
    old = {
        "model.heatmap.activation": source.model["heatmap"].get("activation", model.activation),
        "model.heatmap_offset": centered_offset(stride) if origin is None else origin,
    }
    new = {
        "model.heatmap.activation": model.activation,
        "model.heatmap_offset": model.heatmap_offset,
    }
    changed = differences(old, new)
    if changed and mode == "frozen":
        mend = " ".join(f"--config.{n}={value}" for n, value in old.items() if value != new[n])
        raise InputError(
            f"{path}: its heatmaps were trained with another config ({'; '.join(changed)}), and train.mode "
            f"'frozen' does not train them; give {mend}"
        )
    return (
        f", whose heatmaps have to learn another config ({'; '.join(changed)})" if changed else ""
    )

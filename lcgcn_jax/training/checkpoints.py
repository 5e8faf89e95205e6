"""Checkpoints of a training: state, data position and progress, written whole or not at all."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.landmarks import get_scheme
from lcgcn_jax.models.bundles import Bundle, abstract_weights, check_weights
from lcgcn_jax.training.config import RUN_CONFIG
from lcgcn_jax.training.state import TrainState

# Orbax tells every phase of a save; what matters here raises.
logging.getLogger("absl").setLevel(logging.ERROR)


CHECKPOINTS = "checkpoints"
"""Folder of a training workdir that they are in, each under its step."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: the run's folder; they go to its `checkpoints`.
      keep: how many of the latest stay.
    """

    def __init__(self, workdir: Path, keep: int):
        self._workdir = workdir
        self._checkpointer = ocp.training.Checkpointer(
            (workdir / CHECKPOINTS).resolve(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """Step of the latest checkpoint that is whole."""
        path = latest_checkpoint(self._workdir)
        return None if path is None else int(path.name)

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Saves the state and what else a run needs to go on (`progress`: plain types)."""
        step = int(state.step)
        if self.latest != step:
            self._checkpointer.save_checkpointables(
                step, {"state": _as_dict(state), "progress": progress}, force=True
            )

    def load(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The latest checkpoint, with the shapes, types and shardings of `like`."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _as_dict(like)
        )
        loaded = self._checkpointer.load_checkpointables(
            self.latest, {"state": abstract, "progress": None}
        )
        return TrainState(**loaded["state"]), loaded["progress"]

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpointer.close()


def latest_checkpoint(workdir: Path) -> Path | None:
    """The latest checkpoint of a run that is whole; None where there is none."""
    folder = workdir / CHECKPOINTS
    found = folder.iterdir() if folder.is_dir() else ()
    whole = [path for path in found if path.name.isdigit() and ocp.is_orbax_checkpoint(path)]
    return max(whole, key=lambda path: int(path.name), default=None)


def read_checkpoint(path: Path) -> Bundle:
    """The model in a checkpoint, as it would be evaluated: its moving average where one is kept.

    Neither the data nor the devices that it was trained on are needed.

    Args:
      path: `WORKDIR/checkpoints/STEP`; the workdir has the configuration.

    Raises:
      InputError: configuration or checkpoint cannot be read, or they do not fit each other.
    """
    config_file = path.parents[1] / RUN_CONFIG
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        model, scheme = config["model"], get_scheme(config["scheme"])
        size = int(config["data"]["image_size"])
        mirror_offset = float(config["data"]["augment"].get("mirror_offset", 0.0))
        _, params, batch_stats = abstract_weights(model, scheme.num_landmarks)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config_file}: not a run's configuration: {one_line(error)}") from error
    try:
        weights = _read_evaluated(path.resolve())
    # What Orbax raises for a damaged checkpoint is not documented: whatever it is, it is unusable.
    except Exception as error:
        raise InputError(f"{path}: not a checkpoint, or damaged: {one_line(error)}") from error
    check_weights(path, weights, params | batch_stats)
    return Bundle(model, scheme, size, weights, mirror_offset=mirror_offset)


def _read_evaluated(path: Path) -> dict[str, np.ndarray]:
    saved = ocp.checkpointables_metadata(path).metadata["state"]
    names = ("ema",) if saved.get("ema") else ("params", "batch_stats")
    wanted = {
        field: jax.tree.map(
            lambda x, field=field: (
                # As NumPy arrays, for whatever devices there are here.
                np.empty(x.shape, x.dtype) if field in names else ocp.PLACEHOLDER
            ),
            tree,
        )
        for field, tree in saved.items()
    }
    state = ocp.load_checkpointables(path, {"state": wanted})["state"]
    return {name: value for field in names for name, value in state[field].items()}


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}

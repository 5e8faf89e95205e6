"""Checkpoints of a training: state, data position and progress, written whole or not at all."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from lcgcn_jax.training.state import TrainState

# Orbax tells every phase of a save; what matters here raises.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: the run's folder; they go to its `checkpoints`.
      keep: how many of the latest stay.
    """

    def __init__(self, workdir: Path, keep: int):
        self._checkpointer = ocp.training.Checkpointer(
            (workdir / "checkpoints").resolve(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """Step of the latest checkpoint that is whole."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

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


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}

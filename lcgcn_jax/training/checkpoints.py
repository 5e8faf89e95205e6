"""Checkpoints of a training: state, data position and progress, written whole or not at all.

One is an Orbax checkpoint, `WORKDIR/checkpoints/STEP`, and in it `checksums.json`, by which damage is
noticed. It is written beside its place, in a folder that no one takes for a checkpoint, and moved there
when all of it is on the disk.
"""

import dataclasses
import json
import logging
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from lcgcn_jax import compat
from lcgcn_jax.atomic_io import checksums, write_whole
from lcgcn_jax.distributed import is_primary_process
from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.landmarks import get_scheme
from lcgcn_jax.models.bundles import Bundle, abstract_weights, check_weights
from lcgcn_jax.models.weights import Weights, from_vector
from lcgcn_jax.training.config import RUN_CONFIG, differences
from lcgcn_jax.training.run_lock import needs_writing
from lcgcn_jax.training.state import TrainState

# Orbax tells every phase of a save, and errors with their stacks; what matters here raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)


CHECKPOINTS = "checkpoints"
"""Folder of a training workdir that they are in, each under its step."""

CHECKSUMS = "checksums.json"
"""Name of the checksums of a checkpoint's files. Checkpoints of older versions have none."""

_PARTIAL = ".partial"
_OF_ORBAX = ("_CHECKPOINT_METADATA", "state/_METADATA", "progress/_METADATA")


class Checkpoints:
    """The checkpoints of one run. In every process; process 0 moves and removes folders.

    What a process that was killed left half-written or half-removed is cleaned up.

    Args:
      workdir: the run's folder; they go to its `checkpoints`.
      keep: how many of the latest stay, one or more.
    """

    def __init__(self, workdir: Path, keep: int):
        self._folder = workdir / CHECKPOINTS
        self._keep = max(keep, 1)
        # Kept here, since other processes may look before process 0 has moved a new one to its place.
        path = latest_checkpoint(workdir)
        self._latest = None if path is None else int(path.name)
        self._remove_partials()

    @property
    def latest(self) -> int | None:
        """Step of the checkpoint to go on from (`latest_checkpoint`)."""
        return self._latest

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Saves the state and what else a run needs to go on (`progress`: plain types).

        Raises:
          InputError: it cannot be written; the checkpoints before it stay.
        """
        step = int(state.step)
        if step == self._latest:
            return
        partial = self._folder / f"{step}{_PARTIAL}"
        with needs_writing(self._folder):
            try:
                ocp.save_checkpointables(
                    partial.resolve(), {"state": _as_dict(state), "progress": progress}
                )
                if is_primary_process():
                    self._put_in_place(partial, step)
            except Exception:
                self._remove_partials()  # room for what comes next on a full disk
                raise
        self._latest = step

    def load(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The latest checkpoint, with the shapes, types and shardings of `like`.

        Raises:
          InputError: it is damaged, or is of another model or optimizer.
        """
        path = self._folder / str(self._latest)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _as_dict(like)
        )
        _check_sums(path)
        saved = _saved_state(path)
        is_former = compat.has_former_weights(saved)
        if is_former:
            abstract = compat.downgrade_weights(abstract, saved)
        if changed := differences(_shapes(saved), _shapes(abstract)):
            raise InputError(
                f"{path}: is of another model or optimizer than the config's: {len(changed)} arrays "
                f"differ, the first: {changed[0]}; give another --workdir (config.init_from takes its "
                "weights), or the config of this run"
            )
        loaded = _load(path, {"state": abstract, "progress": None})
        state = compat.upgrade_weights(loaded["state"]) if is_former else loaded["state"]
        return TrainState(**state), loaded["progress"]

    def _put_in_place(self, partial: Path, step: int) -> None:
        _write_sums(partial)
        place = self._folder / str(step)
        if place.exists():  # not a whole one, or the run would have gone on from there
            self._remove(place)
        partial.rename(place)
        steps = sorted(_whole_checkpoints(self._folder))
        for path in _numbered(self._folder):
            if int(path.name) < step and int(path.name) not in steps[-self._keep :]:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        # Under another name first: half of a checkpoint must not look like one.
        shutil.rmtree(path.rename(path.with_name(f"{path.name}.old{_PARTIAL}")))

    def _remove_partials(self) -> None:
        if not is_primary_process():
            return
        # The second pattern is Orbax's own name for what is being written.
        for pattern in (f"*{_PARTIAL}*", "*.orbax-checkpoint-tmp*"):
            for path in self._folder.glob(pattern):
                # What Orbax is still writing as a save fails goes at the next start.
                shutil.rmtree(path, ignore_errors=True)


def latest_checkpoint(workdir: Path) -> Path | None:
    """The latest checkpoint of a run that is whole; None where there is none.

    Where there are only damaged ones, the latest of them, which says so when it is read: a run must not
    begin anew over what may be mended.
    """
    folder = workdir / CHECKPOINTS
    found = list(_whole_checkpoints(folder).values()) or _numbered(folder)
    return max(found, key=lambda path: int(path.name), default=None)


def _whole_checkpoints(folder: Path) -> dict[int, Path]:
    return {int(path.name): path for path in _numbered(folder) if _is_whole(path)}


def _numbered(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if path.name.isdecimal()]


def _is_whole(path: Path) -> bool:
    """Whether a folder is a checkpoint with all of its files, each as long as it should be."""
    try:
        sums = _read_sums(path)
    except InputError:
        return True  # which says so when it is loaded
    if sums is None:
        # Not `ocp.is_orbax_checkpoint`, which takes an empty folder for one.
        return all((path / name).is_file() for name in _OF_ORBAX)
    files = {path / name: sum["bytes"] for name, sum in sums.items()}
    return all(file.is_file() and file.stat().st_size == size for file, size in files.items())


def _write_sums(path: Path) -> None:
    sums = checksums(path)
    text = json.dumps({"files": sums, "crc32": _sum_of_sums(sums)}, indent=1) + "\n"
    write_whole(path / CHECKSUMS, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def _read_sums(path: Path) -> dict[str, dict[str, int]] | None:
    """What `_write_sums` wrote; None for a checkpoint of an older version, or what is none at all."""
    file = path / CHECKSUMS
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["crc32"] != _sum_of_sums(found["files"]):
            raise ValueError("is not as it was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{CHECKSUMS}: {one_line(error)}") from error
    return found["files"]


def _sum_of_sums(sums: Mapping[str, Mapping[str, int]]) -> int:
    return zlib.crc32(json.dumps(sums, sort_keys=True).encode())


def _check_sums(path: Path) -> None:
    """Refuses a checkpoint whose files are not as they were written; of an older version's, nothing is known.

    Raises:
      InputError: with the first file that has changed.
    """
    try:
        found = checksums(path)
    except OSError as error:
        raise _damaged(path, error.strerror) from error
    for name, sum in (_read_sums(path) or {}).items():
        if found.get(name) != sum:
            raise _damaged(path, f"{name} is not as it was written")


def _damaged(path: Path, how: str) -> InputError:
    return InputError(
        f"{path}: not a checkpoint, or damaged: {how}; without this folder, the run goes on from the "
        "checkpoint before it"
    )


def _saved_state(path: Path) -> dict[str, PyTree]:
    """Shapes and types of the state in a checkpoint."""
    try:
        return ocp.checkpointables_metadata(path.resolve()).metadata["state"]
    # What Orbax raises for a damaged checkpoint is not documented: whatever it is, it is unusable.
    except Exception as error:
        raise _damaged(path, one_line(error)) from error


def _load(path: Path, wanted: Mapping[str, PyTree]) -> dict[str, PyTree]:
    try:
        return ocp.load_checkpointables(path.resolve(), wanted)
    except Exception as error:  # as above
        raise _damaged(path, one_line(error)) from error


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
        config = compat.upgrade_config(json.loads(config_file.read_text(encoding="utf-8")))
        model, scheme = config["model"], get_scheme(config["scheme"])
        size = int(config["data"]["image_size"])
        flip_bias = float(config["data"]["augment"].get("flip_bias", 0.0))
        _, params, batch_stats = abstract_weights(model, scheme.num_landmarks)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config_file}: not a run's configuration: {one_line(error)}") from error
    _check_sums(path)
    weights = compat.upgrade_weights(_read_evaluated(path, params | batch_stats))
    check_weights(path, weights, params | batch_stats)
    return Bundle(model, scheme, size, weights, flip_bias=flip_bias)


def _read_evaluated(path: Path, like: Weights) -> dict[str, np.ndarray]:
    saved = _saved_state(path)
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
    state = _load(path, {"state": wanted})["state"]
    if isinstance(state.get("ema"), np.ndarray):  # older versions have it by name
        try:
            return from_vector(state["ema"], like)
        except ValueError as error:
            raise InputError(
                f"{path}: its weights do not fit the configuration: {error}"
            ) from error
    return {name: value for field in names for name, value in state[field].items()}


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shape of every array of a state; Orbax has dictionaries in place of named tuples."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}

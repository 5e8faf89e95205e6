"""Checkpoints of a training run: state, data position and progress.

A checkpoint is an Orbax checkpoint, `WORKDIR/checkpoints/STEP`, with the checksums of its files in
`checksums.json`. It is written to a partial folder and renamed once it is complete. A folder in a bucket
cannot be renamed; it is a checkpoint once it has `checksums.json`, which is written last. While it is written
or removed, the object `STEP.partial` exists.

Orbax's own `training.Checkpointer` cannot replace this protocol (measured with orbax-checkpoint 0.12): it
treats an empty or truncated folder as the latest checkpoint, because it checks only names. It stores no
checksums, so a flipped byte in a data file loads wrong numbers without an error. It also has no hook between
writing and renaming, where checksums could be added.
"""

import dataclasses
import json
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from lcgcn_jax import compat, storage
from lcgcn_jax.atomic_io import checksums, write_whole
from lcgcn_jax.distributed import is_primary_process
from lcgcn_jax.errors import InputError, count_of, one_line
from lcgcn_jax.landmarks import get_scheme
from lcgcn_jax.models.bundles import Bundle, abstract_weights, check_weights
from lcgcn_jax.models.interfaces import AnyArray
from lcgcn_jax.models.weights import Weights, from_vector
from lcgcn_jax.training.config import RUN_CONFIG, differences
from lcgcn_jax.training.run_lock import needs_writing
from lcgcn_jax.training.state import TrainState

# Orbax logs every phase of a save, and errors with their stacks; the errors that matter are raised.
logging.getLogger("absl").setLevel(logging.CRITICAL)


CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in a workdir, each named by its step."""

CHECKSUMS = "checksums.json"
"""Name of the file with the checksums of a checkpoint's files. Checkpoints of older versions have none."""

_PARTIAL = ".partial"
_ORBAX_END = "commit_success.txt"  # written last, and only in a bucket
_ORBAX_FILES = ("_CHECKPOINT_METADATA", "state/_METADATA", "progress/_METADATA")


class Checkpoints:
    """Checkpoints of one run, used in every process; the primary process renames and removes folders.

    The constructor removes partial folders of killed processes.

    Args:
      keep: number of the latest checkpoints to keep, at least one.

    Raises:
      InputError: a folder in a bucket is not a checkpoint, and was not left behind by a killed process.
    """

    def __init__(self, workdir: Path, keep: int):
        self._folder = workdir / CHECKPOINTS
        self._keep = max(keep, 1)
        # Stored, because other processes may read it before the primary process has renamed a new one.
        path = latest_checkpoint(workdir)
        self._latest = None if path is None else int(path.name)
        self._remove_partials()

    @property
    def latest(self) -> int | None:
        """Step of the checkpoint to resume from (`latest_checkpoint`)."""
        return self._latest

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Save the state and the progress of the run (plain types).

        Raises:
          InputError: the checkpoint cannot be written; earlier ones stay.
        """
        step = int(state.step)
        if step == self._latest:
            return
        partial = storage.staging_folder(self._folder / str(step), _PARTIAL)
        with needs_writing(self._folder), storage.errors_of(self._folder):
            try:
                if is_primary_process():
                    # In a bucket, it can be a damaged checkpoint of this step.
                    storage.clear_staging(partial, _PARTIAL)
                with _save_options():
                    ocp.save_checkpointables(
                        _orbax_path(partial), {"state": _as_dict(state), "progress": progress}
                    )
                if is_primary_process():
                    _write_checksums(partial)
                    self._commit(partial, step)
            except Exception:
                self._remove_partials()  # frees space on a full disk
                raise
        self._latest = step

    def load(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Load the latest checkpoint.

        Args:
          like: shapes, types and shardings of the state.

        Raises:
          InputError: the checkpoint is damaged, or of another model or optimizer.
        """
        path = self._folder / str(self._latest)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _as_dict(like)
        )
        _verify_checksums(path)
        metadata = _state_metadata(path)
        is_former = compat.has_former_weights(metadata)
        if is_former:
            abstract = compat.downgrade_weights(abstract, metadata)
        if changes := differences(_shapes(metadata), _shapes(abstract)):
            raise InputError(
                f"{path}: is of another model or optimizer than the config's: "
                f"{count_of(len(changes), 'difference')} in the arrays, the first: {changes[0]}; give "
                "another --workdir (config.init_from uses its weights), or the config of this run"
            )
        loaded = _load(path, {"state": abstract, "progress": None})
        state = compat.upgrade_weights(loaded["state"]) if is_former else loaded["state"]
        return TrainState(**state), loaded["progress"]

    def _commit(self, partial: Path, step: int) -> None:
        """Rename a complete partial folder, and remove the oldest checkpoints."""
        path = self._folder / str(step)
        if path != partial and path.exists():  # damaged, or the run would have resumed from it
            self._remove(path)
        storage.commit_folder(partial, path, _PARTIAL)
        complete = sorted(int(path.name) for path in _numbered(self._folder) if _is_complete(path))
        for path in _numbered(self._folder):
            if int(path.name) < step and int(path.name) not in complete[-self._keep :]:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        storage.remove_committed(path, CHECKSUMS, _PARTIAL)

    def _remove_partials(self) -> None:
        if not is_primary_process():
            return
        # The second pattern is Orbax's own name for a folder that is being written. Files that it still
        # writes after a failed save are removed at the next start.
        patterns = (f"*{_PARTIAL}*", "*.orbax-checkpoint-tmp*")
        for path in storage.uncommitted_folders(self._folder, CHECKSUMS, *patterns):
            _require_interrupted(path)
            storage.remove_folder(path)
        storage.remove_marks(self._folder, _PARTIAL)


def _require_interrupted(path: Path) -> None:
    """Check that an incomplete folder is not a checkpoint that was copied into a bucket."""
    if not path.name.isdecimal() or storage.is_staged(path, _PARTIAL):
        return
    # After a failed save, which removes the object of `clear_staging`, Orbax may still write files.
    if all((path / name).is_file() for name in _ORBAX_FILES) and not (path / _ORBAX_END).is_file():
        raise InputError(
            f"{path}: has no {CHECKSUMS}, so it is of an older version or an incomplete copy; copy it to a "
            "disk and resume the run there, or remove this folder"
        )


def latest_checkpoint(workdir: Path) -> Path | None:
    """The latest complete checkpoint of a run; None without checkpoints.

    If all checkpoints are damaged, returns the latest of them, whose loading raises: a run must not start
    again over checkpoints that can perhaps be repaired.
    """
    paths = _numbered(workdir / CHECKPOINTS)
    candidates = [path for path in paths if _is_complete(path)] or paths
    return max(candidates, key=lambda path: int(path.name), default=None)


def _numbered(folder: Path) -> list[Path]:
    paths = folder.iterdir() if folder.is_dir() else ()
    return [
        path for path in paths if path.name.isdecimal() and storage.is_committed(path, CHECKSUMS)
    ]


def _is_complete(path: Path) -> bool:
    """Whether a folder is a checkpoint with all of its files in their full size."""
    try:
        sums = _read_checksums(path)
    except InputError:
        return True  # loading it raises
    if sums is None:
        # Not `ocp.is_orbax_checkpoint`, which accepts an empty folder.
        return all((path / name).is_file() for name in _ORBAX_FILES)
    sizes = storage.file_sizes(path)
    return all(sizes.get(name) == checksum["bytes"] for name, checksum in sums.items())


def _write_checksums(path: Path) -> None:
    sums = checksums(path)
    text = json.dumps({"files": sums, "crc32": _total(sums)}, indent=1) + "\n"
    write_whole(path / CHECKSUMS, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def _read_checksums(path: Path) -> dict[str, dict[str, int]] | None:
    """Checksums of a checkpoint; None without the file, as in older versions."""
    file = path / CHECKSUMS
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["crc32"] != _total(content["files"]):
            raise ValueError("its content has changed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{CHECKSUMS}: {one_line(error)}") from error
    return content["files"]


def _total(sums: Mapping[str, Mapping[str, int]]) -> int:
    """Checksum of the checksums."""
    return zlib.crc32(json.dumps(sums, sort_keys=True).encode())


def _verify_checksums(path: Path) -> None:
    """Compare the files of a checkpoint with its checksums, if it has any."""
    try:
        current = checksums(path)
    except OSError as error:
        raise _damaged(path, error.strerror) from error
    for name, checksum in (_read_checksums(path) or {}).items():
        if current.get(name) != checksum:
            raise _damaged(path, f"{name} has changed since it was written")


def _damaged(path: Path, reason: str | None) -> InputError:
    return InputError(
        f"{path}: not a checkpoint, or damaged: {reason}; remove this folder to resume from the checkpoint "
        "before it"
    )


def _state_metadata(path: Path) -> dict[str, PyTree]:
    """Shapes and types of the state in a checkpoint."""
    try:
        return ocp.checkpointables_metadata(_orbax_path(path)).metadata["state"]
    # Orbax does not document what it raises for a damaged checkpoint.
    except Exception as error:
        raise _damaged(path, one_line(error)) from error


def _load(path: Path, abstract: dict[str, PyTree]) -> dict[str, PyTree]:
    try:
        return ocp.load_checkpointables(_orbax_path(path), dict(abstract))
    except Exception as error:  # as above
        raise _damaged(path, one_line(error)) from error


def read_checkpoint(path: Path) -> Bundle:
    """Read the model in a checkpoint, with the weights to evaluate: the moving average if it has one.

    Neither the data nor the devices of the training are needed.

    Args:
      path: `WORKDIR/checkpoints/STEP`; the workdir has the configuration.

    Raises:
      InputError: the configuration or the checkpoint cannot be read, or they do not match.
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
    _verify_checksums(path)
    weights = compat.upgrade_weights(_read_evaluated(path, params | batch_stats))
    check_weights(path, weights, params | batch_stats)
    return Bundle(model, scheme, size, weights, flip_bias=flip_bias)


def _read_evaluated(path: Path, like: Weights) -> dict[str, AnyArray]:
    """Read only the weights to evaluate, as NumPy arrays, which need no device."""
    metadata = _state_metadata(path)
    fields = ("ema",) if metadata.get("ema") else ("params", "batch_stats")
    abstract = {
        field: jax.tree.map(
            lambda x, field=field: (
                np.empty(x.shape, x.dtype) if field in fields else ocp.PLACEHOLDER
            ),
            tree,
        )
        for field, tree in metadata.items()
    }
    state = _load(path, {"state": abstract})["state"]
    if isinstance(state.get("ema"), np.ndarray):  # older versions have it by name
        try:
            return from_vector(state["ema"], like)
        except ValueError as error:
            raise InputError(
                f"{path}: its weights do not fit the configuration: {error}"
            ) from error
    return {name: value for field in fields for name, value in state[field].items()}


def _orbax_path(path: Path) -> epath.Path:
    return epath.Path(str(path.resolve()))


def _save_options() -> ocp.Context:
    # By default, each replica saves a slice of every array, and JAX compiles a program for each slice.
    options = ocp.Context()
    options.array.saving.use_replica_parallel = False
    return options


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shapes of all arrays of a state by name; Orbax replaces named tuples by dictionaries."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}

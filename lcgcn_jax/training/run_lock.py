"""Lock of a workdir, and comparison of a run with the configuration and data that it was started with."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcgcn_jax import compat
from lcgcn_jax.atomic_io import PARTIALS, checksums, write_whole
from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.data.records import RECORDS
from lcgcn_jax.distributed import is_primary_process
from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.models.bundles import BEST
from lcgcn_jax.storage import StorageError
from lcgcn_jax.training.config import RUN_CONFIG, differences, fill_in, to_json
from lcgcn_jax.training.config_types import EPOCHS, Config
from lcgcn_jax.training.folder_lock import LOCK, FolderLock, lock_folder

DATA = "data.json"
"""Name of the file with the checksums of a run's data, in its workdir."""

OFFSETS = "annotation offsets"
"""Key of the checksum of the annotation offsets among those of a dataset."""

_GROUPS = ("data", "loss", "model", "optimizer", "train")
_FIX = "or --accept-changes to resume with"
_NUM_SHOWN = 3  # changed files in a message


class RunLock:
    """Exclusive lock on a workdir, checked against the configuration and data of its run.

    Only the primary process reads the folder and writes to it. A lock that a killed
    process leaves behind is taken over (`folder_lock`).

    Args:
      workdir: folder of the run, created if it does not exist; unchanged if the run is rejected.
      dataset: data of the run. A copy in another folder is the same data.
      sources: datasets to train on instead, `data.sources`.
      accept_changes: accept another configuration or other data; `write_config` then writes them.

    Raises:
      InputError: the folder has other content, cannot be written, is locked, or belongs to a run with another
        configuration or other data.
    """

    def __init__(
        self,
        workdir: Path,
        config: Config,
        dataset: FaceDataset,
        *,
        sources: Sequence[FaceDataset] = (),
        accept_changes: bool = False,
    ):
        self._workdir = workdir
        self._accepted: dict[str, str] = {}
        self._lock: FolderLock | None = None
        if not is_primary_process():
            return
        data = _data_checksums(dataset)
        for number, source in enumerate(sources):
            data |= {f"sources/{number}/{k}": v for k, v in _data_checksums(source).items()}
        try:
            if workdir.exists() and not workdir.is_dir():
                raise InputError(f"{workdir}: not a folder; give another --workdir")
            if _has_other_content(workdir):
                raise InputError(
                    f"{workdir}: not empty and not a training run; give another --workdir"
                )
            workdir.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(workdir)
            for folder in (workdir, workdir / BEST):
                for partial in folder.glob(PARTIALS):
                    partial.unlink()
            self._start_or_compare(config, dataset, data, accept_changes)
        except InputError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise InputError(
                f"{workdir}: cannot be written: {error.strerror}; fix that, or give another --workdir"
            ) from error

    def write_config(self) -> None:
        """Write an accepted configuration and accepted data, and keep the former files under a number.

        Called when the run can be resumed with them.

        Raises:
          InputError: the folder cannot be written.
        """
        with needs_writing(self._workdir):
            for name, text in self._accepted.items():
                path = self._workdir / name
                _write(_numbered_path(path), path.read_text(encoding="utf-8"))
                _write(path, text)
        self._accepted = {}

    def require_held(self) -> None:
        """Check that no other process has taken over the folder, before writing to it.

        Raises:
          InputError: one has, or the bucket cannot be used.
        """
        if self._lock is not None:
            self._lock.require_held()

    def close(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.close()

    def _start_or_compare(
        self,
        config: Config,
        dataset: FaceDataset,
        data: Mapping[str, Any],
        accept_changes: bool,
    ) -> None:
        config_file, data_file = self._workdir / RUN_CONFIG, self._workdir / DATA
        config_text, data_text = to_json(config), json.dumps(data, indent=1) + "\n"
        if not config_file.is_file():
            # The configuration last: if it exists, the run has started, with all other files.
            _write(data_file, data_text)
            _write(config_file, config_text)
            return
        old, new = _read(config_file), json.loads(config_text)
        if changes := differences(_comparable(old, new, can_move=data_file.is_file()), new):
            if not accept_changes:
                raise InputError(
                    f"{config_file}: this run was started with another config ({'; '.join(changes)}); "
                    f"give another --workdir, the same config, {_FIX} this one"
                )
            self._accepted[RUN_CONFIG] = config_text
        if not data_file.is_file():  # a run of an older version
            _write(data_file, data_text)
            return
        old_data = _read(data_file)
        if changed_files := _changed_files(old_data, data):
            if not accept_changes:
                _compare_offsets(self._workdir, config, old_data, data)
                raise InputError(
                    f"{dataset.path}: not the data that {self._workdir} was started with "
                    f"({changed_files}); give another --workdir, the same data, {_FIX} these"
                )
            self._accepted[DATA] = data_text


@contextlib.contextmanager
def needs_writing(path: Path) -> Iterator[None]:
    """Report a failure to write a file or folder of a run in one line.

    Raises:
      InputError: the path cannot be written, for example because the disk is full.
    """
    try:
        yield
    # TensorStore wraps errors of the operating system in other types.
    except Exception as error:
        number = _error_number(error)
        if number is None:
            raise
        raise InputError(
            f"{path}: cannot be written: {_reason(error, number)}; fix that, and the same command resumes "
            "from the last checkpoint"
        ) from error


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    match = re.search(r"os_error_code='(\d+)'", str(error))
    return int(match[1]) if match else None


def _reason(error: Exception, number: int) -> str:
    reason = error.strerror if isinstance(error, StorageError) else None
    return reason or os.strerror(number)


def _has_other_content(workdir: Path) -> bool:
    if not workdir.is_dir() or (workdir / RUN_CONFIG).is_file():
        return False
    # Files of a run that was killed before it wrote its configuration.
    run_files = {workdir / LOCK, workdir / DATA, *workdir.glob(PARTIALS)}
    return any(path not in run_files for path in workdir.iterdir())


def _data_checksums(dataset: FaceDataset) -> dict[str, dict[str, Any]]:
    try:
        sums: dict[str, dict[str, Any]] = {**checksums(dataset.path / RECORDS)}
    except OSError as error:
        raise InputError(f"{dataset.path}: cannot be read: {error.strerror}") from error
    if dataset.offsets is not None:
        sums[OFFSETS] = {"sha256": dataset.offsets.digest}
    return sums


def _compare_offsets(
    workdir: Path, config: Config, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    """Compare the files of annotation offsets with those that a run was started with."""
    files = {OFFSETS: config.data.offsets}
    for number, source in enumerate(config.data.sources):
        files[f"sources/{number}/{OFFSETS}"] = source[2] if len(source) > 2 else ""
    for key, file in files.items():
        if key in old and key in new and old[key] != new[key]:
            raise InputError(
                f"{file}: not the annotation offsets that {workdir} was started with (changed); give "
                f"another --workdir, the same file, {_FIX} this one"
            )


def _changed_files(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Names of the first files that differ, for a message; empty if all are equal."""
    changes = [
        f"{name}: {'changed' if name in old and name in new else 'gone' if name in old else 'new'}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    more = len(changes) - _NUM_SHOWN
    return "; ".join(changes[:_NUM_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def read_run_config(workdir: Path) -> dict[str, Any] | None:
    """Read the configuration of a run; None if the folder has no run.

    Raises:
      InputError: the file is damaged or cannot be read.
    """
    path = workdir / RUN_CONFIG
    try:
        return _read(path) if path.is_file() else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _comparable(
    old: Mapping[str, Any], new: Mapping[str, Any], *, can_move: bool
) -> dict[str, Any]:
    """The old configuration with those fields of the new one that may change."""
    old = fill_in(old, new)
    # Only steps are compared, not the epochs that they were computed from.
    old["train"] = {**old["train"], **{name: new["train"][name] for name in EPOCHS.values()}}
    if can_move:  # the checksums identify the data
        before, after = old["data"], new["data"]
        old["data"] = {**before, "dir": after["dir"]}
        if before["offsets"] and after["offsets"]:
            old["data"]["offsets"] = after["offsets"]
        if list(map(len, before["sources"])) == list(map(len, after["sources"])):
            # The weights are compared, but not the names of folders and of files of offsets.
            old["data"]["sources"] = [
                [new_source[0], old_source[1], *new_source[2:]]
                for old_source, new_source in zip(before["sources"], after["sources"], strict=True)
            ]
    return old


def _numbered_path(path: Path) -> Path:
    """The path with the next free number, `config.1.json` for `config.json`."""
    numbers = [
        int(number)
        for other in path.parent.glob(f"{path.stem}.*{path.suffix}")
        if (number := other.stem.removeprefix(path.stem + ".")).isdecimal()
    ]
    return path.with_name(f"{path.stem}.{max(numbers, default=0) + 1}{path.suffix}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("has no fields")
        for name in _GROUPS if path.name == RUN_CONFIG else ():
            if not isinstance(content.get(name, {}), dict):
                raise ValueError(f"{name!r} has no fields")
    except ValueError as error:
        raise InputError(
            f"{path}: damaged: {one_line(error)}; restore a copy of it, or give another --workdir"
        ) from error
    return compat.upgrade_config(content)


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))

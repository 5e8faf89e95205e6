"""The folder of a run: who may write to it, and whether it goes on with what it was begun with."""

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcgcn_jax import compat
from lcgcn_jax.atomic_io import PARTIALS, checksums, write_whole
from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.data.records import RECORDS
from lcgcn_jax.distributed import is_primary_process
from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.models.bundles import BEST
from lcgcn_jax.training.config import RUN_CONFIG, differences, fill_in, to_json
from lcgcn_jax.training.config_types import EPOCHS, Config

DATA = "data.json"
"""Name of the checksums of the data that a run was begun with, in its folder."""

LOCK = "train.lock"
"""Name of the file that a training process keeps locked, and that says which process that is."""

OFFSETS = "annotation offsets"
"""Key of the checksum of the annotation offsets among those of a dataset."""

_ASK = "or --accept-changes to go on with"
_SHOWN = 3  # changed files that a message names


class RunLock:
    """The right to train in a folder: one run at a time, with the configuration and data it was begun with.

    Process 0 alone looks at the folder and writes to it; in the others a claim does nothing. The lock is
    the operating system's: a process that is killed leaves none behind.

    Args:
      workdir: the run's folder; made where there is none, and left as it is where the run is refused.
      config: what the run begins or goes on with.
      dataset: its data. A copy of them in another place is the same data.
      sources: what it trains on in place of it, `data.sources`.
      accept_changes: go on also with another configuration or other data; `write_config` writes them down.

    Raises:
      InputError: the folder holds something else, cannot be written, is trained in at this moment, or
        belongs to a run with another configuration or other data.
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
        self._unlock: Callable[[], object] = lambda: None
        if not is_primary_process():
            return
        data = _data_checksums(dataset)
        for number, source in enumerate(sources):
            data |= {f"sources/{number}/{k}": v for k, v in _data_checksums(source).items()}
        try:
            if workdir.exists() and not workdir.is_dir():
                raise InputError(f"{workdir}: not a folder; give another --workdir")
            if _holds_something_else(workdir):
                raise InputError(
                    f"{workdir}: not empty and not a training run; give another --workdir"
                )
            workdir.mkdir(parents=True, exist_ok=True)
            self._unlock = weakref.finalize(self, os.close, _lock(workdir))
            for folder in (workdir, workdir / BEST):
                for left in folder.glob(PARTIALS):
                    left.unlink()
            self._begin_or_compare(config, dataset, data, accept_changes)
        except OSError as error:
            raise InputError(
                f"{workdir}: cannot be written: {error.strerror}; mend that, or give another --workdir"
            ) from error

    def write_config(self) -> None:
        """Writes down what was accepted; what was there before stays beside it under a number.

        Called once it is clear that the run can go on with it.

        Raises:
          InputError: the folder cannot be written.
        """
        with needs_writing(self._workdir):
            for name, text in self._accepted.items():
                path = self._workdir / name
                _write(_next_number(path), path.read_text(encoding="utf-8"))
                _write(path, text)
        self._accepted = {}

    def close(self) -> None:
        """Lets another run train in the folder."""
        self._unlock()

    def _begin_or_compare(
        self,
        config: Config,
        dataset: FaceDataset,
        data: Mapping[str, Any],
        accept_changes: bool,
    ) -> None:
        config_file, data_file = self._workdir / RUN_CONFIG, self._workdir / DATA
        config_text, data_text = to_json(config), json.dumps(data, indent=1) + "\n"
        if not config_file.is_file():
            # The configuration last: where it is, the run has begun, and everything else is there.
            _write(data_file, data_text)
            _write(config_file, config_text)
            return
        old, new = _read(config_file), json.loads(config_text)
        if changed := differences(_comparable(old, new, moved=data_file.is_file()), new):
            if not accept_changes:
                raise InputError(
                    f"{config_file}: this run was started with another config ({'; '.join(changed)}); "
                    f"give another --workdir, the same config, {_ASK} this one"
                )
            self._accepted[RUN_CONFIG] = config_text
        if not data_file.is_file():  # a run that an older version began
            _write(data_file, data_text)
        elif changed := _changed_files(written := _read(data_file), data):
            if not accept_changes:
                _check_offsets(self._workdir, config, written, data)
                raise InputError(
                    f"{dataset.path}: not the data that {self._workdir} was started with ({changed}); "
                    f"give another --workdir, the same data, {_ASK} these"
                )
            self._accepted[DATA] = data_text


@contextlib.contextmanager
def needs_writing(path: Path) -> Iterator[None]:
    """Within, a run's file or folder is written: where that is impossible, the run ends in one line.

    Args:
      path: what is written, for the message.

    Raises:
      InputError: the disk is full, the folder is read-only, and the like.
    """
    try:
        yield
    # TensorStore passes on what the operating system says in types of its own.
    except Exception as error:
        number = _error_number(error)
        if number is None:
            raise
        raise InputError(
            f"{path}: cannot be written: {os.strerror(number)}; mend that, and the same command goes on "
            "from the last checkpoint"
        ) from error


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def _holds_something_else(workdir: Path) -> bool:
    if not workdir.is_dir() or (workdir / RUN_CONFIG).is_file():
        return False
    # What is there before the configuration is, of a run that was killed at its very beginning.
    own = {workdir / LOCK, workdir / DATA, *workdir.glob(PARTIALS)}
    return any(path not in own for path in workdir.iterdir())


def _lock(workdir: Path) -> int:
    """Locks the folder as long as the returned file descriptor is open."""
    # Not inherited by programs that this one starts, so the lock ends with this process.
    descriptor = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 1024, 0).decode(errors="replace").strip()
            raise InputError(
                f"{workdir}: {holder or 'another process'} trains here at this moment; let it end, or "
                "give another --workdir"
            ) from error
        except OSError as error:
            # Some network file systems know no locks; one can train on them all the same.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _data_checksums(dataset: FaceDataset) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = {**checksums(dataset.path / RECORDS)}
    except OSError as error:
        raise InputError(f"{dataset.path}: cannot be read: {error.strerror}") from error
    if dataset.offsets is not None:
        found[OFFSETS] = {"sha256": dataset.offsets.digest}
    return found


def _check_offsets(
    workdir: Path, config: Config, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    """Refuses files of annotation offsets that are not those that a run was started with.

    Raises:
      InputError: with the name of the first of them.
    """
    files = {OFFSETS: config.data.offsets}
    for number, source in enumerate(config.data.sources):
        files[f"sources/{number}/{OFFSETS}"] = source[2] if len(source) > 2 else ""
    for key, file in files.items():
        if key in old and key in new and old[key] != new[key]:
            raise InputError(
                f"{file}: not the annotation offsets that {workdir} was started with (changed); give "
                f"another --workdir, the same file, {_ASK} this one"
            )


def _changed_files(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Names the files that are not the same, as many as fit in a message; empty where all are."""
    changed = [
        f"{name}: {'changed' if name in old and name in new else 'gone' if name in old else 'new'}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    more = len(changed) - _SHOWN
    return "; ".join(changed[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def read_run_config(workdir: Path) -> dict[str, Any] | None:
    """The configuration that a run was started with; None where the folder has no run.

    Raises:
      InputError: it is damaged or cannot be read.
    """
    path = workdir / RUN_CONFIG
    try:
        return _read(path) if path.is_file() else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _comparable(old: Mapping[str, Any], new: Mapping[str, Any], *, moved: bool) -> dict[str, Any]:
    old = fill_in(old, new)
    # The steps are compared; from which epochs they come makes no difference.
    old["train"] = {**old["train"], **{name: new["train"][name] for name in EPOCHS.values()}}
    if moved:  # allowed, since the data are known by what is in them
        before, after = old["data"], new["data"]
        old["data"] = {**before, "dir": after["dir"]}
        if before["offsets"] and after["offsets"]:
            old["data"]["offsets"] = after["offsets"]
        if list(map(len, before["sources"])) == list(map(len, after["sources"])):
            # The weights are compared, and not the names of folders and of files of offsets.
            old["data"]["sources"] = [
                [there[0], source[1], *there[2:]]
                for source, there in zip(before["sources"], after["sources"], strict=True)
            ]
    return old


def _next_number(path: Path) -> Path:
    numbers = [
        int(number)
        for other in path.parent.glob(f"{path.stem}.*{path.suffix}")
        if (number := other.stem.removeprefix(path.stem + ".")).isdecimal()
    ]
    return path.with_name(f"{path.stem}.{max(numbers, default=0) + 1}{path.suffix}")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("holds no fields")
        return compat.upgrade_config(found)
    except ValueError as error:
        raise InputError(
            f"{path}: damaged: {one_line(error)}; put back a copy of it, or give another --workdir"
        ) from error


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))

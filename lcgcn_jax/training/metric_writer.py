"""Metrics of a training run: JSON lines, TensorBoard, and experiment trackers (trackio, Weights & Biases)."""

import contextlib
import importlib
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lcgcn_jax.atomic_io import write_whole
from lcgcn_jax.errors import InputError, choose, one_line
from lcgcn_jax.storage import GrowingFolder
from lcgcn_jax.training.run_lock import needs_writing

LOG = "metrics.jsonl"
"""Name of the metric log in a workdir."""

TENSORBOARD = "tensorboard"
"""Name of the TensorBoard logger, and of its folder in a workdir."""

LOGGERS = (TENSORBOARD, "trackio", "wandb")
"""Loggers that metrics can be written to, in addition to `metrics.jsonl`."""


def check_loggers(names: Sequence[str]) -> None:
    """Check that loggers exist and that their packages are installed.

    Raises:
      InputError: one is unknown or not installed.
    """
    for name in names:
        choose("--log", name, LOGGERS, kind="logger")
        if name != TENSORBOARD:
            _import_tracker(name)


class MetricWriter:
    """Writer of metrics to `metrics.jsonl` and to loggers.

    Args:
      workdir: folder of the run.
      step: step that the run resumes from. Later metrics of a killed run are dropped, because they are
        logged again.
      loggers: names of `LOGGERS`.
      config: configuration of the run, for the trackers.
      require_held: called before an upload; raises an InputError if another process has taken over the
        folder.

    Raises:
      InputError: the folder cannot be written, or a tracker cannot be started.
    """

    def __init__(
        self,
        workdir: Path,
        step: int,
        loggers: Sequence[str] = (TENSORBOARD,),
        config: Mapping[str, Any] | None = None,
        *,
        require_held: Callable[[], None] = lambda: None,
    ):
        # The files of wandb are not uploaded: it has its own server, and changes them all the time.
        self._folder, self._path = GrowingFolder(workdir, require_held, ("wandb",)), workdir / LOG
        file, local = self._folder.local / LOG, self._folder.local
        rows = read_metrics(workdir)
        last_step = int(max((row["step"] for row in rows), default=0))
        text = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step)
        with needs_writing(self._path):
            write_whole(file, lambda tmp: tmp.write_text(text, encoding="utf-8"))
            self._folder.sync()
            self._file = file.open("a", encoding="utf-8")
        self._loggers: list[_TensorBoard | _Tracker] = []
        try:
            for name in dict.fromkeys(loggers):
                self._loggers.append(
                    _TensorBoard(local, step)
                    if name == TENSORBOARD
                    else _Tracker(name, workdir, local, last_step, dict(config or {}))
                )
        except InputError:
            self.close()
            raise

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values by name, such as `train/loss`; in a bucket, they appear later.

        Raises:
          InputError: they cannot be written, or another process has taken over the folder.
        """
        with needs_writing(self._path):
            self._file.write(json.dumps({"step": step} | dict(values)) + "\n")
            self._file.flush()
        for logger in self._loggers:
            logger.write(step, values)
        self._folder.sync(now=False)

    def flush(self) -> None:
        """Write everything, before a checkpoint after which it will not be logged again.

        Raises:
          InputError: the folder cannot be written, or another process has taken it over.
        """
        with needs_writing(self._path):
            self._folder.sync()

    def close(self) -> None:
        """Close the files. Errors are ignored, because `write` and `flush` have raised them."""
        for file in (self._file, *self._loggers, self._folder):
            with contextlib.suppress(OSError, InputError):
                file.close()


class _TensorBoard:
    """Event file of TensorBoard; each write is flushed.

    `tensorboardX.SummaryWriter` passes events to a thread. Its `flush` does not wait for that thread, so a
    kill loses events; and on a full disk the thread ends, and the training blocks on its queue.
    """

    def __init__(self, workdir: Path, step: int):
        files, self._protos, self._summaries = _import_tensorboard()
        self._folder = workdir / TENSORBOARD
        with needs_writing(self._folder):
            self._folder.mkdir(exist_ok=True)
            self._events = files.EventsWriter(str(self._folder / "events"), f".{os.getpid()}")
            # Hides later steps of older event files.
            start = self._protos.SessionLog.START
            self._log_event(step + 1, session_log=self._protos.SessionLog(status=start))
            self._events.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with needs_writing(self._folder):
            for name, value in values.items():
                self._log_event(step, summary=self._summaries.scalar(name, value))
            self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _log_event(self, step: int, **content: Any) -> None:
        self._events.write_event(self._protos.Event(step=step, wall_time=time.time(), **content))


class _Tracker:
    """Run of an experiment tracker with the interface of wandb.

    The project is `lcgcn_jax`, or the value of `WANDB_PROJECT` or `TRACKIO_PROJECT`. The name of the run is
    that of the workdir with a checksum of its path, so that a resumed training continues the run.
    """

    def __init__(
        self, name: str, workdir: Path, folder: Path, last_step: int, config: dict[str, Any]
    ):
        self._name, tracker = name, _import_tracker(name)
        # Metrics of a killed run that are logged again are equal, because runs resume exactly.
        self._last_step = last_step
        path = workdir.absolute()
        run = f"{path.name}-{zlib.crc32(os.fsencode(path)):08x}"
        options = {"id": run, "dir": str(folder)} if name == "wandb" else {"embed": False}
        project = os.environ.get(f"{name.upper()}_PROJECT") or "lcgcn_jax"
        try:
            self._run = tracker.init(
                project=project, name=run, config=config, resume="allow", **options
            )
        except Exception as error:  # of any type, for example without a login
            raise InputError(f"--log {name}: cannot start a run: {one_line(error)}") from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step <= self._last_step:
            return
        try:
            self._run.log(dict(values), step=step)
        except Exception as error:
            raise InputError(f"--log {self._name}: cannot log: {one_line(error)}") from error

    def close(self) -> None:
        self._run.finish()


def _import_tensorboard() -> tuple[Any, ...]:
    """Modules of tensorboardX for event files, their content, and summaries.

    PyTorch is hidden from the import: tensorboardX would import it, which takes 3 s, to accept its tensors.
    """
    names = ("event_file_writer", "proto.event_pb2", "summary")
    modules: dict[str, Any] = sys.modules
    is_hidden = "torch" not in modules
    if is_hidden:
        modules["torch"] = None  # imports raise an ImportError
    try:
        return tuple(importlib.import_module(f"tensorboardX.{name}") for name in names)
    finally:
        if is_hidden:
            del modules["torch"]


def _import_tracker(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"--log {name}: {name} is not installed; pip install {name}") from error


def read_metrics(workdir: Path) -> list[dict[str, int | float]]:
    """Read the rows of `metrics.jsonl` of a run, without damaged lines, such as the last of a killed run."""
    rows = []
    path = workdir / LOG
    if path.is_file():
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
    return rows


def print_validation(step: int, figures: Mapping[str, float]) -> None:
    """Print the NME of a validation above the progress bar."""
    text = ", ".join(f"{k.removeprefix('validation/')} {v:.2f} %" for k, v in figures.items())
    tqdm.write(f"step {step:,}: validation {text}")

"""Metrics of a training run, as JSON lines and for TensorBoard."""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from lcgcn_jax.atomic_io import write_whole
from lcgcn_jax.training.run_lock import needs_writing

LOG = "metrics.jsonl"
BOARD = "tensorboard"


class MetricWriter:
    """Writer of metrics to `metrics.jsonl` and a TensorBoard event file; each write is flushed.

    `tensorboardX.SummaryWriter` passes events to a thread. Its `flush` does not wait for that thread, so a
    kill loses events; and on a full disk the thread ends, and the training blocks on its queue.

    Args:
      workdir: folder of the run.
      step: step that the run resumes from. Later metrics of a killed run are dropped, because they are
        logged again.

    Raises:
      InputError: the folder cannot be written.
    """

    def __init__(self, workdir: Path, step: int):
        self._path, self._board_path = workdir / LOG, workdir / BOARD
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with needs_writing(self._path):
            write_whole(self._path, lambda tmp: tmp.write_text(text, encoding="utf-8"))
            self._file = self._path.open("a", encoding="utf-8")
        with needs_writing(self._board_path):
            self._board_path.mkdir(exist_ok=True)
            self._board = EventsWriter(str(self._board_path / "events"), f".{os.getpid()}")
            # Hides later steps of older event files.
            self._log_event(step + 1, session_log=SessionLog(status=SessionLog.START))
            self._board.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values by name, such as `train/loss`.

        Raises:
          InputError: they cannot be written.
        """
        with needs_writing(self._path):
            self._file.write(json.dumps({"step": step} | dict(values)) + "\n")
            self._file.flush()
        with needs_writing(self._board_path):
            for name, value in values.items():
                self._log_event(step, summary=scalar(name, value))
            self._board.flush()

    def close(self) -> None:
        """Close the files. Errors are ignored, because `write` has flushed everything or raised."""
        for file in (self._file, self._board):
            with contextlib.suppress(OSError):
                file.close()

    def _log_event(self, step: int, **content: Any) -> None:
        self._board.write_event(Event(step=step, wall_time=time.time(), **content))


def read_metrics(workdir: Path) -> list[dict[str, int | float]]:
    """Read the rows of `metrics.jsonl` of a run, without an incomplete last line of a killed run."""
    rows = []
    path = workdir / LOG
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def print_validation(step: int, figures: Mapping[str, float]) -> None:
    """Print the NME of a validation above the progress bar."""
    text = ", ".join(f"{k.removeprefix('validation/')} {v:.2f} %" for k, v in figures.items())
    tqdm.write(f"step {step:,}: validation {text}")

"""Where a training's figures go: JSON lines always, TensorBoard beside them."""

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
    """Appends figures to `metrics.jsonl` and to a TensorBoard event file, at once.

    Args:
      workdir: the run's folder.
      step: the step the run goes on from; what a stopped run logged beyond it is dropped, since it is
        about to be logged again.

    Raises:
      InputError: the folder cannot be written.
    """

    def __init__(self, workdir: Path, step: int):
        self._path, self._board_path = workdir / LOG, workdir / BOARD
        kept = [row for row in read_metrics(workdir) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        with needs_writing(self._path):
            write_whole(self._path, lambda tmp: tmp.write_text(text, encoding="utf-8"))
            self._file = self._path.open("a", encoding="utf-8")
        with needs_writing(self._board_path):
            self._board_path.mkdir(exist_ok=True)
            # Not the SummaryWriter: its thread keeps figures back, which a kill then takes, and when the
            # disk is full it ends and lets the training wait for it.
            self._board = EventsWriter(str(self._board_path / "events"), f".{os.getpid()}")
            # Steps from here on that are in older files are hidden.
            self._log_event(step + 1, session_log=SessionLog(status=SessionLog.START))
            self._board.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs values under their names, e.g. `train/loss`.

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
        """Closes the files. All is in them, or `write` has said that it cannot be."""
        for file in (self._file, self._board):
            with contextlib.suppress(OSError):
                file.close()

    def _log_event(self, step: int, **content: Any) -> None:
        self._board.write_event(Event(step=step, wall_time=time.time(), **content))


def read_metrics(workdir: Path) -> list[dict[str, int | float]]:
    """Rows of a run's `metrics.jsonl`; a last line cut off by a kill is passed over."""
    rows = []
    path = workdir / LOG
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def print_validation(step: int, figures: Mapping[str, float]) -> None:
    """Print the NME of a validation above the progress bar."""
    text = ", ".join(f"{k.removeprefix('validation/')} {v:.2f} %" for k, v in figures.items())
    tqdm.write(f"step {step:,}: validation {text}")

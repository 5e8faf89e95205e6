"""Where a training's figures go: JSON lines always, TensorBoard beside them."""

import json
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from lcgcn_jax.files import write_whole

LOG = "metrics.jsonl"


class MetricWriter:
    """Appends figures to `metrics.jsonl` and to TensorBoard event files.

    Args:
      workdir: the run's folder.
      step: the step the run goes on from; what a stopped run logged beyond it is dropped, since it is
        about to be logged again.
    """

    def __init__(self, workdir: Path, step: int):
        self._path = workdir / LOG
        kept = [row for row in read_metrics(workdir) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_whole(self._path, lambda tmp: tmp.write_text(text, encoding="utf-8"))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step or None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs values under their names, e.g. `train/loss`."""
        self._file.write(json.dumps({"step": step} | dict(values)) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes out what is left."""
        self._file.close()
        self._board.close()


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

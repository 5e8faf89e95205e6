import json
import os
import struct
import subprocess
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event

from lcgcn_jax.errors import InputError
from lcgcn_jax.training.metric_writer import TENSORBOARD, MetricWriter, check_loggers, read_metrics


def board(workdir):
    """All events in the files of TensorBoard."""
    for file in sorted((workdir / TENSORBOARD).iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])  # between two checksums
            data = data[16 + length :]


def test_metrics_are_in_both_files_without_delay(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer.write(7, {"train/loss": 0.5})
    assert read_metrics(tmp_path) == [{"step": 7, "train/loss": 0.5}]
    *_, last = board(tmp_path)
    assert (last.step, last.summary.value[0].tag) == (7, "train/loss")
    assert last.summary.value[0].simple_value == 0.5
    writer.close()


def test_training_does_not_import_torch(tmp_path):
    code = (
        "import sys, pathlib; from lcgcn_jax.training.metric_writer import MetricWriter; "
        "MetricWriter(pathlib.Path(sys.argv[1]), 0).close(); "
        "import tensorboardX; assert not {'torch', 'tensorflow'} & set(sys.modules)"
    )
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )


def test_metrics_after_the_checkpoint_of_a_killed_run_are_dropped(tmp_path):
    rows = [{"step": step, "train/loss": 1 / step} for step in (1, 2, 3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text[:-9])
    MetricWriter(tmp_path, 1).close()
    assert read_metrics(tmp_path) == rows[:1]
    *_, last = board(tmp_path)
    assert last.step == 2, "TensorBoard hides later steps of older files"
    assert last.session_log.status == last.session_log.START


def test_damaged_lines_are_ignored(tmp_path):
    rows = [
        b'{"step": 1, "train/loss": 0.5}',
        b"\xff",
        b"null",
        b"[1]",
        b"{}",
        b'{"step": 2}',
        b'{"s',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(rows))
    assert read_metrics(tmp_path) == [{"step": 1, "train/loss": 0.5}, {"step": 2}]
    MetricWriter(tmp_path, 2).close()


class Tracker(types.ModuleType):
    """Module with the interface of wandb."""

    def __init__(self, error=None):
        super().__init__("tracker")
        self.runs, self.error = [], error

    def init(self, **options):
        if self.error:
            raise self.error
        self.options, self.rows = options, []
        self.runs.append(self)
        return self

    def log(self, values, *, step):
        self.rows.append((step, values))

    def finish(self):
        self.rows.append("finished")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_tracker_receives_each_metric_once(name, tmp_path, monkeypatch):
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, name, tracker)
    monkeypatch.setenv(f"{name.upper()}_PROJECT", "faces")
    writer = MetricWriter(tmp_path, 0, [name], {"seed": 3})
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": 1 / step})
    writer.close()
    assert tracker.rows == [(step, {"train/loss": 1 / step}) for step in (1, 2, 3)] + ["finished"]
    first = tracker.options
    assert (first["project"], first["config"]) == ("faces", {"seed": 3})
    assert not (tmp_path / TENSORBOARD).exists()
    # A killed run resumes from a checkpoint before its last metrics.
    writer = MetricWriter(tmp_path, 1, [name, "tensorboard", name], {"seed": 3})
    for step in (2, 3, 4):
        writer.write(step, {"train/loss": 1 / step})
    writer.close()
    assert tracker.rows == [(4, {"train/loss": 0.25}), "finished"]
    assert tracker.options == first
    assert (first["resume"], len(tracker.runs)) == ("allow", 2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert (tmp_path / TENSORBOARD).exists()


def test_unusable_loggers_are_errors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="--log wandb: wandb is not installed; pip install wandb"):
        check_loggers(["tensorboard", "wandb"])
    with pytest.raises(InputError, match="--log: unknown logger 'wandbb'; did you mean 'wandb'"):
        check_loggers(["wandbb"])
    monkeypatch.setitem(sys.modules, "wandb", Tracker(ValueError("no API key\nlog in")))
    with pytest.raises(InputError, match="--log wandb: cannot start a run: no API key log in"):
        MetricWriter(tmp_path, 0, ["wandb"])


@pytest.mark.slow
def test_trackio_stores_the_metrics(tmp_path):
    pytest.importorskip("trackio", reason="needs: pip install trackio")
    code = """
import sys
from pathlib import Path
from lcgcn_jax.training.metric_writer import MetricWriter
for step in (1, 2):
    writer = MetricWriter(Path(sys.argv[1]), step - 1, ["trackio"], {"seed": 3})
    writer.write(step, {"train/loss": 1 / step})
    writer.close()
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("lcgcn_jax")
print([(row["step"], row["train/loss"]) for row in SQLiteStorage.get_logs("lcgcn_jax", run)])
"""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "[(1, 1.0), (2, 0.5)]" in done.stdout.splitlines()

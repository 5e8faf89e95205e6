import json
import struct

from tensorboardX.proto.event_pb2 import Event

from lcgcn_jax.training.metric_writer import BOARD, MetricWriter, read_metrics


def board(workdir):
    """All events in the files of TensorBoard."""
    for file in sorted((workdir / BOARD).iterdir(), key=lambda path: path.stat().st_mtime_ns):
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


def test_metrics_after_the_checkpoint_of_a_killed_run_are_dropped(tmp_path):
    rows = [{"step": step, "train/loss": 1 / step} for step in (1, 2, 3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text[:-9])
    MetricWriter(tmp_path, 1).close()
    assert read_metrics(tmp_path) == rows[:1]
    *_, last = board(tmp_path)
    assert last.step == 2, "TensorBoard hides later steps of older files"
    assert last.session_log.status == last.session_log.START

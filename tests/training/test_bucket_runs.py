"""Training runs in a bucket of an emulator: killed, started again, and evaluated."""

import json
import signal

import pytest
import tiny
from emulator import bucket, emulator  # noqa: F401
from test_distributed import CONFIG, finish, start
from test_kills import TrainProcess, assert_equal_runs, step_of

from lcgcn_jax.commands.main import main
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.inference.model import load_model
from lcgcn_jax.storage import file_sizes
from lcgcn_jax.training.api import CURVES
from lcgcn_jax.training.checkpoints import CHECKSUMS, latest_checkpoint, read_checkpoint
from lcgcn_jax.training.folder_lock import LOCK
from lcgcn_jax.training.metric_writer import read_metrics
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.trainer import Trainer

pytestmark = pytest.mark.slow
STEPS = 24


def upload(folder, target):
    for name in file_sizes(folder):
        (target / name).write_bytes((folder / name).read_bytes())
    return target


def has_incomplete_checkpoint(workdir):
    """Whether a checkpoint is being written."""
    names = [name.split("/") for name in file_sizes(workdir / "checkpoints")]
    steps = {step for step, *_ in names}
    return any([step, CHECKSUMS] not in names for step in steps)


def test_killed_run_in_a_bucket_ends_like_one_on_a_disk(
    bucket, make_tiny_config, synthetic98, tmp_path, monkeypatch, capsys  # noqa: F811
):  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole, parts, log = tmp_path / "whole", bucket / "parts", tmp_path / "log"
    data = upload(synthetic98, bucket / "data")
    uninterrupted = TrainProcess(whole, synthetic98, STEPS, tmp_path / "whole.log")
    assert uninterrupted.process.wait(timeout=600) == 0, uninterrupted.output()[-2000:]

    events = {
        "locked": lambda process: (parts / LOCK).is_file(),
        "saving": lambda process: has_incomplete_checkpoint(parts),
        "saved": lambda process: step_of(parts) > process.first_step,
    }
    rounds = (
        ("locked", signal.SIGKILL), ("saving", signal.SIGKILL), ("saved", signal.SIGKILL),
        ("saved", signal.SIGTERM), ("saving", signal.SIGKILL),
    )  # fmt: skip
    for event, number in rounds:
        process = TrainProcess(parts, data, STEPS, log)
        process.wait_for(lambda process=process, event=event: events[event](process))
        code = process.end(number)
        assert code == (-number if number == signal.SIGKILL else 128 + number), process.output()
        saved = step_of(parts)
        print(f"from {process.first_step}, {number.name} when {event}, saved {saved}", flush=True)
        assert saved >= process.first_step
        if saved:
            read_checkpoint(latest_checkpoint(parts))
    assert 0 < step_of(parts) < STEPS
    last = TrainProcess(parts, data, STEPS, log)
    assert last.process.wait(timeout=600) == 0, last.output()[-2000:]
    assert f"resuming from step {last.first_step}\n" in last.output()

    assert not has_incomplete_checkpoint(parts)
    assert not (parts / LOCK).exists()
    names = [
        sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (whole, parts)
    ]
    assert names[0] == names[1]
    assert len(names[0]) == make_tiny_config().train.keep
    assert (parts / CURVES).read_bytes().startswith(b"\x89PNG")
    config = make_tiny_config()
    assert_equal_runs(whole, parts, config, STEPS)

    capsys.readouterr()
    results = []
    for run, folder in ((whole, synthetic98), (parts, data)):
        out = tmp_path / "eval.json"
        command = ["eval", "--model", str(run), "--data", str(folder), "--split", "validation"]
        assert main([*command, "--json", str(out), "--overwrite"]) == 0
        results.append(json.loads(out.read_text()))
    assert results[0] == results[1]
    assert load_model(str(parts)).scheme == open_dataset(str(data)).scheme
    config.init_from, config.data.dir = str(parts), str(data)
    trainer = Trainer(config, tmp_path / "new", make_mesh(1)).prepare()
    assert str(parts) in trainer.start_message


def test_two_processes_train_in_a_bucket(bucket, synthetic98, tmp_path, monkeypatch):  # noqa: F811
    """As on a shared disk, but without one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = upload(synthetic98, bucket / "data")
    metrics = []
    for workdir, folder in ((tmp_path / "run", synthetic98), (bucket / "run", data)):
        config = tmp_path / f"{len(metrics)}.py"
        config.write_text(CONFIG.format(tiny=tiny.__file__, data=str(folder)))
        finish(start(config, workdir, 2))
        checkpoint = latest_checkpoint(workdir)
        assert checkpoint.name == "6"
        read_checkpoint(checkpoint)
        rows = read_metrics(workdir)
        metrics.append([{k: v for k, v in row.items() if "second" not in k} for row in rows])
    assert metrics[0] == metrics[1]

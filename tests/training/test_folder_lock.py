"""Lock of a folder in a bucket; test_run_lock.py has tests of the lock on a disk."""

import dataclasses
import json
import os
import subprocess
import time

import pytest
from emulator import bucket, emulator  # noqa: F401

from lcgcn_jax import storage
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.errors import InputError
from lcgcn_jax.storage import BucketPath
from lcgcn_jax.training import folder_lock
from lcgcn_jax.training.config_types import Config
from lcgcn_jax.training.folder_lock import LOCK, lock_folder
from lcgcn_jax.training.metric_writer import MetricWriter, read_metrics
from lcgcn_jax.training.run_lock import RunLock


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(folder_lock, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(folder_lock, "EXPIRY_SECONDS", 1.5)


@pytest.fixture
def elsewhere(monkeypatch):
    """Locks as of another machine, whose processes cannot be looked up."""
    monkeypatch.setattr(folder_lock, "_machine", lambda: "")


def no_heartbeats(monkeypatch):
    monkeypatch.setattr(folder_lock, "_send_heartbeats", lambda *_: None)


@pytest.mark.usefixtures("elsewhere")
def test_living_holder_keeps_the_folder(bucket, capsys):  # noqa: F811
    first = lock_folder(bucket)
    time.sleep(1.1)  # some heartbeats
    holder = f"process {os.getpid()} on {os.uname().nodename}"
    with pytest.raises(InputError, match=f"{bucket}: {holder} is training in this folder; wait"):
        lock_folder(bucket)
    assert (
        f"{holder} is training in this folder, or was killed; waiting up to "
        in capsys.readouterr().err
    )
    first.require_held()
    first.close()
    assert not (bucket / LOCK).exists()
    lock_folder(bucket).close()


@pytest.mark.usefixtures("elsewhere")
def test_expired_lock_is_taken_over(bucket, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        no_heartbeats(patch)
        killed = lock_folder(bucket)
    second = lock_folder(bucket)  # waits
    second.require_held()
    with pytest.raises(InputError, match="has taken over this folder, because this process had no"):
        killed.require_held()
    killed.close()  # leaves the lock of the other
    second.require_held()
    second.close()
    with pytest.raises(InputError, match="another process has taken over"):
        second.require_held()


@pytest.mark.usefixtures("elsewhere")
def test_two_processes_do_not_take_over_the_same_lock(bucket, monkeypatch):  # noqa: F811
    no_heartbeats(monkeypatch)
    lock_folder(bucket)
    time.sleep(2.1)
    write = BucketPath.write

    def write_after_another(self, content, generation=None):
        if generation:  # another process is faster
            monkeypatch.setattr(BucketPath, "write", write)
            other = json.dumps({"holder": "process 1 on other", "id": "x"}).encode()
            write(self, other, generation=generation)
            heartbeats.append(self)
        return write(self, content, generation)

    heartbeats = []
    monkeypatch.setattr(BucketPath, "write", write_after_another)
    metadata = BucketPath.metadata

    def metadata_after_heartbeat(self):
        if heartbeats:
            write(heartbeats[0], json.dumps({"holder": "process 1 on other"}).encode())
        return metadata(self)

    monkeypatch.setattr(BucketPath, "metadata", metadata_after_heartbeat)
    with pytest.raises(InputError, match="process 1 on other is training in this folder"):
        lock_folder(bucket)


def test_lock_of_an_ended_process_of_this_machine_does_not_wait(bucket, monkeypatch):  # noqa: F811
    no_heartbeats(monkeypatch)
    with subprocess.Popen(["true"]) as ended:
        pass
    content = {"holder": "x", "id": "y", "machine": folder_lock._machine(), "pid": ended.pid}
    (bucket / LOCK).write_text(json.dumps(content))
    monkeypatch.setattr(folder_lock._BucketLock, "_wait", None)
    lock_folder(bucket).close()


def test_answer_of_the_first_request_may_be_lost(bucket, monkeypatch):  # noqa: F811
    no_heartbeats(monkeypatch)
    write = BucketPath.write

    def write_twice(self, content, generation=None):
        monkeypatch.setattr(BucketPath, "write", write)
        write(self, content, generation)
        return write(self, content, generation)  # gcsfs repeats the request

    monkeypatch.setattr(BucketPath, "write", write_twice)
    monkeypatch.setattr(folder_lock._BucketLock, "_wait", None)
    lock = lock_folder(bucket)
    lock.require_held()
    lock.close()
    assert not (bucket / LOCK).exists()


def test_lock_of_an_unknown_process_expires(bucket, capsys):  # noqa: F811
    (bucket / LOCK).write_text("no JSON")
    lock_folder(bucket).close()
    assert f"{bucket}: another process is training in this folder, or" in capsys.readouterr().err


def test_process_that_lost_the_lock_uploads_no_metrics(bucket, monkeypatch):  # noqa: F811
    no_heartbeats(monkeypatch)
    lock = lock_folder(bucket)
    writer = MetricWriter(bucket, 0, require_held=lock.require_held)
    writer.write(1, {"train/loss": 0.5})
    writer.flush()
    rows = [{"step": 1, "train/loss": 0.5}]
    (bucket / LOCK).write_text(json.dumps({"holder": "process 1 on other", "id": "x"}))
    monkeypatch.setattr(storage, "_SYNC_SECONDS", 0)
    for write in (lambda: writer.write(2, {"train/loss": 0.25}), writer.flush):
        with pytest.raises(InputError, match="process 1 on other has taken over this folder"):
            write()
    writer.close()
    assert read_metrics(bucket) == rows


def test_answer_of_a_heartbeat_may_be_lost(bucket, monkeypatch):  # noqa: F811
    no_heartbeats(monkeypatch)
    lock = lock_folder(bucket)
    (bucket / LOCK).write_bytes(lock._content)  # written, but its generation never arrived
    lock.require_held()
    lock.require_held()
    lock.close()


@pytest.mark.usefixtures("elsewhere")
def test_deleted_lock_expires(bucket):  # noqa: F811
    """As the lock of a `Trainer` that was prepared and never run."""
    lock_folder(bucket)
    lock_folder(bucket).close()


def test_rejected_run_is_unlocked(bucket, tiny_config):  # noqa: F811
    dataset = open_dataset(tiny_config.data.dir)
    config = Config.from_dict(tiny_config.to_dict())
    RunLock(bucket / "run", config, dataset).close()
    other = dataclasses.replace(config, seed=7)
    with pytest.raises(InputError, match=r"another config \(seed: 0 -> 7\)"):
        RunLock(bucket / "run", other, dataset)
    accepted = RunLock(bucket / "run", other, dataset, accept_changes=True)
    accepted.write_config()
    accepted.close()
    names = {path.name for path in (bucket / "run").iterdir()}
    assert names == {"config.json", "config.1.json", "data.json"}
    (bucket / "other.txt").write_text("x")
    with pytest.raises(InputError, match="not empty and not a training run"):
        RunLock(bucket, config, dataset)

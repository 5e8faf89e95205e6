import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from lcgcn_jax.atomic_io import write_whole
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.records import RECORDS
from lcgcn_jax.errors import InputError
from lcgcn_jax.training.config_types import Config
from lcgcn_jax.training.run_lock import DATA, LOCK, RunLock, needs_writing


@pytest.fixture
def lock_run(tiny_config, tmp_path):
    """Function that locks and unlocks a workdir for the tiny configuration with changed fields of `train`."""

    def make(data=None, *, accept_changes=False, **train):
        tiny_config.train.update(train)
        if data is not None:
            tiny_config.data.dir = str(data)
        dataset = open_dataset(tiny_config.data.dir)
        config = Config.from_dict(tiny_config.to_dict())
        lock = RunLock(tmp_path / "run", config, dataset, accept_changes=accept_changes)
        lock.write_config()
        lock.close()

    return make


@pytest.fixture
def run(lock_run, tmp_path):
    """Workdir of a run that has started."""
    lock_run()
    return tmp_path / "run"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_workdir_is_locked_by_one_run(tiny_config, lock_run, tmp_path):
    dataset = open_dataset(tiny_config.data.dir)
    first = RunLock(tmp_path / "run", Config.from_dict(tiny_config.to_dict()), dataset)
    before = contents(tmp_path / "run")
    with pytest.raises(
        InputError,
        match=rf"run: process {os.getpid()} on {os.uname().nodename} is training in this folder",
    ):
        lock_run()
    assert contents(tmp_path / "run") == before
    first.close()
    lock_run()


@pytest.mark.slow
def test_killed_process_leaves_no_lock(run, lock_run):
    code = (
        "import sys, time; from pathlib import Path; from lcgcn_jax.training import run_lock\n"
        "held = run_lock.lock_folder(Path(sys.argv[1])); print('locked', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"process {other.pid} on"):
            lock_run()
        other.send_signal(signal.SIGKILL)
    lock_run()


def test_file_system_without_locks_is_accepted(monkeypatch, lock_run, tmp_path):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    lock_run()
    assert (tmp_path / "run" / "config.json").is_file()


def test_changed_config_needs_accept_changes(run, lock_run):
    before = contents(run)
    with pytest.raises(
        InputError,
        match=r"another config \(train\.batch_size: 8 -> 16; train\.steps: 6 -> 9\).*--accept-changes",
    ):
        lock_run(batch_size=16, steps=9)
    assert contents(run) == before
    lock_run(batch_size=16, steps=9, accept_changes=True)
    lock_run()  # the accepted config is now that of the run
    lock_run(steps=10, accept_changes=True)
    old, new = before.pop(run.joinpath("config.json").relative_to(run)), contents(run)
    files = [run / name for name in ("config.1.json", "config.2.json", "config.json")]
    assert files[0].read_bytes() == old
    assert [json.loads(file.read_text())["train"]["steps"] for file in files] == [6, 9, 10]
    assert {path.name for path in new} == {file.name for file in files} | {DATA, LOCK}


@pytest.fixture
def copy(synthetic98, tmp_path):
    """Copy of the data."""
    return shutil.copytree(synthetic98, tmp_path / "copy")


def test_moved_data_is_accepted(run, lock_run, copy):
    before = contents(run)
    lock_run(data=copy)
    assert contents(run).keys() == before.keys()


@pytest.mark.parametrize("change", ["flip", "add"])
def test_changed_data_needs_accept_changes(run, lock_run, copy, synthetic98, change):
    shard = next((copy / RECORDS).glob("*train.array_record*"))
    if change == "flip":
        flip_byte(shard)
    else:
        shutil.copy(shard, shard.with_name("more"))
    before = contents(run)
    name, how = {
        "flip": (shard.name, "changed"),
        "add": ("more", "new"),
    }[change]
    with pytest.raises(
        InputError, match=rf"copy: not the data that .*run was started with \({name}: {how}\)"
    ):
        lock_run(data=copy)
    assert contents(run) == before
    lock_run(data=copy, accept_changes=True)
    lock_run(data=copy)
    with pytest.raises(InputError, match="not the data"):
        lock_run(data=synthetic98)
    assert (run / "data.1.json").read_bytes() == before[(run / DATA).relative_to(run)]


def test_removed_file_is_named(run, lock_run, copy):
    shard = next((copy / RECORDS).glob("*train.array_record*"))
    shutil.copy(shard, shard.with_name("more"))
    lock_run(data=copy, accept_changes=True)
    shard.with_name("more").unlink()
    with pytest.raises(InputError, match=r"copy: not the data that .* with \(more: gone\)"):
        lock_run(data=copy)


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_run_of_an_older_version_gets_checksums_of_its_data(run, lock_run):
    expected = (run / DATA).read_bytes()
    (run / DATA).unlink()
    lock_run()
    assert (run / DATA).read_bytes() == expected


def test_run_killed_before_its_config_was_written_starts(run, lock_run):
    expected = contents(run)
    (run / "config.json").rename(run / ".config.1.partial.json")
    lock_run()
    assert contents(run).keys() == expected.keys()


@pytest.mark.parametrize("name", ["config.json", DATA])
@pytest.mark.parametrize("text", ['{"data"', "null", ""])
def test_damaged_file_is_reported_in_one_line(run, lock_run, name, text):
    (run / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: damaged"):
        lock_run(accept_changes=True)
    assert (run / name).read_text() == text


def test_only_the_primary_process_writes(monkeypatch, lock_run, run):
    before = contents(run)
    shutil.rmtree(run)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    lock_run()
    assert not run.exists()
    monkeypatch.undo()
    lock_run()
    first = contents(run)
    assert first.keys() == before.keys()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    lock_run(steps=9)
    assert contents(run) == first


def test_full_disk_is_reported_in_one_line():
    with (
        pytest.raises(InputError, match=r"^/dev/full: cannot be written: No space left on device;"),
        needs_writing(Path("/dev/full")),
        Path("/dev/full").open("w") as file,
    ):
        file.write("something")


def test_disk_error_of_tensorstore_is_reported_in_one_line(tmp_path):
    with (
        pytest.raises(InputError, match="run: cannot be written: No space left on device"),
        needs_writing(tmp_path / "run"),
    ):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 8 bytes [os_error_code='28']")


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(ValueError, match=r"^7 is no shape$"), needs_writing(tmp_path):
        raise ValueError("7 is no shape")
    with pytest.raises(InputError, match=r"^damaged$"), needs_writing(tmp_path):
        raise InputError("damaged")


def test_partial_files_of_killed_processes_are_removed(run, lock_run):
    """A config that was being replaced."""
    (run / ".config.17.partial.json").write_text("{")
    lock_run()
    assert not list(run.glob(".*"))
    write_whole(
        run / "config.json", lambda tmp: tmp.write_bytes((run / "config.json").read_bytes())
    )

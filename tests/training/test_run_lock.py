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
def claim(tiny_config, tmp_path):
    """Claims a run's folder, for the tiny configuration with some fields changed, and lets it go again."""

    def make(data=None, *, accept_changes=False, **train):
        tiny_config.train.update(train)
        if data is not None:
            tiny_config.data.dir = str(data)
        dataset = open_dataset(tiny_config.data.dir)
        config = Config.from_dict(tiny_config.to_dict())
        claimed = RunLock(tmp_path / "run", config, dataset, accept_changes=accept_changes)
        claimed.write_config()
        claimed.close()

    return make


@pytest.fixture
def run(claim, tmp_path):
    """A folder in which a run has begun."""
    claim()
    return tmp_path / "run"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_belongs_to_one_run_at_a_time(tiny_config, claim, tmp_path):
    dataset = open_dataset(tiny_config.data.dir)
    first = RunLock(tmp_path / "run", Config.from_dict(tiny_config.to_dict()), dataset)
    before = contents(tmp_path / "run")
    with pytest.raises(
        InputError,
        match=rf"run: process {os.getpid()} on {os.uname().nodename} is training in this folder",
    ):
        claim()
    assert contents(tmp_path / "run") == before
    first.close()
    claim()


def test_a_process_that_is_killed_leaves_no_lock(run, claim):
    code = (
        "import sys, time; from pathlib import Path; from lcgcn_jax.training import run_lock\n"
        "held = run_lock._lock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"process {other.pid} on"):
            claim()
        other.send_signal(signal.SIGKILL)
    claim()


def test_a_file_system_without_locks_is_trained_on(monkeypatch, claim, tmp_path):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    claim()
    assert (tmp_path / "run" / "config.json").is_file()


def test_another_config_is_refused_unless_asked(run, claim):
    before = contents(run)
    with pytest.raises(
        InputError,
        match=r"another config \(train\.batch_size: 8 -> 16; train\.steps: 6 -> 9\).*--accept-changes",
    ):
        claim(batch_size=16, steps=9)
    assert contents(run) == before
    claim(batch_size=16, steps=9, accept_changes=True)
    claim()  # it is the run's own now
    claim(steps=10, accept_changes=True)
    old, new = before.pop(run.joinpath("config.json").relative_to(run)), contents(run)
    files = [run / name for name in ("config.1.json", "config.2.json", "config.json")]
    assert files[0].read_bytes() == old
    assert [json.loads(file.read_text())["train"]["steps"] for file in files] == [6, 9, 10]
    assert {path.name for path in new} == {file.name for file in files} | {DATA, LOCK}


@pytest.fixture
def copy(synthetic98, tmp_path):
    """The data in another place."""
    return shutil.copytree(synthetic98, tmp_path / "copy")


def test_data_that_were_moved_are_the_same(run, claim, copy):
    before = contents(run)
    claim(data=copy)
    assert contents(run).keys() == before.keys()


@pytest.mark.parametrize("change", ["flip", "remove", "add"])
def test_other_data_are_refused_unless_asked(run, claim, copy, synthetic98, change):
    shard = next((copy / RECORDS).glob("*train.array_record*"))
    if change == "flip":
        flip_byte(shard)
    elif change == "remove":
        shard.unlink()
    else:
        shutil.copy(shard, shard.with_name("more"))
    before = contents(run)
    name, how = {
        "flip": (shard.name, "changed"),
        "remove": (shard.name, "gone"),
        "add": ("more", "new"),
    }[change]
    with pytest.raises(
        InputError, match=rf"copy: not the data that .*run was started with \({name}: {how}\)"
    ):
        claim(data=copy)
    assert contents(run) == before
    claim(data=copy, accept_changes=True)
    claim(data=copy)
    with pytest.raises(InputError, match="not the data"):
        claim(data=synthetic98)
    assert (run / "data.1.json").read_bytes() == before[(run / DATA).relative_to(run)]


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_run_of_an_older_version_learns_what_its_data_are(run, claim):
    wanted = (run / DATA).read_bytes()
    (run / DATA).unlink()
    claim()
    assert (run / DATA).read_bytes() == wanted


def test_a_run_that_was_killed_at_its_very_beginning_begins(run, claim):
    wanted = contents(run)
    (run / "config.json").rename(run / ".config.1.partial.json")
    claim()
    assert contents(run).keys() == wanted.keys()


@pytest.mark.parametrize("name", ["config.json", DATA])
@pytest.mark.parametrize("text", ['{"data"', "null", ""])
def test_a_damaged_file_of_the_run_is_told_in_one_line(run, claim, name, text):
    (run / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: damaged"):
        claim(accept_changes=True)
    assert (run / name).read_text() == text


def test_other_processes_than_the_first_leave_the_folder_alone(monkeypatch, claim, run):
    before = contents(run)
    shutil.rmtree(run)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    claim()
    assert not run.exists()
    monkeypatch.undo()
    claim()
    first = contents(run)
    assert first.keys() == before.keys()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    claim(steps=9)
    assert contents(run) == first


def test_a_full_disk_is_told_in_one_line():
    with (
        pytest.raises(InputError, match=r"^/dev/full: cannot be written: No space left on device;"),
        needs_writing(Path("/dev/full")),
        Path("/dev/full").open("w") as file,
    ):
        file.write("something")


def test_what_tensorstore_makes_of_it_is_told_too(tmp_path):
    with (
        pytest.raises(InputError, match="run: cannot be written: No space left on device"),
        needs_writing(tmp_path / "run"),
    ):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 8 bytes [os_error_code='28']")


def test_other_mistakes_are_not_taken_for_it(tmp_path):
    with pytest.raises(ValueError, match=r"^7 is no shape$"), needs_writing(tmp_path):
        raise ValueError("7 is no shape")
    with pytest.raises(InputError, match=r"^damaged$"), needs_writing(tmp_path):
        raise InputError("damaged")


def test_what_another_process_is_writing_is_not_in_the_way(run, claim):
    """Left by a kill: a config that was about to be replaced."""
    (run / ".config.17.partial.json").write_text("{")
    claim()
    assert not list(run.glob(".*"))
    write_whole(
        run / "config.json", lambda tmp: tmp.write_bytes((run / "config.json").read_bytes())
    )

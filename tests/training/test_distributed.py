"""Training with `lcgcn train` in several processes on this machine."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import tiny

from lcgcn_jax.commands.main import main
from lcgcn_jax.models.bundles import load_bundle
from lcgcn_jax.training.checkpoints import latest_checkpoint, read_checkpoint
from lcgcn_jax.training.metric_writer import read_metrics

CONFIG = """
import runpy


def get_config():
    config = runpy.run_path({tiny!r})["get_config"]()
    config.data.dir = {data!r}
    return config
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory, synthetic98):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG.format(tiny=tiny.__file__, data=str(synthetic98)))
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(config_file, workdir, count):
    """Starts `lcgcn train` as `count` processes of one device each."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
    }
    command = [sys.executable, "-m", "lcgcn_jax", "train", "--config", str(config_file)]
    command += ["--workdir", str(workdir)]
    if count > 1:
        command += ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(count)]
    return [
        subprocess.Popen(
            [*command, "--process-id", str(i)] if count > 1 else command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(count)
    ]


def finish(processes, codes=(0,)):
    outputs = [process.communicate(timeout=300) for process in processes]
    for process, (_, err) in zip(processes, outputs, strict=True):
        assert process.returncode in codes, err
    return outputs


def wait_for_step(workdir, step, processes):
    deadline = time.monotonic() + 300
    while not any(row["step"] >= step for row in read_metrics(workdir)):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


@pytest.fixture(scope="module")
def single_process_run(config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("single") / "run"
    finish(start(config_file, workdir, 1))
    return workdir


@pytest.mark.slow
def test_run_resumes_with_another_number_of_processes(config_file, single_process_run, tmp_path):
    workdir = tmp_path / "run"
    processes = start(config_file, workdir, 2)
    wait_for_step(workdir, 2, processes)
    processes[-1].send_signal(signal.SIGTERM)  # all processes stop at the same step
    out = finish(processes, codes=(0, 143))
    stopped = int(latest_checkpoint(workdir).name)
    if stopped < 6:  # otherwise a process finished before the signal
        assert {process.returncode for process in processes} == {143}
        assert f"stopped by SIGTERM; {workdir}: saved at step {stopped}" in out[0][1]
        assert not any(str(workdir) in text for text, _ in out[1:])
        finish(start(config_file, workdir, 4))
    rows, expected = read_metrics(workdir), read_metrics(single_process_run)
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for name in row.keys() - {"steps_per_second"}:
            assert row[name] == pytest.approx(other[name], rel=1e-4), (name, row["step"])
    # The metrics show that the weights agree. They are not compared: where a gradient is 0, as that of an
    # offset before a softmax, Adam takes steps in the direction of rounding errors.
    weights, expected = (
        read_checkpoint(latest_checkpoint(run)).weights for run in (workdir, single_process_run)
    )
    assert weights.keys() == expected.keys() == load_bundle(workdir).weights.keys()


@pytest.mark.slow
def test_error_of_one_process_ends_all_with_one_line(config_file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("not a run")
    processes = start(config_file, tmp_path / "run", 2)
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2, err
        assert "not empty and not a training run" in err
        assert "Traceback" not in err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--coordinator here", "--coordinator here: not HOST:PORT"),
        ("--coordinator here:1", "needs --num-processes and --process-id"),
        ("--coordinator here:1 --num-processes 2 --process-id 2", "numbered from 0"),
        ("--num-processes 2", "need --coordinator HOST:PORT"),
        ("--distributed --process-id 0", "finds the processes automatically"),
    ],
)
def test_inconsistent_options_are_rejected(capsys, tmp_path, options, message):
    run = ["train", "--config", "demo:small", "--workdir", str(tmp_path / "run")]
    assert main([*run, *options.split()]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

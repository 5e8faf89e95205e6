"""Processes of `lcgcn train` that are killed and started again."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny

from lcgcn_jax.models.bundles import BEST, WEIGHTS, load_bundle
from lcgcn_jax.training.checkpoints import latest_checkpoint, read_checkpoint
from lcgcn_jax.training.metric_writer import TENSORBOARD, read_metrics
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.trainer import Trainer

pytestmark = pytest.mark.slow
CHECKPOINT_EVERY, EVAL_EVERY = 3, 4
MAX_STEPS = 6  # of a process before it is killed


class TrainProcess:
    """A process of `lcgcn train`."""

    def __init__(self, workdir, data, steps, log):
        self.workdir, self.first_step = workdir, step_of(workdir)
        overrides = {
            "data.dir": data,
            "train.steps": steps,
            "train.checkpoint_every": CHECKPOINT_EVERY,
            "train.eval_every": EVAL_EVERY,
        }
        # One device, and every program from the compilation cache.
        environment = os.environ | {
            "XLA_FLAGS": "",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.log, self.log_start = log, log.stat().st_size if log.exists() else 0
        with log.open("a") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lcgcn_jax", "train"]
                + ["--config", tiny.__file__, "--workdir", str(workdir)]
                + [f"--config.{name}={value}" for name, value in overrides.items()],
                stdout=out, stderr=out, env=environment,
                start_new_session=True,  # not ended by a Ctrl-C in the terminal of the test
            )  # fmt: skip

    def output(self):
        return self.log.read_text()[self.log_start :]

    def wait_for(self, event):
        """Waits until `event()` is true; fails if the process ends."""
        while not event():
            assert self.process.poll() is None, self.output()[-2000:]
            time.sleep(0.01)

    def end(self, number):
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=300)


def step_of(workdir):
    path = latest_checkpoint(workdir)
    return 0 if path is None else int(path.name)


def logged(workdir):
    return max((row["step"] for row in read_metrics(workdir)), default=0)


def has_opened_log(process):
    """Whether a process has dropped the metrics that an earlier one logged after its last checkpoint."""
    return any((process.workdir / TENSORBOARD).glob(f"*.{process.process.pid}"))


def partial_names(workdir):
    """Names of partial files and folders of a killed process."""
    partials = itertools.chain(
        workdir.glob("checkpoints/*.partial*"), workdir.glob(".*.partial*"), workdir.glob("best/.*")
    )
    return sorted(str(path.relative_to(workdir)) for path in partials)


def state_and_metrics(config, workdir):
    """State and metrics of a finished run, without its speed."""
    state = Trainer(config, workdir, make_mesh(1)).prepare().state
    metrics = [
        {name: value for name, value in row.items() if name != "steps_per_second"}
        for row in read_metrics(workdir)
    ]
    return jax.tree.leaves(jax.tree.map(np.asarray, state)), metrics


SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT) + (signal.SIGKILL,) * 2


def assert_equal_runs(whole, parts, config, steps):
    """Asserts that two finished runs are equal; returns the number of arrays of their state."""
    for name in (WEIGHTS, "config.json", "README.md"):
        a, b = ((run / BEST / name).read_bytes() for run in (whole, parts))
        assert a == b.replace(b"# parts", b"# whole"), name

    config.train.steps = steps
    config.train.checkpoint_every, config.train.eval_every = CHECKPOINT_EVERY, EVAL_EVERY
    (state_a, metrics_a), (state_b, metrics_b) = (
        state_and_metrics(config, run) for run in (whole, parts)
    )
    assert len(state_a) == len(state_b) > 20
    for a, b in zip(state_a, state_b, strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics_a == metrics_b
    return len(state_a)


def test_killed_run_ends_like_an_uninterrupted_one(make_tiny_config, synthetic98, tmp_path):
    rng = random.Random(0)
    steps = (MAX_STEPS + 1) * len(SIGNALS)
    whole, parts, log = tmp_path / "whole", tmp_path / "parts", tmp_path / "log"
    start = time.perf_counter()
    uninterrupted = TrainProcess(whole, synthetic98, steps, tmp_path / "whole.log")
    uninterrupted.wait_for(lambda: logged(whole) > 0)
    startup, start = time.perf_counter() - start, time.perf_counter()
    assert uninterrupted.process.wait(timeout=600) == 0, uninterrupted.output()[-2000:]
    step_time = (time.perf_counter() - start) / steps

    for number, stop_signal in enumerate(SIGNALS, 1):
        process = TrainProcess(parts, synthetic98, steps, log)
        # Every fifth signal is sent while the process starts, the others at a random time in a step.
        if number % 5 == 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.process.wait(rng.uniform(0, startup))
        else:
            target = process.first_step + rng.randint(1, MAX_STEPS)
            process.wait_for(
                lambda process=process, target=target: (
                    has_opened_log(process) and logged(process.workdir) >= target
                )
            )
            time.sleep(rng.uniform(0, 2 * step_time))
        code = process.end(stop_signal)
        saved, last = step_of(parts), logged(parts)
        print(
            f"{number:2}: from {process.first_step:3}, {signal.Signals(stop_signal).name} at {last:3}, "
            f"saved {saved:3}; "
            f"partial: {', '.join(partial_names(parts)) or '-'}",
            flush=True,
        )
        assert saved >= process.first_step
        if stop_signal == signal.SIGKILL:
            assert code == -signal.SIGKILL
            assert last - saved <= CHECKPOINT_EVERY
        else:
            assert code == 128 + stop_signal, process.output()[-2000:]
            assert saved == last
            assert f"saved at step {saved}; the same command resumes the run" in process.output()
        if process.first_step and "on 1 x cpu" in process.output():
            assert f"resuming from step {process.first_step}\n" in process.output()
        if saved:
            read_checkpoint(latest_checkpoint(parts))
        if (parts / BEST / WEIGHTS).is_file():
            load_bundle(parts)

    last = TrainProcess(parts, synthetic98, steps, log)
    assert last.process.wait(timeout=600) == 0, last.output()[-2000:]
    assert not partial_names(parts)
    names = {path.name for path in (parts / "checkpoints").iterdir()}
    assert names == {path.name for path in (whole / "checkpoints").iterdir()}
    assert len(names) == make_tiny_config().train.keep
    num_arrays = assert_equal_runs(whole, parts, make_tiny_config(), steps)
    print(f"{len(SIGNALS)} signals, {steps} steps: {num_arrays} arrays of the state are equal")

"""Runs of `lcgcn train` in processes of their own, which are killed and started again."""

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
from lcgcn_jax.training.metric_writer import read_metrics
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.trainer import Trainer

pytestmark = pytest.mark.slow
CHECKPOINT_EVERY, EVAL_EVERY = 3, 4
MOST_STEPS = 6  # that a life is to take before it is killed


class Life:
    """A process that trains, from its start to its end."""

    def __init__(self, workdir, data, steps, log):
        self.workdir, self.began_at = workdir, step_of(workdir)
        overrides = {
            "data.dir": data,
            "train.steps": steps,
            "train.checkpoint_every": CHECKPOINT_EVERY,
            "train.eval_every": EVAL_EVERY,
        }
        # One device, and no compilation that was done before is done again.
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
                start_new_session=True,  # a Ctrl-C that ends the test is not for it
            )  # fmt: skip

    def said(self):
        return self.log.read_text()[self.log_start :]

    def wait_for(self, event):
        """Waits until something is the case; the process has to live as long."""
        while not event():
            assert self.process.poll() is None, self.said()[-2000:]
            time.sleep(0.01)

    def end(self, number):
        """Sends a signal; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=300)


def step_of(workdir):
    path = latest_checkpoint(workdir)
    return 0 if path is None else int(path.name)


def logged(workdir):
    return max((row["step"] for row in read_metrics(workdir)), default=0)


def being_written(workdir):
    """Names of what a killed process was writing."""
    found = itertools.chain(
        workdir.glob("checkpoints/*.partial*"), workdir.glob(".*.partial*"), workdir.glob("best/.*")
    )
    return sorted(str(path.relative_to(workdir)) for path in found)


def state_and_figures(config, workdir):
    """All that a finished run leaves, but for how fast it was."""
    state = Trainer(config, workdir, make_mesh(1)).prepare().state
    figures = [
        {name: value for name, value in row.items() if name != "steps_per_second"}
        for row in read_metrics(workdir)
    ]
    return jax.tree.leaves(jax.tree.map(np.asarray, state)), figures


SIGNALS = {
    "short": (signal.SIGKILL, signal.SIGTERM, signal.SIGINT),
    "long": (signal.SIGKILL,) * 20,
}


@pytest.mark.parametrize("length", SIGNALS)
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(
    make_tiny_config, synthetic98, tmp_path, length
):
    signals, chance = SIGNALS[length], random.Random(length)
    steps = (MOST_STEPS + 1) * len(signals)
    whole, parts, log = tmp_path / "whole", tmp_path / "parts", tmp_path / "log"
    start = time.perf_counter()
    undisturbed = Life(whole, synthetic98, steps, tmp_path / "whole.log")
    undisturbed.wait_for(lambda: logged(whole) > 0)
    startup, start = time.perf_counter() - start, time.perf_counter()
    assert undisturbed.process.wait(timeout=600) == 0, undisturbed.said()[-2000:]
    step_time = (time.perf_counter() - start) / steps

    for number, sent in enumerate(signals, 1):
        life = Life(parts, synthetic98, steps, log)
        # Every fifth comes while the process starts, the others wherever it is in a step then.
        if number % 5 == 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                life.process.wait(chance.uniform(0, startup))
        else:
            target = life.began_at + chance.randint(1, MOST_STEPS)
            life.wait_for(lambda life=life, target=target: logged(life.workdir) >= target)
            time.sleep(chance.uniform(0, 2 * step_time))
        code = life.end(sent)
        kept, seen = step_of(parts), logged(parts)
        print(
            f"{number:2}: from {life.began_at:3}, {signal.Signals(sent).name} at {seen:3}, kept {kept:3}; "
            f"in the middle of {', '.join(being_written(parts)) or '-'}",
            flush=True,
        )
        assert kept >= life.began_at
        if sent == signal.SIGKILL:
            assert code == -signal.SIGKILL
            assert seen - kept <= CHECKPOINT_EVERY
        else:
            assert code == 128 + sent, life.said()[-2000:]
            assert kept == seen
            assert f"saved at step {kept}; the same command resumes the run" in life.said()
        if life.began_at and "on 1 x cpu" in life.said():
            assert f"resuming from step {life.began_at}\n" in life.said()
        if kept:
            read_checkpoint(latest_checkpoint(parts))
        if (parts / BEST / WEIGHTS).is_file():
            load_bundle(parts)

    last = Life(parts, synthetic98, steps, log)
    assert last.process.wait(timeout=600) == 0, last.said()[-2000:]
    assert not being_written(parts)
    names = {path.name for path in (parts / "checkpoints").iterdir()}
    assert names == {path.name for path in (whole / "checkpoints").iterdir()}
    assert len(names) == make_tiny_config().train.keep
    for name in (WEIGHTS, "config.json", "README.md"):
        a, b = ((run / BEST / name).read_bytes() for run in (whole, parts))
        assert a == b.replace(b"# parts", b"# whole"), name

    config = make_tiny_config()
    config.train.steps = steps
    config.train.checkpoint_every, config.train.eval_every = CHECKPOINT_EVERY, EVAL_EVERY
    (state_a, figures_a), (state_b, figures_b) = (
        state_and_figures(config, run) for run in (whole, parts)
    )
    assert len(state_a) == len(state_b) > 20
    for a, b in zip(state_a, state_b, strict=True):
        np.testing.assert_array_equal(a, b)
    assert figures_a == figures_b
    print(f"{len(signals)} signals, {steps} steps: {len(state_a)} arrays of the state are the same")

"""benchmarks/gpu.sh: its commands in a dry run, and the whole script on a CPU."""

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def gpu_script(*arguments, timeout=60):
    return subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_dry_run_prints_commands_with_limits_and_writes_nothing(tmp_path):
    out = tmp_path / "results"
    options = ("--data", tmp_path, "--train_minutes", 8, "--batch_sizes", "96,192", "--dry_run")
    process = gpu_script("--out", out, *options, "--", "--config.seed=3")
    assert (process.returncode, process.stderr) == (0, "")
    lines = process.stdout.splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("timeout ")]
    limits = [words[words.index("--kill-after") + 2] for words in commands]
    assert limits == ["8m", "1m", "2m", "2m", "2m"]
    assert commands[0][-2:] == [f"--config.data.dir={tmp_path}", "--config.seed=3"]
    assert "train.batch_size=96,train.batch_size=192" in commands[3]
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--out is missing"),
        (("--out", "x", "--config", "configs/none.py"), "no such file"),
        (("--out", "x", "--train_minutes", "2.5"), "--train_minutes '2.5'"),
        (("--out", "x", "--batch_sizes", "64,"), "--batch_sizes '64,'"),
        (("--out", "x", "--train_minutes", "08"), "--train_minutes '08'"),
        (("--out", "x", "--step_minutes", "0"), "--step_minutes '0'"),
        (("--out", "x", "--gpu", "1"), "unknown option --gpu"),
    ],
)
def test_unusable_options_are_an_error(options, message):
    process = gpu_script(*options)
    assert process.returncode == 2
    assert process.stdout == ""
    assert message in process.stderr
    assert process.stderr.count("\n") == 1


def test_a_failed_step_is_reported_and_the_others_run(tmp_path):
    python = tmp_path / "python"
    # A training that is stopped at its limit has the exit code 124.
    python.write_text(
        '#!/bin/sh\necho "$@"\ncase "$*" in *"lcgcn_jax train"*) exit 124;; *"jax bench"*) exit 3;; esac\n'
    )
    python.chmod(0o755)
    out = tmp_path / "results"
    process = gpu_script("--out", out, "--python", python, "--data", tmp_path)
    assert process.returncode == 1
    assert process.stderr == f"gpu.sh: failed: bench (exit code 3); see {out}\n"
    assert {path.stem for path in out.iterdir()} == {
        "train", "save_model", "compare_libraries", "step_variants", "bench",
    }  # fmt: skip
    process = gpu_script("--out", tmp_path / "second", "--python", python, "--train_minutes", 0)
    assert {path.stem for path in (tmp_path / "second").iterdir()} == {
        "compare_libraries", "step_variants", "bench",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_small_run_on_a_cpu_writes_every_result(tmp_path, synthetic68):
    process = gpu_script(
        "--out", tmp_path, "--small", "--data", synthetic68, "--train_minutes", 1,
        "--config", "configs/w300_hrnet18.py:small", "--batch_sizes", 8, "--workers", 0,
        "--python", sys.executable, "--", "--config.model.heatmap.arch=tiny",
        "--config.data.image_size=64", "--config.train.batch_size=8", "--config.train.steps=4",
        timeout=600,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    for name in ("compare_libraries", "step_variants", "bench"):
        assert json.loads((tmp_path / f"{name}.json").read_text())
    assert (tmp_path / "model" / "model.safetensors").stat().st_size > 0

import json
import os
import shutil
import sys

import cv2
import numpy as np
import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.training.checkpoints import latest_checkpoint, read_checkpoint
from lcgcn_jax.training.config import load_config
from lcgcn_jax.training.config_types import Config
from lcgcn_jax.training.run_lock import RunLock


@pytest.fixture
def run(small_run, tmp_path):
    """Copy of the folder of the run."""
    return shutil.copytree(small_run, tmp_path / "run")


def test_run_writes_all_files_to_its_folder(small_run):
    names = {path.name for path in small_run.iterdir()}
    assert names >= {"best", "checkpoints", "config.json", "curves.png", "metrics.jsonl"}
    assert "tensorboard" in names
    assert cv2.imread(str(small_run / "curves.png")).shape[0] > 300
    rows = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    figures = {name for row in rows for name in row}
    assert figures >= {"train/loss", "train/focal", "train/l1", "steps_per_second"}
    assert figures >= {"validation/heatmap_nme", "validation/graph_nme", "learning_rate/graph"}


def test_finished_run_is_not_changed(run, small_run_config, synthetic98, capsys):
    before = (run / "best" / "model.safetensors").read_bytes()
    overrides = [f"--config.data.dir={synthetic98}", "--config.train.keep", "1"]
    assert main(["train", "--config", small_run_config, "--workdir", str(run), *overrides]) == 0
    assert "resuming from step 2" in capsys.readouterr().out
    assert (run / "best" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_pretrained_weights_are_reported(
    small_run, small_run_config, synthetic98, tmp_path, capsys
):
    overrides = [f"--config.data.dir={synthetic98}", f"--config.init_from={small_run}"]
    code = main(
        ["train", "--config", small_run_config, "--workdir", str(tmp_path / "run"), *overrides]
    )
    assert code == 0
    assert f"run: starts with the heatmap model of {small_run}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "demo:small", "--config.train.stepz=3"], "did you mean 'steps'"),
        (
            ["--config", "demo:small", "--config.model.decode=sharp"],
            "model.decode: got 'sharp'; expected one of argmax",
        ),
        (
            ["--config", "demo:small", "--config.model.graph.message=offset"],
            "model.graph.message: got 'offset'; expected one of paper",
        ),
        (
            ["--config", "demo:small", "--config.model.heatmap.arch=w19"],
            "model.heatmap.arch: got 'w19'; expected one of",
        ),
        (
            ["--config", "demo:small", "--config.model.heatmap_offset=left"],
            "model.heatmap_offset: got 'left'; expected a number",
        ),
        (["--config", "demo:small", "--config.init_from=gone.pth"], "gone.pth: no such file"),
        (
            ["--config", "demo:small", "--config.train.mode=all"],
            "train.mode: got 'all'; expected one of joint",
        ),
        (["--config", "demo:tiny"], "did you mean 'small'"),
        (["--config", "missing.py"], "missing.py: no such config file"),
        (["--config", "demo:small", "--train.steps=3"], "unrecognized: --train.steps=3"),
        (["--config", "demo:small", "--config.train.steps"], "a value is missing"),
        (["--config", "demo:small", "--config.data.dir=nowhere"], "nowhere: no such folder"),
        (
            ["--config", "w300_lcgcn:small"],
            r"98 points (wflw98), but the config is for 68 (ibug68)",
        ),
    ],
)
def test_invalid_configuration_is_an_error(error_line, synthetic98, tmp_path, arguments, message):
    if not any("data.dir" in a for a in arguments):
        arguments = [f"--config.data.dir={synthetic98}", *arguments]
    error = error_line("train", "--workdir", tmp_path / "run", *arguments)
    assert message in error
    assert not (tmp_path / "run").exists()


def test_workdir_of_another_run_is_an_error(error_line, run, small_run_config, synthetic98):
    error = error_line(
        "train", "--config", small_run_config, "--workdir", run,
        f"--config.data.dir={synthetic98}", "--config.train.keep=1", "--config.seed=5",
    )  # fmt: skip
    assert "another config (seed: 0 -> 5)" in error


@pytest.mark.slow
def test_diverging_training_is_a_one_line_error(run, small_run_config, synthetic98, capsys):
    """A run that resumes with another config diverges; its checkpoint is unchanged."""
    code = main(
        ["train", "--config", small_run_config, "--workdir", str(run), "--accept-changes",
         f"--config.data.dir={synthetic98}", "--config.train.keep=1", "--config.train.steps=4",
         "--config.optimizer.learning_rate.heatmap=1e38", "--config.optimizer.warmup_steps=0",
         "--config.optimizer.schedule=constant"]
    )  # fmt: skip
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 1
    assert error.startswith("lcgcn: stopped: the parameter norm is inf at step 3 ")
    assert np.all([word in error for word in ("heatmap 1e+38", "train/0000")])
    assert latest_checkpoint(run).name == "2"
    read_checkpoint(latest_checkpoint(run))
    steps = [json.loads((run / f).read_text())["train"]["steps"] for f in OLD_AND_NEW]
    assert steps == [2, 4]


OLD_AND_NEW = ("config.1.json", "config.json")


def test_damaged_checkpoint_is_a_one_line_error(error_line, run, small_run_config, synthetic98):
    largest = max((run / "checkpoints").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    error = error_line(
        "train", "--config", small_run_config, "--workdir", run,
        f"--config.data.dir={synthetic98}", "--config.train.keep=1",
    )  # fmt: skip
    assert f"{run}/checkpoints/2: not a checkpoint, or damaged: " in error
    assert "remove this folder to resume from the checkpoint before it" in error
    assert largest.read_bytes() == data


def test_locked_workdir_can_be_evaluated_but_not_trained_in(
    error_line, run, small_run_config, synthetic98, tmp_path
):
    config = load_config(small_run_config)
    config.data.dir, config.train.keep = str(synthetic98), 1
    lock = RunLock(run, Config.from_dict(config.to_dict()), open_dataset(synthetic98))
    error = error_line(
        "train", "--config", small_run_config, "--workdir", run,
        f"--config.data.dir={synthetic98}", "--config.train.keep=1",
    )  # fmt: skip
    assert f"{run}: process {os.getpid()} on " in error
    out = tmp_path / "eval.json"
    evaluate = ["eval", "--model", str(run), "--data", str(synthetic98), "--split", "test"]
    assert main([*evaluate, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["num_faces"] == 24
    lock.close()


def test_a_tracker_that_is_not_installed_is_an_error(error_line, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    line = [
        "train",
        "--config",
        "demo:small",
        "--workdir",
        tmp_path / "run",
        "--log",
        "tensorboard",
    ]
    error = error_line(*line, "--log", "wandb")
    assert "--log wandb: wandb is not installed; pip install wandb" in error
    assert not (tmp_path / "run").exists()
    assert "invalid choice: 'mlflow'" in error_line(*line, "--log", "mlflow")

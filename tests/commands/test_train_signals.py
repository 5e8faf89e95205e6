"""Signals that stop a training: it saves, prints one line, and exits with 128 plus the signal number."""

import os
import signal

import pytest

from lcgcn_jax.commands import train
from lcgcn_jax.commands.main import main
from lcgcn_jax.training.checkpoints import latest_checkpoint

CONFIG = """
from lcgcn_jax.training.config import default_config

def get_config():
    config = default_config()
    config.model.heatmap = {"name": "toy"}
    config.model.graph = None
    config.data.image_size = 32
    config.train.mode = "heatmap_only"
    config.train.batch_size = 8
    config.train.steps, config.train.eval_every = 6, 3
    return config
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_signal_saves_a_checkpoint(toy, synthetic98, tmp_path, monkeypatch, capsys, number, code):
    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.setattr(train, "print_validation", lambda *_: os.kill(os.getpid(), number))
    command = ["train", "--config", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run")]
    command += [f"--config.data.dir={synthetic98}"]
    assert main(command) == code
    captured = capsys.readouterr()
    shown = captured.out.splitlines()
    assert "6 steps of 8 faces, 1.3 epochs of 37;" in shown[1].partition(": ")[2]
    assert captured.err.splitlines()[-1] == (
        f"lcgcn: stopped by {number.name}; {tmp_path / 'run'}: saved at step 3; "
        "the same command resumes the run"
    )
    assert latest_checkpoint(tmp_path / "run").name == "3"

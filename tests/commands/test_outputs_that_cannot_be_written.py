"""Unusable outputs and inputs are one-line errors, before the work starts."""

import errno
from pathlib import Path

import pytest

from lcgcn_jax import atomic_io
from lcgcn_jax.errors import InputError


def commands(tmp_path, output):
    """Commands that write a file; their inputs are invalid, but checked after the output."""
    return {
        "eval": ("eval", "--model", "gone", "--data", "gone", "--split", "test", "--json", output),
        "per_face": (
            "eval", "--model", "gone", "--data", "gone", "--split", "test", "--per-face", output,
        ),
        "bench": ("bench", "--config", "gone", "--json", output),
        "compile": ("compile", "--config", "gone", "--topology", "v5e:4x4", "--json", output),
        "export": (
            "export", "--model", "gone", "--format", "torch", "--out", output.with_suffix(".pth"),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("command", ["eval", "per_face", "bench", "compile", "export"])
def test_output_folder_that_cannot_be_created_is_an_error(error_line, tmp_path, command):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "out.json"
    error = error_line(*commands(tmp_path, output)[command])
    assert f"{output.parent / 'out'}" in error
    assert "cannot be written: Not a directory" in error or "File exists" in error


@pytest.mark.parametrize("command", ["eval", "bench", "compile"])
def test_existing_output_or_folder_is_an_error(error_line, tmp_path, command):
    output = tmp_path / "out.json"
    output.mkdir()
    assert "is a folder; give a file" in error_line(*commands(tmp_path, output)[command])
    output.rmdir()
    output.write_text("old")
    assert "already exists" in error_line(*commands(tmp_path, output)[command])
    assert output.read_text() == "old"


def test_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")

    def full(partial):
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(InputError, match=r"out\.json: cannot be written: No space left"),
        atomic_io.writing(path),
    ):
        atomic_io.write_whole(path, full)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize("model", [__file__, "x" * 300])
def test_model_that_is_a_file_or_a_long_name_is_an_error(error_line, tmp_path, model):
    error = error_line("eval", "--model", model, "--data", tmp_path, "--split", "test")
    assert error.startswith(f"lcgcn: error: {model}: ")


@pytest.mark.parametrize("workdir", ["file", "file/run"])
def test_workdir_at_or_below_a_file_is_an_error(error_line, tmp_path, synthetic98, toy, workdir):
    (tmp_path / "file").write_text("old")
    config = tmp_path / "config.py"
    config.write_text(
        "from lcgcn_jax.training.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.model.heatmap, config.model.graph = {'name': 'toy'}, None\n"
        "    config.data.image_size, config.train.mode = 32, 'heatmap_only'\n"
        "    return config\n"
    )
    error = error_line(
        "train", "--config", config, "--workdir", tmp_path / workdir,
        f"--config.data.dir={synthetic98}",
    )  # fmt: skip
    assert str(tmp_path / workdir) in error
    assert (tmp_path / "file").read_text() == "old"


def test_dataset_that_is_a_file_is_an_error(error_line, tmp_path):
    error = error_line(
        "train", "--config", "demo:small", "--workdir", tmp_path / "run",
        f"--config.data.dir={Path(__file__)}",
    )  # fmt: skip
    assert f"{Path(__file__)}: " in error

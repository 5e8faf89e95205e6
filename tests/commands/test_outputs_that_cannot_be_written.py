"""Outputs and inputs that cannot be used end in one line, before the work and not after it."""

import errno
from pathlib import Path

import pytest

from lcgcn_jax import atomic_io
from lcgcn_jax.errors import InputError


def commands(tmp_path, output):
    """Commands that write a file, each with an input that is looked at later than the output."""
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
def test_folder_that_cannot_be_made_is_named_first(refused, tmp_path, command):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "out.json"
    said = refused(*commands(tmp_path, output)[command])
    assert f"{output.parent / 'out'}" in said
    assert "cannot be written: Not a directory" in said or "File exists" in said


@pytest.mark.parametrize("command", ["eval", "bench", "compile"])
def test_output_that_is_there_or_a_folder(refused, tmp_path, command):
    output = tmp_path / "out.json"
    output.mkdir()
    assert "is a folder; give a file" in refused(*commands(tmp_path, output)[command])
    output.rmdir()
    output.write_text("kept")
    assert "already exists" in refused(*commands(tmp_path, output)[command])
    assert output.read_text() == "kept"


def test_a_full_disk_leaves_the_old_file(tmp_path):
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
def test_model_that_is_a_file_or_no_name(refused, tmp_path, model):
    said = refused("eval", "--model", model, "--data", tmp_path, "--split", "test")
    assert said.startswith(f"lcgcn: error: {model}: ")


@pytest.mark.parametrize("workdir", ["file", "file/run"])
def test_workdir_that_is_a_file_or_below_one(refused, tmp_path, synthetic98, toy, workdir):
    (tmp_path / "file").write_text("kept")
    config = tmp_path / "config.py"
    config.write_text(
        "from lcgcn_jax.training.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.model.heatmap, config.model.graph = {'name': 'toy'}, None\n"
        "    config.data.image_size, config.train.mode = 32, 'heatmap_only'\n"
        "    return config\n"
    )
    said = refused(
        "train", "--config", config, "--workdir", tmp_path / workdir,
        f"--config.data.dir={synthetic98}",
    )  # fmt: skip
    assert str(tmp_path / workdir) in said
    assert (tmp_path / "file").read_text() == "kept"


def test_data_folder_that_is_a_file(refused, tmp_path):
    said = refused(
        "train", "--config", "demo:small", "--workdir", tmp_path / "run",
        f"--config.data.dir={Path(__file__)}",
    )  # fmt: skip
    assert f"{Path(__file__)}: " in said

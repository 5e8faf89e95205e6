"""Unusable outputs and inputs are one-line errors, before the work starts."""

import errno
from pathlib import Path

import pytest
from emulator import bucket, emulator  # noqa: F401

from lcgcn_jax import atomic_io
from lcgcn_jax.errors import InputError
from lcgcn_jax.models.bundles import DEFAULT_MODEL, find_bundle


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


@pytest.mark.parametrize(
    "command",
    [
        ("eval", "--model", "m", "--data", "d", "--split", "s", "--json"),
        ("eval", "--model", "m", "--data", "d", "--split", "s", "--per-face"),
        ("prepare", "wflw", "--src", "s", "--out"),
        ("predict", "image.jpg", "--out"),
        ("research", "calibrate", "--model", "m", "--data", "d", "--out"),
        ("research", "fit-shape", "--workdir", "gs://faces/run", "--data", "d", "--out"),
    ],
)
def test_output_in_a_bucket_is_an_error(error_line, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    option = f"argument {command[-1]}: gs://faces/out: not a path on a disk"
    assert option in error_line(*command, "gs://faces/out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("predict", ""), "an input is empty"),
        (("predict", "a.jpg", "--out", ""), "argument --out: the path is empty"),
        (("predict", "a.jpg", "--boxes="), "argument --boxes: the path is empty"),
        (("prepare", "wflw", "--src=", "--out", "o"), "argument --src: the path is empty"),
        (
            ("eval", "--model", "m", "--data", "", "--split", "s"),
            "argument --data: '' is not a path",
        ),
        (("predict", "a.jpg", "--model", ""), "'' is not a path"),
    ],
)
def test_empty_path_is_an_error(error_line, tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(*command)
    assert not list(tmp_path.iterdir())


def test_copy_of_a_bundle_in_a_bucket_is_not_changed(bucket, error_line, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in find_bundle(DEFAULT_MODEL).iterdir():
        (bucket / path.name).write_bytes(path.read_bytes())
    error = error_line("research", "calibrate", "--model", bucket, "--data", tmp_path)
    assert f"{bucket}: is a download; give --out for a calibrated copy" in error

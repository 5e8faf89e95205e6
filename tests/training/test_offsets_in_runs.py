"""Training on data with annotation offsets removed: targets, checksums, rejection of other offsets."""

import json
import shutil

import numpy as np
import pytest

from lcgcn_jax.data.annotation_offsets import AnnotationOffsets
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.mean_face import mean_shape
from lcgcn_jax.training.config_types import Config
from lcgcn_jax.training.run_lock import DATA, OFFSETS, RunLock
from lcgcn_jax.training.train_data import open_train_data


@pytest.fixture
def write_offsets(synthetic98, tmp_path):
    """Writes a file of constant offsets."""
    scheme = open_dataset(synthetic98).scheme
    frame = np.random.default_rng(0).normal(size=(98, 2))

    def write(name, x):
        offsets = AnnotationOffsets(scheme.name, frame, np.full((98, 2), [x, 0.0]), {})
        path = tmp_path / name
        path.write_text(json.dumps(offsets.to_dict()))
        return str(path)

    return write


@pytest.fixture
def copy98(synthetic98, tmp_path):
    return str(shutil.copytree(synthetic98, tmp_path / "copy"))


@pytest.fixture
def lock_run(tiny_config, tmp_path):
    """Function that locks and unlocks a workdir for the tiny configuration."""

    def make(*, accept_changes=False):
        config = Config.from_dict(tiny_config.to_dict())
        dataset, mixture = open_train_data(config)
        sources = mixture.datasets if tiny_config.data.sources else ()
        lock = RunLock(
            tmp_path / "run", config, dataset, sources=sources, accept_changes=accept_changes
        )
        lock.write_config()
        lock.close()

    return make


def test_two_names_of_one_folder_are_an_error(tiny_config, synthetic98, monkeypatch):
    monkeypatch.chdir(synthetic98.parent)
    tiny_config.data.sources = ((str(synthetic98), 1), (synthetic98.name, 1))
    with pytest.raises(InputError, match=r"data\.sources: two names of the same folder"):
        open_train_data(Config.from_dict(tiny_config.to_dict()))


def test_only_the_source_with_offsets_is_corrected(tiny_config, synthetic98, copy98, write_offsets):
    file = write_offsets("a.json", 0.1)
    tiny_config.data.sources = ((str(synthetic98), 1), (copy98, 1, file))
    _, mixture = open_train_data(Config.from_dict(tiny_config.to_dict()))
    plain, moved = (source[0] for source in mixture.sources("train"))
    assert plain["name"] == moved["name"]
    shift = moved["landmarks"] - plain["landmarks"]
    assert np.linalg.norm(shift, axis=1).min() > 0
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-3)


def test_offsets_of_data_dir_change_its_faces_and_the_mean_shape(
    tiny_config, synthetic98, write_offsets
):
    tiny_config.data.offsets = write_offsets("a.json", 0.1)
    moved, _ = open_train_data(Config.from_dict(tiny_config.to_dict()))
    plain = open_dataset(synthetic98)
    for split in ("train", "validation"):
        a, b = moved.source(split)[0], plain.source(split)[0]
        assert np.abs(a["landmarks"] - b["landmarks"]).max() > 0.1
    assert mean_shape(moved, "train").shape == (98, 2)


def test_run_resumes_with_the_same_offsets_under_another_name(
    tiny_config, synthetic98, copy98, write_offsets, lock_run, tmp_path
):
    tiny_config.data.sources = ((str(synthetic98), 1), (copy98, 1, write_offsets("a.json", 0.1)))
    tiny_config.data.offsets = write_offsets("b.json", 0.2)
    lock_run()
    written = json.loads((tmp_path / "run" / DATA).read_text())
    assert {key for key in written if OFFSETS in key} == {OFFSETS, f"sources/1/{OFFSETS}"}
    tiny_config.data.sources = ((str(synthetic98), 1), (copy98, 1, write_offsets("c.json", 0.1)))
    tiny_config.data.offsets = write_offsets("d.json", 0.2)
    lock_run()


@pytest.mark.parametrize("field", ["sources", "offsets"])
def test_run_rejects_a_changed_offsets_file(
    tiny_config, synthetic98, copy98, write_offsets, lock_run, field
):
    file = write_offsets("a.json", 0.1)
    if field == "sources":
        tiny_config.data.sources = ((str(synthetic98), 1), (copy98, 1, file))
    else:
        tiny_config.data.offsets = file
    lock_run()
    write_offsets("a.json", 0.2)
    # The exception is not stored, since its traceback would keep the lock.
    with pytest.raises(
        InputError,
        match=r"^[^\n]*a\.json: not the annotation offsets that .*--accept-changes[^\n]*$",
    ):
        lock_run()
    lock_run(accept_changes=True)
    lock_run()


@pytest.mark.parametrize("change", ["added", "removed", "weight"])
def test_run_rejects_offsets_that_are_added_or_removed(
    tiny_config, synthetic98, copy98, write_offsets, lock_run, change
):
    file = write_offsets("a.json", 0.1)
    without, with_file = (copy98, 1), (copy98, 1, file)
    before, after = {
        "added": (without, with_file),
        "removed": (with_file, without),
        "weight": (with_file, (copy98, 2, file)),
    }[change]
    tiny_config.data.sources = ((str(synthetic98), 1), before)
    lock_run()
    tiny_config.data.sources = ((str(synthetic98), 1), after)
    with pytest.raises(InputError, match=r"another config \(data\.sources: "):
        lock_run()


def test_run_rejects_offsets_of_data_dir_that_are_added_or_removed(
    tiny_config, write_offsets, lock_run
):
    lock_run()
    tiny_config.data.offsets = write_offsets("a.json", 0.1)
    with pytest.raises(InputError, match=r"another config \(data\.offsets: "):
        lock_run()


def test_run_of_an_older_version_resumes(tiny_config, lock_run, tmp_path):
    lock_run()
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    del config["data"]["offsets"], config["data"]["augment"]["border"]
    file.write_text(json.dumps(config))
    lock_run()


def test_unusable_offsets_name_the_file(tiny_config, synthetic98, tmp_path):
    tiny_config.data.offsets = str(tmp_path / "gone.json")
    with pytest.raises(InputError, match=r"gone\.json: cannot be read: .*fit-offsets"):
        open_train_data(Config.from_dict(tiny_config.to_dict()))

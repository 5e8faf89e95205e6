import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from lcgcn_jax import compat
from lcgcn_jax.errors import InputError
from lcgcn_jax.training.checkpoints import (
    CHECKSUMS,
    Checkpoints,
    latest_checkpoint,
    read_checkpoint,
)
from lcgcn_jax.training.run_lock import LOCK
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.trainer import Trainer


@pytest.fixture(scope="module")
def trained(make_tiny_config, tmp_path_factory):
    """A training of two steps with a checkpoint of each."""
    config = make_tiny_config()
    config.train.steps = config.train.eval_every = 2
    config.train.checkpoint_every = 1
    training = Trainer(config, tmp_path_factory.mktemp("runs") / "run", make_mesh(1)).prepare()
    training.run()
    return training


@pytest.fixture
def run(trained, tmp_path):
    """A copy of its folder."""
    return shutil.copytree(trained.workdir, tmp_path / "run")


@pytest.fixture
def load(trained, run):
    """Loads the latest checkpoint of the copy."""
    return lambda: Checkpoints(run, keep=2).load(trained.state)


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_flipped_byte_is_noticed_and_nothing_is_removed(run, load):
    checkpoint = run / "checkpoints" / "2"
    files = [path for path in checkpoint.rglob("*") if path.stat().st_size and path.is_file()]
    assert len(files) > 10
    for path in files:
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 1
        path.write_bytes(damaged)
        before = files_of(run)
        for read in (load, lambda: read_checkpoint(checkpoint)):
            with pytest.raises(InputError, match=r"/2: not a checkpoint, or damaged: ") as refusal:
                read()
            assert "remove this folder to resume from the checkpoint before it" in str(
                refusal.value
            )
            assert path.name in str(refusal.value) or path.name == CHECKSUMS
        assert files_of(run) == before
        path.write_bytes(whole)
    load()


def test_checkpoint_with_former_names_of_weights_is_loaded(run, trained):
    state = {f.name: getattr(trained.state, f.name) for f in dataclasses.fields(trained.state)}
    former = compat.downgrade_weights(state)
    assert compat.has_former_weights(former)
    checkpoints = Checkpoints(run, keep=2)
    shutil.rmtree(run / "checkpoints" / "2")
    path = run / "checkpoints" / "2"
    ocp.save_checkpointables(path.resolve(), {"state": former, "progress": {"epoch": 1}})
    loaded, _ = checkpoints.load(trained.state)
    assert jax.tree.structure(loaded) == jax.tree.structure(trained.state)
    jax.tree.map(np.testing.assert_array_equal, loaded, trained.state)
    read_checkpoint(path)


def test_without_the_damaged_one_the_run_goes_on_from_the_one_before(run, load, trained):
    shutil.rmtree(run / "checkpoints" / "2")
    state, _ = load()
    assert int(state.step) == 1
    again = Trainer(trained.config, run, make_mesh(1)).prepare()
    assert again.run()
    for a, b in zip(*(jax.tree.leaves(t.state) for t in (trained, again)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def remove_metadata(folder):
    (folder / "_CHECKPOINT_METADATA").unlink()


def remove_state(folder):
    shutil.rmtree(folder / "state" / "ocdbt.process_0")


def truncate(folder):
    largest = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


def remove_metadata_of_an_older_version(folder):
    (folder / CHECKSUMS).unlink()
    (folder / "state" / "_METADATA").unlink()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "half",
    [remove_metadata, remove_state, truncate, remove_metadata_of_an_older_version, empty],
)
def test_a_half_written_checkpoint_is_never_picked(run, trained, half):
    """It is replaced when the run comes to its step again."""
    shutil.copytree(run / "checkpoints" / "2", run / "checkpoints" / "3")
    half(run / "checkpoints" / "3")
    assert latest_checkpoint(run) == run / "checkpoints" / "2"
    checkpoints = Checkpoints(run, keep=2)
    state, progress = checkpoints.load(trained.state)
    assert int(state.step) == 2
    checkpoints.save(dataclasses.replace(state, step=state.step + 1), progress)
    assert latest_checkpoint(run) == run / "checkpoints" / "3"
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"2", "3"}
    assert int(Checkpoints(run, keep=2).load(trained.state)[0].step) == 3


def test_a_run_does_not_begin_anew_over_damaged_checkpoints(run, trained):
    for step in ("1", "2"):
        remove_state(run / "checkpoints" / step)
    before = files_of(run)
    with pytest.raises(InputError, match=r"checkpoints/2: not a checkpoint, or damaged: "):
        Trainer(trained.config, run, make_mesh(1)).prepare()
    assert {**files_of(run), Path(LOCK): b""} == {**before, Path(LOCK): b""}


@pytest.mark.parametrize("name", ["3.partial", "1.partial", "3.partial.orbax-checkpoint-tmp"])
def test_what_a_killed_process_left_is_cleaned_up(run, name):
    shutil.copytree(run / "checkpoints" / "2", run / "checkpoints" / name)
    assert latest_checkpoint(run) == run / "checkpoints" / "2"
    assert Checkpoints(run, keep=2).latest == 2
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"1", "2"}


def test_a_checkpoint_of_an_older_version_is_read(run, load, trained):
    (run / "checkpoints" / "2" / CHECKSUMS).unlink()
    state, progress = load()
    assert progress["batches"] == {"next_batch": 2}
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(trained.state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_model_of_an_older_version_is_read(run, trained):
    params, batch_stats = trained.state.evaluated
    average = {name: np.asarray(value) for name, value in (params | batch_stats).items()}
    older = {
        "params": jax.tree.map(np.zeros_like, trained.state.params),
        "batch_stats": jax.tree.map(np.zeros_like, trained.state.batch_stats),
        "ema": average,  # by name, where it is one vector now
    }
    path = run / "checkpoints" / "3"
    ocp.save_checkpointables(path.resolve(), {"state": older, "progress": {"best_nme": 1.0}})
    found = read_checkpoint(path).weights
    assert found.keys() == average.keys()
    for name, value in average.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    ("section", "name", "value", "first"),
    [
        ("model", "graph.embedding_widths", (16, 4), "batch_stats/graph"),
        ("train", "ema_decay", 0.0, "ema: "),
        ("optimizer", "clip_norm", 1.0, "opt_state/"),
    ],
)
def test_accepted_changes_that_do_not_fit_are_refused(
    run, make_tiny_config, trained, section, name, value, first
):
    config = make_tiny_config()
    config.train.update(trained.config.train.to_dict())
    *path, last = name.split(".")
    part = config[section]
    for step in path:
        part = part[step]
    part[last] = value
    before = files_of(run)
    with pytest.raises(
        InputError, match=rf"checkpoints/2: is of another model or optimizer .* the first: {first}"
    ):
        Trainer(config, run, make_mesh(1), accept_changes=True).prepare()
    after = files_of(run)
    lock = Path(LOCK)
    assert {**after, lock: b""} == {**before, lock: b""}

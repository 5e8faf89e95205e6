import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from emulator import bucket, emulator  # noqa: F401
from orbax.checkpoint import v1 as ocp

from lcgcn_jax import compat, storage
from lcgcn_jax.errors import InputError
from lcgcn_jax.training import checkpoints
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
    """Training run of two steps with a checkpoint of each."""
    config = make_tiny_config()
    config.train.steps = config.train.eval_every = 2
    config.train.checkpoint_every = 1
    training = Trainer(config, tmp_path_factory.mktemp("runs") / "run", make_mesh(1)).prepare()
    training.run()
    return training


@pytest.fixture
def run(trained, tmp_path):
    """Copy of its workdir."""
    return shutil.copytree(trained.workdir, tmp_path / "run")


@pytest.fixture
def load(trained, run):
    """Function that loads the latest checkpoint of the copy."""
    return lambda: Checkpoints(run, keep=2).load(trained.state)


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_flipped_bytes_are_detected_and_nothing_is_removed(run, load):
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
            with pytest.raises(InputError, match=r"/2: not a checkpoint, or damaged: ") as caught:
                read()
            assert "remove this folder to resume from the checkpoint before it" in str(caught.value)
            assert path.name in str(caught.value) or path.name == CHECKSUMS
        assert files_of(run) == before
        path.write_bytes(whole)
    load()


def test_checkpoint_with_former_names_of_weights_is_loaded(run, trained):
    state = {f.name: getattr(trained.state, f.name) for f in dataclasses.fields(trained.state)}
    all_names = {f"graph.{name}.weight": None for name in compat._WEIGHT_NAMES}
    former = compat.downgrade_weights(state, all_names)
    assert compat.has_former_weights(former)
    checkpoints = Checkpoints(run, keep=2)
    shutil.rmtree(run / "checkpoints" / "2")
    path = run / "checkpoints" / "2"
    ocp.save_checkpointables(path.resolve(), {"state": former, "progress": {"epoch": 1}})
    loaded, _ = checkpoints.load(trained.state)
    assert jax.tree.structure(loaded) == jax.tree.structure(trained.state)
    jax.tree.map(np.testing.assert_array_equal, loaded, trained.state)
    read_checkpoint(path)


def test_without_the_last_checkpoint_the_run_resumes_from_the_one_before(run, load, trained):
    shutil.rmtree(run / "checkpoints" / "2")
    state, _ = load()
    assert int(state.step) == 1
    resumed = Trainer(trained.config, run, make_mesh(1)).prepare()
    assert resumed.run()
    for a, b in zip(*(jax.tree.leaves(t.state) for t in (trained, resumed)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def remove_metadata(folder):
    (folder / "_CHECKPOINT_METADATA").unlink()


def remove_state(folder):
    shutil.rmtree(folder / "state" / "ocdbt.process_0")


def truncate(folder):
    largest = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


def remove_checksums_and_metadata(folder):
    (folder / CHECKSUMS).unlink()
    (folder / "state" / "_METADATA").unlink()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "corrupt",
    [remove_metadata, remove_state, truncate, remove_checksums_and_metadata, empty],
)
def test_incomplete_checkpoint_is_skipped_and_replaced(run, trained, corrupt):
    shutil.copytree(run / "checkpoints" / "2", run / "checkpoints" / "3")
    corrupt(run / "checkpoints" / "3")
    assert latest_checkpoint(run) == run / "checkpoints" / "2"
    checkpoints = Checkpoints(run, keep=2)
    state, progress = checkpoints.load(trained.state)
    assert int(state.step) == 2
    checkpoints.save(dataclasses.replace(state, step=state.step + 1), progress)
    assert latest_checkpoint(run) == run / "checkpoints" / "3"
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"2", "3"}
    assert int(Checkpoints(run, keep=2).load(trained.state)[0].step) == 3


def test_run_does_not_start_over_damaged_checkpoints(run, trained):
    for step in ("1", "2"):
        remove_state(run / "checkpoints" / step)
    before = files_of(run)
    with pytest.raises(InputError, match=r"checkpoints/2: not a checkpoint, or damaged: "):
        Trainer(trained.config, run, make_mesh(1)).prepare()
    assert {**files_of(run), Path(LOCK): b""} == {**before, Path(LOCK): b""}


@pytest.mark.parametrize("name", ["3.partial", "1.partial", "3.partial.orbax-checkpoint-tmp"])
def test_partial_folders_of_killed_processes_are_removed(run, name):
    shutil.copytree(run / "checkpoints" / "2", run / "checkpoints" / name)
    assert latest_checkpoint(run) == run / "checkpoints" / "2"
    assert Checkpoints(run, keep=2).latest == 2
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"1", "2"}


def test_checkpoint_without_checksums_is_loaded(run, load, trained):
    (run / "checkpoints" / "2" / CHECKSUMS).unlink()
    state, progress = load()
    assert progress["batches"] == {"next_batch": 2}
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(trained.state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_moving_average_by_name_of_an_older_version_is_read(run, trained):
    params, batch_stats = trained.state.evaluated
    average = {name: np.asarray(value) for name, value in (params | batch_stats).items()}
    older = {
        "params": jax.tree.map(np.zeros_like, trained.state.params),
        "batch_stats": jax.tree.map(np.zeros_like, trained.state.batch_stats),
        "ema": average,  # a vector in today's checkpoints
    }
    path = run / "checkpoints" / "3"
    ocp.save_checkpointables(path.resolve(), {"state": older, "progress": {"best_nme": 1.0}})
    weights = read_checkpoint(path).weights
    assert weights.keys() == average.keys()
    for name, value in average.items():
        np.testing.assert_array_equal(weights[name], value)


@pytest.mark.parametrize(
    ("section", "name", "value", "first"),
    [
        ("model", "graph.embedding_widths", (16, 4), "batch_stats/graph"),
        ("train", "ema_decay", 0.0, "ema: "),
        ("optimizer", "clip_norm", 1.0, "opt_state/"),
        ("optimizer", "method", "muon", "opt_state/"),
    ],
)
def test_changes_that_do_not_fit_the_checkpoint_are_rejected(
    run, make_tiny_config, trained, section, name, value, first
):
    config = make_tiny_config()
    config.train.update(trained.config.to_dict()["train"])
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


@pytest.mark.parametrize("others", [["6/commit_success.txt"], ["6.partial"]])
def test_interrupted_saves_in_a_bucket_are_removed(bucket, others):  # noqa: F811
    folder = bucket / "checkpoints"
    remaining = ["4/checksums.json", "notes/a.txt"]
    names = [f"6/{name}" for name in checkpoints._ORBAX_FILES]
    for name in [*names, *others, *remaining, "8/state/a", "4.partial"]:
        (folder / name).write_text("1")
    Checkpoints(bucket, keep=2)
    assert list(storage.file_sizes(folder)) == remaining


def test_checkpoint_without_checksums_is_not_removed_from_a_bucket(bucket):  # noqa: F811
    for name in checkpoints._ORBAX_FILES:
        (bucket / "checkpoints" / "6" / name).write_text("1")
    sizes = storage.file_sizes(bucket)
    with pytest.raises(
        InputError, match=r"/6: has no checksums\.json, so it is of an older version"
    ):
        Checkpoints(bucket, keep=2)
    assert storage.file_sizes(bucket) == sizes


def test_removal_in_a_bucket_can_be_interrupted(bucket, monkeypatch):  # noqa: F811
    path = bucket / "checkpoints" / "6"
    for name in [*checkpoints._ORBAX_FILES, "commit_success.txt", CHECKSUMS]:
        (path / name).write_text("1")

    def interrupt(folder):
        (folder / "commit_success.txt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove_folder", interrupt)
        with pytest.raises(KeyboardInterrupt):
            storage.remove_committed(path, CHECKSUMS, checkpoints._PARTIAL)
    Checkpoints(bucket, keep=2)
    assert storage.file_sizes(bucket) == {}

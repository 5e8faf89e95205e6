import dataclasses
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.models.bundles import BEST, WEIGHTS, load_bundle
from lcgcn_jax.models.lcgcn import MEAN_SHAPES
from lcgcn_jax.models.weights import from_vector
from lcgcn_jax.training.config import to_json
from lcgcn_jax.training.metric_writer import read_metrics
from lcgcn_jax.training.sharding import get_batch, make_mesh
from lcgcn_jax.training.trainer import Trainer


def train(config, workdir, mesh=None, **kwargs):
    training = Trainer(config, workdir, make_mesh(1) if mesh is None else mesh).prepare()
    finished = training.run(**kwargs)
    return training, finished


def assert_same_state(a, b):
    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(leaves_a) == len(leaves_b) > 20
    for x, y in zip(leaves_a, leaves_b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def stop_at_three():
    def callback(step, figures):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    return callback


def without_rates(rows):
    return [{k: v for k, v in row.items() if k != "steps_per_second"} for row in rows]


@pytest.fixture(scope="module")
def run_of_two(make_tiny_config, tmp_path_factory):
    """Finished run of two steps; tests that write to its workdir use a copy."""
    config = make_tiny_config()
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = 2
    training, _ = train(config, tmp_path_factory.mktemp("two") / "run")
    return training


def test_mean_shapes_of_a_new_run_are_separate_arrays(tiny_config, tmp_path):
    """The training step donates its state, and no array can be donated twice."""
    graph = tiny_config.model.graph
    graph.message, graph.output, graph.shape_refiner = "offset_votes", "residual", True
    training = Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    shapes = [training.state.batch_stats[name] for name in MEAN_SHAPES[:2]]
    assert all(np.asarray(shape).any() for shape in shapes)
    assert shapes[0].unsafe_buffer_pointer() != shapes[1].unsafe_buffer_pointer()
    training.batches.close()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adam", "muon"])
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tiny_config, tmp_path, stop_at_three, method
):
    tiny_config.optimizer.method = method
    whole, finished = train(tiny_config, tmp_path / "whole")
    assert finished
    first, finished = train(tiny_config, tmp_path / "parts", on_validation=stop_at_three)
    assert not finished
    assert first.stopped_by == signal.SIGTERM
    assert first.step == 3
    second, finished = train(tiny_config, tmp_path / "parts")
    assert finished
    assert_same_state(whole.state, second.state)
    rows = [without_rates(read_metrics(tmp_path / name)) for name in ("whole", "parts")]
    assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adam", "muon"])
def test_loss_falls(tiny_config, tmp_path, method):
    tiny_config.optimizer.method = method
    tiny_config.train.steps = 40
    tiny_config.train.eval_every = tiny_config.train.checkpoint_every = 40
    train(tiny_config, tmp_path / "run")
    losses = [row["train/loss"] for row in read_metrics(tmp_path / "run") if "train/loss" in row]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adam", "muon"])
def test_one_device_and_many_agree(tiny_config, tmp_path, method):
    tiny_config.optimizer.method = method
    tiny_config.train.steps = tiny_config.train.eval_every = 2
    # The first step of Adam moves all weights equally far, also those whose gradient is only rounding errors.
    # At a rate of 1e-2 these weights would change the norm of the second gradient by 7e-4.
    tiny_config.optimizer.learning_rate = {"heatmap": 1e-4, "graph": 1e-4}
    one, _ = train(tiny_config, tmp_path / "one", make_mesh(1))
    many, _ = train(tiny_config, tmp_path / "many", make_mesh(8))
    assert many.mesh.size == 8
    rows = [read_metrics(tmp_path / name) for name in ("one", "many")]
    for row_1, row_n in zip(*rows, strict=True):
        # The loss and its parts, the gradient's norm, the validation errors.
        for name in row_1.keys() - {"steps_per_second"}:
            assert row_1[name] == pytest.approx(row_n[name], rel=1e-4), name
    for name, value in one.state.batch_stats.items():
        np.testing.assert_allclose(value, many.state.batch_stats[name], rtol=1e-4, atol=1e-5)
    # Adam's moments show the gradients.
    moments = [jax.tree.leaves(run.state.opt_state) for run in (one, many)]
    for a, b in zip(*moments, strict=True):
        # Some gradients are only rounding errors, as of a bias before a BatchNorm.
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=max(1e-4 * np.abs(a).max(), 1e-9))


def test_best_bundle_holds_the_moving_average(run_of_two):
    training = run_of_two
    bundle = load_bundle(training.workdir)
    state = training.state
    average = from_vector(np.asarray(state.ema), state.params | state.batch_stats)
    assert bundle.weights.keys() == average.keys()
    for name, value in average.items():
        np.testing.assert_array_equal(bundle.weights[name], np.asarray(value))
    name = "heatmap_model.conv1.conv.kernel"
    assert np.abs(bundle.weights[name] - np.asarray(training.state.params[name])).max() > 0


def test_finished_run_with_fewer_steps_is_finished(run_of_two, tmp_path):
    shutil.copytree(run_of_two.workdir, tmp_path / "run")
    config = ml_collections.ConfigDict(run_of_two.config.to_dict())
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = 1
    training = Trainer(config, tmp_path / "run", make_mesh(1), accept_changes=True)
    assert training.run()
    assert training.step == 2


def test_run_in_a_thread(run_of_two, tmp_path):
    shutil.copytree(run_of_two.workdir, tmp_path / "run")
    config = ml_collections.ConfigDict(run_of_two.config.to_dict())
    training = Trainer(config, tmp_path / "run", make_mesh(1))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(training.run).result()


def test_rows_of_a_process_need_not_be_adjacent_on_the_mesh():
    rows = np.arange(12).reshape(6, 2)
    order = (4, 0, 2)  # devices of other processes have the other rows
    shards = [
        SimpleNamespace(index=(slice(i, i + 1), slice(None)), data=rows[i : i + 1]) for i in order
    ]
    array = SimpleNamespace(addressable_shards=shards)
    np.testing.assert_array_equal(get_batch([array])[0], rows[[0, 2, 4]])


def changed_parts(before, after):
    return {
        name.split(".")[0]
        for name, value in before.items()
        if not np.array_equal(np.asarray(value), np.asarray(after[name]))
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("joint", {"heatmap_model", "graph"}),
        ("frozen", {"graph"}),
        ("heatmap_only", {"heatmap_model"}),
    ],
)
def test_mode_trains_only_its_parts_and_their_statistics(tiny_config, tmp_path, mode, parts):
    tiny_config.train.mode = mode
    tiny_config.train.steps = 2
    training = Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    params = jax.tree.map(np.asarray, training.state.params)
    batch_stats = jax.tree.map(np.asarray, training.state.batch_stats)
    training.run()
    assert changed_parts(params, training.state.params) == parts
    assert changed_parts(batch_stats, training.state.batch_stats) == parts


@pytest.mark.slow
def test_frozen_run_starts_from_another_heatmap_model(tiny_config, run_of_two, tmp_path):
    tiny_config.train.steps = 2
    tiny_config.train.mode = "frozen"
    tiny_config.init_from = str(run_of_two.workdir)
    training, _ = train(tiny_config, tmp_path / "second")
    best = load_bundle(run_of_two.workdir / BEST).weights
    for name, value in training.state.params.items():
        if name.startswith("heatmap_model."):
            np.testing.assert_array_equal(np.asarray(value), best[name])


@pytest.mark.parametrize("corruption", ["remove", "cut"])
def test_lost_best_model_of_a_finished_run_is_written_again(
    tiny_config, run_of_two, tmp_path, caplog, corruption
):
    config = tiny_config
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = 2
    workdir = shutil.copytree(run_of_two.workdir, tmp_path / "run")
    expected = load_bundle(workdir).weights
    if corruption == "remove":
        shutil.rmtree(workdir / BEST)
    else:
        (workdir / BEST / WEIGHTS).write_bytes((workdir / BEST / WEIGHTS).read_bytes()[:100])
    assert Trainer(config, workdir, make_mesh(1)).run()
    assert f"{workdir / BEST / WEIGHTS}: missing or damaged" in caplog.text
    for name, value in load_bundle(workdir).weights.items():
        np.testing.assert_array_equal(value, expected[name])


def test_best_model_without_a_checkpoint_is_reported(tiny_config, tmp_path):
    (tmp_path / "run" / BEST).mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(to_json(tiny_config))
    training = Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    assert "has a best model but no checkpoint" in training.start_message
    assert training.start_message in training.describe_start()


@pytest.mark.parametrize("what", ["loss", "gradient_norm", "parameter_norm"])
def test_scalars_that_are_not_finite_stop_the_run(tiny_config, tmp_path, what):
    training = Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    step = training.train_step

    def wrong_at_2(state, batch):
        state, scalars = step(state, batch)
        return state, scalars | {what: jnp.nan if int(state.step) == 2 else scalars[what]}

    training.train_step = wrong_at_2
    with pytest.raises(FloatingPointError, match=f"the {what.replace('_', ' ')} is nan at step 2 "):
        training.run()
    assert training.checkpoints.latest is None


@pytest.mark.slow
def test_infinite_loss_stops_with_step_rate_and_records(tiny_config, tmp_path):
    tiny_config.optimizer.learning_rate.heatmap = 1e30
    training = Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    with pytest.raises(FloatingPointError, match=r"at step \d .*heatmap 1e\+30.*train/0000\d\d:"):
        training.run()
    assert training.checkpoints.latest is None


def test_other_config_in_the_same_workdir_is_rejected(tiny_config, tmp_path):
    Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    tiny_config.train.batch_size = 16
    with pytest.raises(InputError, match=r"train\.batch_size: 8 -> 16"):
        Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()


def test_run_of_an_older_version_resumes(tiny_config, run_of_two, tmp_path):
    tiny_config.train.steps = tiny_config.train.eval_every = tiny_config.train.checkpoint_every = 2
    shutil.copytree(run_of_two.workdir, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    del config["model"]["heatmap_offset"], config["model"]["graph"]["norm"]
    file.write_text(json.dumps(config))
    assert Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare().step == 2


def test_run_of_an_older_version_without_epochs_resumes(tiny_config, tmp_path):
    tiny_config.train.steps = 2
    train(tiny_config, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    for name in ("epochs", "eval_every_epochs", "checkpoint_every_epochs"):
        del config["train"][name]
    file.write_text(json.dumps(config))
    tiny_config.train.update({"steps": None, "eval_every": None, "epochs": 60.0})
    training = Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    assert (training.step, training.config.train.steps) == (2, 2)
    assert tiny_config.train.steps is None


@pytest.mark.slow
def test_epochs_are_resolved_with_the_data_and_written(tiny_config, tmp_path):
    tiny_config.train.update({"steps": None, "eval_every": None, "checkpoint_every": None})
    tiny_config.train.epochs = 0.5
    training = Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    steps = training.num_faces // 2 // tiny_config.train.batch_size
    assert training.num_faces == len(training.dataset.source("train"))
    assert training.run()
    assert training.step == steps > 1
    written = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert (written["steps"], written["epochs"]) == (steps, 0.5)
    assert written["eval_every"] == 2 * training.num_faces // tiny_config.train.batch_size
    # The same steps given as such are the same run.
    tiny_config.train.steps = steps
    assert Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare().step == steps


def test_data_without_a_validation_split_names_the_fix(tiny_config, synthetic98, tmp_path):
    tiny_config.data.validation_split = "common"
    with pytest.raises(InputError, match=r"column 'split' .* set config\.data\.validation_split"):
        Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()


@pytest.mark.slow
def test_run_on_two_datasets_resumes_bit_for_bit(
    tiny_config, synthetic98, more98, tmp_path, stop_at_three
):
    tiny_config.data.sources = ((str(synthetic98), 3), (str(more98), 1))
    whole, _ = train(tiny_config, tmp_path / "whole")
    assert whole.num_faces > len(whole.dataset.source("train"))
    first, _ = train(tiny_config, tmp_path / "parts", on_validation=stop_at_three)
    assert first.step == 3
    moved = shutil.copytree(more98, tmp_path / "moved")
    tiny_config.data.sources = ((str(synthetic98), 3), (str(moved), 1))
    second, finished = train(tiny_config, tmp_path / "parts")
    assert finished
    assert_same_state(whole.state, second.state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: ((a, 3), (b, 2)), r"data\.sources: "),
        (lambda a, b: ((a, 3),), r"data\.sources: "),
        (lambda a, b: ((b, 3), (a, 1)), r"not the data that .* was started with \(sources/0/"),
        (lambda a, b: ((a, 3), ("gone", 1)), "gone: no such folder"),
    ],
)
def test_changed_sources_are_rejected(tiny_config, synthetic98, more98, tmp_path, change, message):
    tiny_config.data.sources = ((str(synthetic98), 3), (str(more98), 1))
    Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    tiny_config.data.sources = change(str(synthetic98), str(more98))
    with pytest.raises(InputError, match=message):
        Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()


def test_sources_of_another_scheme_are_refused(tiny_config, synthetic98, synthetic68, tmp_path):
    tiny_config.data.sources = ((str(synthetic98), 1), (str(synthetic68), 1))
    with pytest.raises(InputError, match="68 points"):
        Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()


def test_folder_with_something_else_is_refused(tiny_config, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty and not a training run"):
        Trainer(tiny_config, tmp_path, make_mesh(1)).prepare()


def test_batch_size_that_cannot_be_split_names_one_that_can(tiny_config, tmp_path):
    tiny_config.train.batch_size = 12
    with pytest.raises(InputError, match="12 cannot be split over 8 devices; use 16"):
        Trainer(tiny_config, tmp_path / "run", make_mesh(8)).prepare()


def test_data_of_another_scheme_is_refused(tiny_config, synthetic68, tmp_path):
    tiny_config.data.dir = str(synthetic68)
    with pytest.raises(InputError, match=r"68 points \(ibug68\), but the config is for 98"):
        Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_only_the_latest_checkpoints_stay(tiny_config, tmp_path):
    tiny_config.train.steps = 6
    tiny_config.train.checkpoint_every = 1
    tiny_config.train.keep = 2
    train(tiny_config, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"5", "6"}


def test_checkpoint_has_the_full_state(tiny_config, run_of_two, tmp_path):
    tiny_config.train.steps = tiny_config.train.eval_every = tiny_config.train.checkpoint_every = 2
    training = run_of_two
    shutil.copytree(training.workdir, tmp_path / "run")
    resumed = Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    assert {f.name for f in dataclasses.fields(resumed.state)} >= {"opt_state", "ema", "step"}
    assert_same_state(training.state, resumed.state)
    assert resumed.batches.get_state() == {"next_batch": 2}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"] == 2


@pytest.mark.slow
def test_mean_shape_of_the_training_faces_is_set_and_kept(tiny_config, tmp_path):
    tiny_config.model.graph.message = "offset_votes"
    tiny_config.model.graph.output = "residual"
    tiny_config.train.steps = 2
    training, _ = train(tiny_config, tmp_path / "run")
    shape = np.asarray(training.state.batch_stats[MEAN_SHAPES[0]])
    np.testing.assert_allclose(shape.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose((shape**2).sum(axis=1).mean(), 1, rtol=1e-5)
    assert shape[16, 1] == shape[:, 1].max(), "the chin is the lowest point"
    assert shape[60, 0] < shape[96, 0] < shape[72, 0]
    bundle = load_bundle(tmp_path / "run")
    np.testing.assert_allclose(bundle.weights[MEAN_SHAPES[0]], shape, atol=1e-6)


@pytest.fixture
def frozen_config(tiny_config, tmp_path):
    """Graph on a trained heatmap model: two fixed views per face, more than two epochs."""
    tiny_config.train.mode = "heatmap_only"
    train(tiny_config, tmp_path / "heatmap")
    tiny_config.init_from = str(tmp_path / "heatmap")
    tiny_config.train.mode = "frozen"
    tiny_config.model.decode = "dark"
    tiny_config.data.views = 2
    tiny_config.data.augment.occlusion = 0.5
    tiny_config.train.batch_size = 16
    tiny_config.train.steps = 12
    tiny_config.train.eval_every = tiny_config.train.checkpoint_every = 3
    return tiny_config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lcgcn", "dag"])
def test_training_from_the_cache_equals_training_from_images(frozen_config, tmp_path, name):
    if name == "dag":
        with frozen_config.unlocked():
            frozen_config.model.graph = {"name": "dag", "width": 8, "blocks": 1, "fine_steps": 2}
    plain, _ = train(frozen_config, tmp_path / "plain")
    faces = len(plain.dataset.source("train"))
    assert frozen_config.train.steps * 16 > 2 * faces, "more than all views once"
    frozen_config.train.cache = True
    cached, _ = train(frozen_config, tmp_path / "cached")
    fresh = Trainer(frozen_config, tmp_path / "fresh", make_mesh(1)).prepare().state.params
    for key, value in plain.state.params.items():
        np.testing.assert_allclose(cached.state.params[key], value, rtol=1e-3, atol=1e-5)
        trained = not np.array_equal(value, fresh[key])
        assert trained == key.startswith("graph."), key
    for a, b in zip(*(read_metrics(tmp_path / run) for run in ("plain", "cached")), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"steps_per_second"}:
            assert a[key] == pytest.approx(b[key], rel=1e-4), key


@pytest.mark.slow
def test_cached_training_resumes_bit_for_bit(frozen_config, tmp_path, stop_at_three):
    frozen_config.train.cache = True
    whole, _ = train(frozen_config, tmp_path / "whole")
    assert not train(frozen_config, tmp_path / "parts", on_validation=stop_at_three)[1]
    second, finished = train(frozen_config, tmp_path / "parts")
    assert finished
    assert_same_state(whole.state, second.state)


@pytest.mark.slow
def test_runs_with_different_seeds_share_the_cache(frozen_config, tmp_path):
    frozen_config.train.cache = True
    first = Trainer(frozen_config, tmp_path / "first", make_mesh(1)).prepare()
    frozen_config.seed = 1
    second = Trainer(
        frozen_config, tmp_path / "second", make_mesh(1), feature_cache=first.feature_cache
    ).prepare()
    separate = Trainer(frozen_config, tmp_path / "separate", make_mesh(1)).prepare()
    shared, computed = next(second.batches), next(separate.batches)
    assert not np.array_equal(shared["record"], next(first.batches)["record"])
    for a, b in zip(jax.tree.leaves(shared), jax.tree.leaves(computed), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("field", "value"), [("mode", "joint"), ("views", 0)])
def test_cache_without_fixed_features_is_rejected(tiny_config, tmp_path, field, value):
    tiny_config.train.mode, tiny_config.data.views, tiny_config.train.cache = "frozen", 2, True
    (tiny_config.train if field == "mode" else tiny_config.data)[field] = value
    with pytest.raises(InputError, match=r"train\.cache: needs a frozen"):
        Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_bfloat16_computes_in_it_and_keeps_float32_weights(tiny_config, tmp_path):
    tiny_config.train.dtype = "bfloat16"
    tiny_config.train.steps = 2
    training, finished = train(tiny_config, tmp_path / "run")
    assert finished
    assert {leaf.dtype for leaf in training.state.params.values()} == {np.dtype("float32")}
    assert {leaf.dtype for leaf in training.state.batch_stats.values()} == {np.dtype("float32")}
    text = training.train_step.lower(training.state, example_batch(tiny_config)).as_text()
    assert "bf16" in text


def example_batch(config):
    size, batch = config.data.image_size, config.train.batch_size
    return {
        "image": jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8),
        "landmarks": jax.ShapeDtypeStruct((batch, 98, 2), np.float32),
        "visible": jax.ShapeDtypeStruct((batch, 98), np.bool_),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "loss"), [("joint", "focal"), ("heatmap_only", "adaptive_wing")])
def test_missing_landmarks_are_masked(
    tiny_config, custom29, custom_landmarks_page, tmp_path, mode, loss
):
    """Two steps on faces with 29 landmarks, some of which are missing (NaN) on each face."""
    scheme = tmp_path / "face29.yaml"
    scheme.write_text(dict(custom_landmarks_page)["yaml face29.yaml"])
    tiny_config.scheme = str(scheme)
    tiny_config.data.dir = str(custom29)
    tiny_config.data.augment.mirror = 0.0  # or a right pupil would be a left one
    tiny_config.train.mode = mode
    tiny_config.loss.heatmap = loss
    tiny_config.train.steps = tiny_config.train.eval_every = 2
    run, finished = train(tiny_config, tmp_path / "run")
    assert finished
    figures = {name: value for row in read_metrics(tmp_path / "run") for name, value in row.items()}
    for name in (f"train/{loss}", "train/gradient_norm", *(["train/l1"] * (mode == "joint"))):
        assert 0 < figures[name] < np.inf
    errors = run.validate()
    assert np.isfinite(errors.graph[errors.measured]).all()
    if mode == "heatmap_only":
        # A landmark that is missing on every face has no gradient.
        bias = np.asarray(run.state.params["heatmap_model.out.bias"])
        assert np.flatnonzero(bias == 0).tolist() == list(run.dataset.scheme.find("left_pupil"))


def test_constructor_touches_no_folder(tiny_config, tmp_path):
    """A notebook cell that is run twice builds two trainers."""
    tiny_config.train.steps = tiny_config.train.eval_every = 1
    trainers = [Trainer(tiny_config, tmp_path / "run", make_mesh(1)) for _ in range(2)]
    assert not list(tmp_path.iterdir())
    assert trainers[0].run()
    assert trainers[1].run(), "resumes at the end"


def test_failed_preparation_unlocks_the_workdir(run_of_two, tmp_path):
    shutil.copytree(run_of_two.workdir, tmp_path / "run")
    config = run_of_two.config
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, ema_decay=0.0))
    trainer = Trainer(config, tmp_path / "run", make_mesh(1), accept_changes=True)
    for _ in range(2):
        with pytest.raises(InputError, match="of another model or optimizer"):
            trainer.prepare()

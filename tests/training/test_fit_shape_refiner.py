import shutil

import numpy as np
import pytest
from augmentations import NO_AUGMENTATION

from lcgcn_jax.commands.main import main
from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.face_errors import split_errors
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.landmarks import IBUG68, WFLW98
from lcgcn_jax.models.bundles import load_bundle
from lcgcn_jax.training.fit_shape_refiner import (
    fit_shape_refiner,
    regression_inputs,
    solve,
    unpack,
    yaw_direction,
)
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.trainer import Trainer

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("has_yaw", [False, True])
def test_solve_recovers_the_matrices(has_yaw):
    n, k = 1200, 4
    num_terms = 3 if has_yaw else 1
    transforms, bias = RNG.normal(size=(num_terms, k, k, 2, 2)), RNG.normal(size=(num_terms, k, 2))
    deviations, direction = RNG.normal(size=(n, k, 2)), RNG.normal(size=(k, 2)) / np.sqrt(2 * k)
    yaw = np.clip(np.einsum("kd,nkd->n", direction, deviations), -2, 2)
    factors = np.stack([np.ones(n), yaw, np.abs(yaw)], axis=1)[:, :num_terms]
    errors = np.einsum("nt,tijde,nje->nid", factors, transforms, deviations)
    errors += np.einsum("nt,tid->nid", factors, bias)
    errors[:20] += 50  # outliers, which an L1 regression ignores
    visible, weights = np.ones((n, k), bool), np.ones(n)
    visible[20:40, 1] = False
    errors[20:40, 1] = 1e6
    weights[40:60] = 0
    errors[40:60] = -1e6
    inputs = regression_inputs(deviations, direction if has_yaw else None)
    solution = unpack(solve(inputs, errors, visible, weights, ridge=1e-6))
    np.testing.assert_allclose(solution[0], transforms, atol=0.05)
    np.testing.assert_allclose(solution[1], bias, atol=0.1 if has_yaw else 0.05)
    shrunk, _ = unpack(solve(inputs, errors, visible, weights, ridge=1e6))
    assert np.abs(shrunk).max() < 0.1


def test_fit_with_a_tiny_ridge_and_a_singular_matrix_succeeds():
    inputs = RNG.normal(size=(30, 5))
    inputs[:, 1] = inputs[:, 0]
    inputs[:, 4] = 1
    errors = np.stack([inputs[:, :2], inputs[:, 2:4]], axis=1)
    for ridge in (0.0, 1e-30):
        solution = solve(inputs, errors, np.ones((30, 2), bool), np.ones(30), ridge=ridge)
        predicted = np.einsum("nm,kmd->nkd", inputs, solution)
        np.testing.assert_allclose(predicted, errors, atol=1e-3)


def test_yaw_direction_is_that_of_odd_variations():
    """Shapes with a symmetric variation, which is larger, and one that changes its sign in a mirror."""
    n, mirror = 500, np.array(IBUG68.mirror)
    patterns = RNG.normal(size=(2, 68, 2))
    mirrored = patterns[:, mirror] * [-1, 1]
    even, odd = patterns[0] + mirrored[0], patterns[1] - mirrored[1]
    yaw, other = RNG.normal(size=(2, n))
    deviations = 0.1 * yaw[:, None, None] * odd + other[:, None, None] * even
    weights = np.ones(n)
    deviations[:50] = RNG.normal(size=(50, 68, 2))
    weights[:50] = 0
    direction = yaw_direction(deviations, weights, IBUG68)
    deviations, yaw = deviations[50:], yaw[50:]
    projection = np.einsum("kd,nkd->n", direction, deviations)
    assert projection.std() == pytest.approx(1, rel=0.05)
    assert abs(np.corrcoef(projection, yaw)[0, 1]) > 0.999
    np.testing.assert_allclose(
        direction[mirror] * [-1, 1], -direction, atol=1e-8 * np.abs(direction).max() + 1e-9
    )


@pytest.fixture(scope="module")
def run(make_tiny_config, tmp_path_factory):
    config = make_tiny_config()
    config.train.steps = config.train.eval_every = 60
    workdir = tmp_path_factory.mktemp("shape") / "run"
    Trainer(config, workdir, make_mesh(1)).run()
    return workdir


def training_errors(bundle, dataset):
    """NME of both stages on the training faces."""
    predict = LandmarkModel(bundle).predict_crops
    return split_errors(predict, dataset, "train", image_size=32, batch_size=8).mean()


@pytest.mark.slow
def test_shape_refinement_lowers_the_training_error(run, synthetic98):
    dataset, bundle = open_dataset(synthetic98), load_bundle(run)
    refined = fit_shape_refiner(
        bundle, [dataset], "train", augment=NO_AUGMENTATION, views=1, ridge=1.0
    )
    before, after = (training_errors(b, dataset) for b in (bundle, refined))
    assert after["heatmap"] == pytest.approx(before["heatmap"], rel=1e-4)
    assert after["graph"] < 0.9 * before["graph"]


@pytest.mark.slow
def test_weights_and_pose_terms(run, synthetic98, more98):
    """Pose terms lower the training error; a dataset with a tiny weight changes nothing."""
    first, second = open_dataset(synthetic98), open_dataset(more98)
    bundle = load_bundle(run)
    settings = {"augment": NO_AUGMENTATION, "views": 1, "ridge": 1.0, "pose_terms": True}
    fitted = fit_shape_refiner(bundle, [first], "train", **settings)
    assert training_errors(fitted, first)["graph"] < 0.9 * training_errors(bundle, first)["graph"]
    weighted = fit_shape_refiner(bundle, [first, second], "train", weights=[1, 1e-9], **settings)
    direction = "graph.shape_refiner.yaw_direction"
    a, b = (model.weights[direction] for model in (fitted, weighted))
    np.testing.assert_allclose(b * np.sign((a * b).sum()), a, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_command_writes_a_bundle(run, synthetic98, tmp_path, capsys):
    out = tmp_path / "with_refiner"
    copy = shutil.copytree(synthetic98, tmp_path / "copy")
    command = ["fit-shape", "--workdir", str(run), "--data", str(synthetic98), "--out", str(out)]
    command += ["--views", "1", "--weight", "1"]
    assert main([*command, "--data", str(copy)]) == 2
    assert "--weight: 1 weight for 2 datasets" in capsys.readouterr().err
    assert main([*command, "--pose-terms", "--data", str(copy), "--weight", "0.5"]) == 0
    before, after = load_bundle(run), load_bundle(out)
    assert after.model["graph"]["shape_refiner"]
    assert after.model["graph"]["pose_terms"]
    assert np.abs(after.weights["graph.shape_refiner.yaw_transforms"]).max() > 0
    card = (out / "README.md").read_text()
    assert (
        f"with pose terms, fitted to 1 view of each face of the split train of {synthetic98}, "
        in card
    )
    assert "(weights 1, 0.5); ridge 0.1." in card
    for name, value in before.weights.items():
        np.testing.assert_array_equal(after.weights[name], value)
    assert after.weights.keys() - before.weights.keys() == {
        f"graph.shape_refiner.{name}"
        for name in (
            "mean_shape",
            "transforms",
            "bias",
            "yaw_direction",
            "yaw_transforms",
            "yaw_bias",
        )
    }
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err


def test_model_without_the_graph_is_rejected(random_bundle, tiny_config, synthetic98):
    bundle = random_bundle(tiny_config.model.to_dict(), WFLW98, 32).without_graph()
    with pytest.raises(InputError, match="'lcgcn'"):
        fit_shape_refiner(
            bundle,
            [open_dataset(synthetic98)],
            "train",
            augment=AugmentConfig(),
            views=1,
            ridge=1.0,
        )

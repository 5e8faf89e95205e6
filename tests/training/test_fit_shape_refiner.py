import numpy as np
import pytest
from augmentations import NO_AUGMENTATION

from lcgcn_jax.commands.main import main
from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.face_errors import split_errors
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.landmarks import WFLW98
from lcgcn_jax.models.bundles import load_bundle
from lcgcn_jax.training.fit_shape_refiner import fit_shape_refiner, solve
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.trainer import Trainer

RNG = np.random.default_rng(0)


def test_solve_recovers_a_linear_map():
    n, k = 400, 4
    transforms, bias = RNG.normal(size=(k, k, 2, 2)), RNG.normal(size=(k, 2))
    deviations = RNG.normal(size=(n, k, 2))
    errors = np.einsum("ijde,nje->nid", transforms, deviations) + bias
    errors[:20] += 50  # outliers, which an L1 regression ignores
    visible = np.ones((n, k), bool)
    visible[20:40, 1] = False
    errors[20:40, 1] = 1e6
    solution = solve(deviations, errors, visible, ridge=1e-6)
    np.testing.assert_allclose(solution[0], transforms, atol=0.05)
    np.testing.assert_allclose(solution[1], bias, atol=0.05)
    shrunk, _ = solve(deviations, errors, visible, ridge=1e6)
    assert np.abs(shrunk).max() < 0.1


@pytest.fixture(scope="module")
def run(make_tiny_config, tmp_path_factory):
    config = make_tiny_config()
    config.train.steps = config.train.eval_every = 60
    workdir = tmp_path_factory.mktemp("shape") / "run"
    Trainer(config, workdir, make_mesh(1)).run()
    return workdir


@pytest.mark.slow
def test_shape_refinement_lowers_the_training_error(run, synthetic98):
    dataset, before = open_dataset(synthetic98), load_bundle(run)
    after = fit_shape_refiner(before, dataset, "train", augment=NO_AUGMENTATION, views=1, ridge=1.0)
    means = [
        split_errors(
            LandmarkModel(bundle).predict_crops, dataset, "train", image_size=32, batch_size=8
        ).mean()
        for bundle in (before, after)
    ]
    assert means[1]["heatmap"] == pytest.approx(means[0]["heatmap"], rel=1e-4)
    assert means[1]["graph"] < 0.9 * means[0]["graph"]


@pytest.mark.slow
def test_command_writes_a_bundle(run, synthetic98, tmp_path, capsys):
    out = tmp_path / "with_refiner"
    command = ["fit-shape", "--workdir", str(run), "--data", str(synthetic98), "--out", str(out)]
    assert main([*command, "--views", "1"]) == 0
    before, after = load_bundle(run), load_bundle(out)
    assert after.model["graph"]["shape_refiner"]
    for name, value in before.weights.items():
        np.testing.assert_array_equal(after.weights[name], value)
    assert after.weights.keys() - before.weights.keys() == {
        f"graph.shape_refiner.{name}" for name in ("mean_shape", "transforms", "bias")
    }
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err


def test_model_without_the_graph_is_rejected(random_bundle, tiny_config, synthetic98):
    bundle = random_bundle(tiny_config.model.to_dict(), WFLW98, 32).without_graph()
    with pytest.raises(InputError, match="'lcgcn'"):
        fit_shape_refiner(
            bundle,
            open_dataset(synthetic98),
            "train",
            augment=AugmentConfig(),
            views=1,
            ridge=1.0,
        )

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcgcn_jax import losses
from lcgcn_jax.errors import InputError
from lcgcn_jax.heatmaps import encode
from lcgcn_jax.models.lcgcn import LCGCNOutput
from lcgcn_jax.training.config_types import HeatmapLoss, LossConfig
from lcgcn_jax.training.metric_writer import read_metrics
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.steps import COORDINATE_LOSSES, total_loss
from lcgcn_jax.training.trainer import Trainer

B, K, SIDE = 2, 3, 8
RNG = np.random.default_rng(0)
VISIBLE = jnp.array([[True, True, False], [True, False, True]])
LOGITS = jnp.asarray(RNG.normal(size=(B, SIDE, SIDE, K)), jnp.float32)


def parts_of(size, *, activation="sigmoid", groups=("heatmap", "graph"), **config):
    """Total and parts of the loss for the same predictions, in crops of any size."""
    rng = np.random.default_rng(1)
    true = jnp.asarray(size * rng.uniform(0.1, 0.9, (B, K, 2)), jnp.float32)
    predicted = true + jnp.asarray(size * rng.uniform(-0.1, 0.1, (B, K, 2)), jnp.float32)
    stages = predicted[:, None]
    output = LCGCNOutput(LOGITS, true, jnp.ones((B, K)), jnp.zeros((B, K, K)), predicted, stages)
    loss = total_loss(
        output,
        true,
        VISIBLE,
        config=LossConfig(**config),
        groups=groups,
        size=size,
        activation=activation,
    )
    return loss, true, predicted


@pytest.mark.parametrize("size", [128, 256])
def test_coordinate_losses_are_in_pixels_of_a_256_px_crop(size):
    for name, loss in COORDINATE_LOSSES.items():
        (_, parts), true, predicted = parts_of(size, coordinate=name)
        assert set(parts) == {"focal", name}
        factor = 256 / size
        expected = loss(predicted * factor, true * factor, VISIBLE)
        expected /= (
            1 if name == "normalized_l2" else 256
        )  # that loss is a fraction of the face's size
        np.testing.assert_allclose(parts[name], expected, rtol=1e-6)
        np.testing.assert_allclose(
            parts[name], parts_of(256, coordinate=name)[0][1][name], rtol=1e-5
        )


def test_l1_is_a_fraction_of_the_crop():
    (_, parts), true, predicted = parts_of(128)
    np.testing.assert_allclose(
        parts["l1"], losses.l1(predicted / 128, true / 128, VISIBLE), rtol=1e-6
    )


def test_every_stage_is_supervised():
    rng = np.random.default_rng(0)
    true, *stages = (jnp.asarray(rng.uniform(0, 64, (B, K, 2)), jnp.float32) for _ in range(4))
    output = LCGCNOutput(
        None, true, jnp.ones((B, K)), None, stages[-1], stages=jnp.stack(stages, axis=1)
    )
    _, parts = total_loss(output, true, VISIBLE, config=LossConfig(), groups=("graph",), size=64)
    expected = np.mean([losses.l1(t / 64, true / 64, VISIBLE) for t in stages])
    np.testing.assert_allclose(parts["l1"], expected, rtol=1e-5)


@pytest.mark.parametrize("activation", ["sigmoid", "linear"])
@pytest.mark.parametrize("name", ["mse", "adaptive_wing"])
def test_heatmap_losses_apply_to_the_activation(activation, name):
    (_, parts), true, _ = parts_of(64, heatmap=name, activation=activation)
    heatmaps = jax.nn.sigmoid(LOGITS) if activation == "sigmoid" else LOGITS
    targets = encode((true + 0.5) / 8 - 0.5, (SIDE, SIDE), sigma=1.5, subpixel=True)
    np.testing.assert_allclose(
        parts[name], getattr(losses, name)(heatmaps, targets, VISIBLE), rtol=1e-5
    )


def heatmap_loss(name, points, heatmaps):
    """Loss of linear heatmaps, for `focal` of logits, with the truth at these heatmap pixels."""
    landmarks = 4 * jnp.asarray(points, heatmaps.dtype) + 1.5
    output = LCGCNOutput(heatmaps, landmarks, jnp.ones((B, K), heatmaps.dtype), None, landmarks)
    total, _ = total_loss(
        output,
        landmarks,
        jnp.ones((B, K), bool),
        config=LossConfig(heatmap=name),
        groups=("heatmap",),
        size=4 * SIDE,
        activation="sigmoid" if name == "focal" else "linear",
    )
    return total


@pytest.mark.parametrize("name", ["mse", "adaptive_wing"])
def test_targets_are_exact_gaussians_at_the_points(name):
    """In float64: heatmaps drawn at the points have no loss."""
    points = np.random.default_rng(2).uniform(1, SIDE - 2, (B, K, 2))
    y, x = np.indices((SIDE, SIDE))[:, None, :, :, None]
    squared = (x - points[:, None, None, :, 0]) ** 2 + (y - points[:, None, None, :, 1]) ** 2
    with jax.enable_x64(True):
        exact = encode(jnp.asarray(points), (SIDE, SIDE), sigma=1.5, subpixel=True)
        assert exact.dtype == np.float64
        np.testing.assert_allclose(exact, np.exp(-squared / (2 * 1.5**2)), rtol=1e-13)
    drawn = jnp.asarray(np.exp(-squared / (2 * 1.5**2)), jnp.float32)
    moved = heatmap_loss(
        name, points + np.array([0.2, 0.0]), drawn
    )  # less than half a heatmap pixel
    assert heatmap_loss(name, points, drawn) < 1e-3 * moved


def test_targets_of_the_focal_loss_are_1_in_one_pixel():
    points = RNG.integers(1, SIDE - 1, (B, K, 2)).astype(np.float64)
    targets = encode(jnp.asarray(points, jnp.float32), (SIDE, SIDE), sigma=1.5)
    expected = losses.focal(LOGITS, targets, jnp.ones((B, K), bool))
    for shift in (0.0, 0.25, -0.4):
        assert heatmap_loss("focal", points + shift, LOGITS) == expected


@pytest.mark.parametrize("offset", [None, 0.0, 2.5])
def test_targets_follow_the_heatmap_offset(offset):
    """Linear heatmaps drawn with that offset have no loss."""
    points = jnp.asarray(RNG.integers(1, SIDE - 1, (B, K, 2)), jnp.float32)
    landmarks = 4 * points + (1.5 if offset is None else offset)
    drawn = encode(points, (SIDE, SIDE), sigma=1.5)
    output = LCGCNOutput(drawn, landmarks, jnp.ones((B, K)), None, landmarks)
    where = {} if offset is None else {"heatmap_offset": offset}
    total, _ = total_loss(
        output,
        landmarks,
        VISIBLE,
        config=LossConfig(heatmap="mse"),
        groups=("heatmap",),
        size=4 * SIDE,
        activation="linear",
        **where,
    )
    assert total == 0


def test_total_is_the_weighted_sum_of_the_trained_stages():
    weights = {"heatmap_weight": 3.0, "coordinate_weight": 5.0}
    config = {"heatmap": "mse", "coordinate": "wing", **weights}
    (total, parts), *_ = parts_of(64, **config)
    np.testing.assert_allclose(total, 3 * parts["mse"] + 5 * parts["wing"], rtol=1e-6)
    (total, parts), *_ = parts_of(64, groups=("graph",), **config)
    assert set(parts) == {"wing"}
    (total, parts), *_ = parts_of(64, groups=("heatmap",), **config)
    assert set(parts) == {"mse"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heatmap", "coordinate"),
    # Every other test trains with focal and l1.
    list(zip(get_args(HeatmapLoss)[1:], list(COORDINATE_LOSSES)[1:], strict=True)),
)
def test_each_loss_trains(tiny_config, tmp_path, heatmap, coordinate):
    tiny_config.loss.heatmap, tiny_config.loss.coordinate = heatmap, coordinate
    tiny_config.train.steps = tiny_config.train.eval_every = 1
    assert Trainer(tiny_config, tmp_path / "run", make_mesh(1)).run()
    row = read_metrics(tmp_path / "run")[0]
    assert np.isfinite(row[f"train/{heatmap}"])
    assert np.isfinite(row[f"train/{coordinate}"])
    assert row["train/gradient_norm"] > 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("heatmap", "focl", "loss.heatmap: got 'focl'; .*did you mean 'focal'"),
        ("coordinate", "l2", "loss.coordinate: got 'l2'; expected one of l1,"),
    ],
)
def test_unknown_losses_are_rejected(tiny_config, tmp_path, field, value, message):
    tiny_config.loss[field] = value
    with pytest.raises(InputError, match=message):
        Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    assert not (tmp_path / "run").exists()


def test_remat_is_rejected_for_models_without_it(tiny_config, tmp_path):
    tiny_config.train.remat = True
    with pytest.raises(InputError, match=r"train\.remat: the heatmap model \w+ cannot"):
        Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()
    assert not (tmp_path / "run").exists()


def test_focal_loss_of_linear_heatmaps_is_rejected(tiny_config, tmp_path):
    tiny_config.unlock().model.heatmap = {
        "name": "hrnet", "arch": "w18-small-v1", "activation": "linear",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"focal needs a sigmoid.*'linear'; use mse"):
        Trainer(tiny_config, tmp_path / "run", make_mesh(1)).prepare()

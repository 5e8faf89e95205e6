"""The coordinate loss of the heatmap stage."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcgcn_jax import losses
from lcgcn_jax.errors import InputError
from lcgcn_jax.heatmaps import moments
from lcgcn_jax.models.lcgcn import LCGCNOutput
from lcgcn_jax.training.config import default_config
from lcgcn_jax.training.config_checks import check_config
from lcgcn_jax.training.config_types import HeatmapCoordinateLoss, LossConfig
from lcgcn_jax.training.steps import check_activation, total_loss

B, K, SIDE, SIZE = 2, 3, 8, 32
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(B, SIDE, SIDE, K)), jnp.float32)
LANDMARKS = jnp.asarray(RNG.uniform(4, 28, (B, K, 2)), jnp.float32)
VISIBLE = jnp.array([[True, True, False], [True, False, True]])


def total(logits, landmarks=LANDMARKS, visible=VISIBLE, **config):
    return total_loss(
        LCGCNOutput(logits, landmarks, jnp.ones((B, K)), None, landmarks),
        landmarks,
        visible,
        config=LossConfig(**config),
        groups=("heatmap",),
        size=SIZE,
    )


@pytest.mark.parametrize("name", ["l1", "smooth_l1"])
@pytest.mark.parametrize(("normalization", "temperature"), [("softmax", 3.0), ("sigmoid", 1.0)])
def test_loss_is_that_of_the_means_of_the_heatmaps(name, normalization, temperature):
    value, parts = total(
        LOGITS,
        heatmap_coordinate=name,
        heatmap_coordinate_weight=5.0,
        heatmap_normalization=normalization,
        heatmap_temperature=temperature,
    )
    mean, _ = moments(LOGITS, normalization=normalization, temperature=temperature)
    predicted = 4 * mean + 1.5  # in crop pixels
    expected = getattr(losses, name)(predicted * 8, LANDMARKS * 8, VISIBLE) / 256
    np.testing.assert_allclose(parts["heatmap_coordinate"], expected, rtol=1e-4)
    np.testing.assert_allclose(value, parts["focal"] + 5 * expected, rtol=1e-5)


def test_default_adds_nothing():
    value, parts = total(LOGITS)
    assert set(parts) == {"focal"}
    assert value == parts["focal"]


@pytest.mark.parametrize("name", get_args(HeatmapCoordinateLoss)[1:])
def test_landmarks_outside_the_crop_do_not_count(name):
    outside = LANDMARKS.at[0, 0].set(jnp.array([-3.0, 10.0])).at[1, 2].set(jnp.array([10.0, 33.0]))
    inside_only = VISIBLE.at[0, 0].set(False).at[1, 2].set(False)
    _, parts = total(LOGITS, outside, heatmap_coordinate=name)
    _, expected = total(LOGITS, LANDMARKS, inside_only, heatmap_coordinate=name)
    np.testing.assert_allclose(
        parts["heatmap_coordinate"], expected["heatmap_coordinate"], rtol=1e-6
    )


@pytest.mark.parametrize("name", get_args(HeatmapCoordinateLoss)[1:])
def test_gradient_descent_moves_the_means_to_the_landmarks(name):
    """From a peak that is 3 px away, as a heatmap model would learn it."""
    options = {"heatmap_coordinate": name, "heatmap_weight": 0.0, "heatmap_temperature": 1.0}
    visible = jnp.ones((B, K), bool)
    y, x = np.indices((SIDE, SIDE))[:, None, :, :, None]
    points = (np.asarray(LANDMARKS)[:, None, None] + 0.5) / 4 - 0.5
    distance = (x - points[..., 0] - 0.5) ** 2 + (y - points[..., 1] + 0.5) ** 2
    logits = jnp.asarray(-distance / 4, jnp.float32)

    def errors(logits):
        return np.asarray(jnp.linalg.norm(4 * moments(logits)[0] + 1.5 - LANDMARKS, axis=-1))

    start = errors(logits)
    step = jax.jit(jax.grad(lambda logits: total(logits, visible=visible, **options)[0]))
    for _ in range(200):
        gradient = step(logits)
        logits = logits - 0.05 * gradient / (jnp.abs(gradient).max() + 1e-12)
    assert (errors(logits) < start / 3).all()


def test_bce_needs_a_sigmoid():
    loss = LossConfig(heatmap="bce")
    check_activation(loss, "sigmoid")
    with pytest.raises(InputError, match="bce needs a sigmoid"):
        check_activation(loss, "linear")


def test_unknown_loss_is_rejected_with_the_nearest_name():
    config = default_config()
    config.loss.heatmap_coordinate = "start"
    with pytest.raises(InputError, match="did you mean 'star'"):
        check_config(config)

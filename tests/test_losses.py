import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lcgcn_jax.heatmaps import encode
from lcgcn_jax.losses import focal, l1, masked_mean

RNG = np.random.default_rng(0)
B, H, W, K = 2, 6, 5, 3
LOGITS = jnp.asarray(RNG.normal(-1, 2, (B, H, W, K)), jnp.float32)
LANDMARKS = jnp.asarray(RNG.uniform([0, 0], [W - 1, H - 1], (B, K, 2)), jnp.float32)
TARGETS = encode(LANDMARKS, (H, W), sigma=1.0)
VISIBLE = jnp.array([[True, False, True], [True, True, False]])
HIDDEN = ~VISIBLE[:, None, None] & jnp.ones_like(TARGETS, bool)


def focal_by_loops(logits, targets, visible, alpha=2.0, beta=4.0):
    """Law and Deng 2018, eq. 1, cell by cell in float64."""
    logits, targets = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    losses = []
    for image in range(B):
        for landmark in range(K):
            if not visible[image, landmark]:
                continue
            loss = 0.0
            for y in range(H):
                for x in range(W):
                    p = 1 / (1 + np.exp(-logits[image, y, x, landmark]))
                    t = targets[image, y, x, landmark]
                    if t == 1:
                        loss -= (1 - p) ** alpha * np.log(p)
                    else:
                        loss -= (1 - t) ** beta * p**alpha * np.log(1 - p)
            losses.append(loss)
    return np.mean(losses)


@pytest.mark.parametrize("powers", [{}, {"alpha": 1.5, "beta": 3.0}])
def test_focal_is_the_published_formula(powers):
    expected = focal_by_loops(LOGITS, TARGETS, VISIBLE, **powers)
    np.testing.assert_allclose(focal(LOGITS, TARGETS, VISIBLE, **powers), expected, rtol=1e-5)


def test_l1_is_the_mean_over_visible_coordinates():
    predicted = np.array(LANDMARKS + 1.0)
    predicted[0, 0] += [2.0, -4.0]  # off by (3, -3) now, the others by (1, 1)
    loss = l1(jnp.asarray(predicted), LANDMARKS, VISIBLE)
    np.testing.assert_allclose(loss, (3 + 3 + 3 * 2) / 8, rtol=1e-6)


@pytest.mark.parametrize("junk", [1e6, jnp.nan])
def test_the_truth_of_hidden_landmarks_does_not_count(junk):
    def focal_and_gradient(targets):
        return jax.value_and_grad(focal)(LOGITS, targets, VISIBLE)

    def l1_and_gradient(true):
        return jax.value_and_grad(l1)(LANDMARKS + 0.3, true, VISIBLE)

    clean = focal_and_gradient(TARGETS), l1_and_gradient(LANDMARKS)
    dirty = (
        focal_and_gradient(jnp.where(HIDDEN, junk, TARGETS)),
        l1_and_gradient(jnp.where(VISIBLE[..., None], LANDMARKS, junk)),
    )
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_hidden_landmarks_get_no_gradient():
    by_logits = jax.grad(focal)(LOGITS, TARGETS, VISIBLE)
    assert not by_logits[HIDDEN].any()
    assert by_logits[~HIDDEN].all()
    by_points = jax.grad(l1)(LANDMARKS + 0.3, LANDMARKS, VISIBLE)
    assert (by_points.any(axis=-1) == VISIBLE).all()


def test_nothing_visible_is_a_loss_of_0():
    nothing = jnp.zeros((B, K), bool)
    assert focal(LOGITS, TARGETS, nothing) == 0.0
    assert l1(LANDMARKS + 0.3, LANDMARKS, nothing) == 0.0
    assert masked_mean(jnp.ones((B, K)), nothing) == 0.0


@pytest.mark.parametrize("level", [-80.0, 80.0])
def test_focal_is_finite_at_extreme_logits(level):
    loss, gradient = jax.value_and_grad(focal)(jnp.full_like(LOGITS, level), TARGETS, VISIBLE)
    # A sure miss costs its logit: of the one positive, or of all the others.
    assert 70 < loss < 80 * H * W
    assert np.isfinite(gradient).all()


def test_the_gradient_of_focal_is_that_of_its_differences():
    check_grads(
        lambda logits: focal(jnp.asarray(logits), TARGETS, VISIBLE),
        (LOGITS,),
        order=1,
        modes=["fwd", "rev"],
        atol=1e-2,
        rtol=1e-2,
    )


def test_bfloat16_logits_are_reckoned_in_float32():
    rough = LOGITS.astype(jnp.bfloat16)
    expected = focal_by_loops(rough.astype(jnp.float32), TARGETS, VISIBLE)
    np.testing.assert_allclose(focal(rough, TARGETS, VISIBLE), expected, rtol=1e-5)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lcgcn_jax.heatmaps import encode
from lcgcn_jax.losses import (
    adaptive_wing,
    focal,
    l1,
    masked_cross_entropy,
    masked_mean,
    mse,
    smooth_l1,
    wing,
)

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


# Heat on both sides of Adaptive Wing's theta, points on both sides of Wing's w and smooth L1's beta.
HEAT = jnp.asarray(RNG.uniform(-0.2, 1.2, (B, H, W, K)), jnp.float32)
POINTS = LANDMARKS + jnp.asarray(RNG.uniform(0.1, 14, (B, K, 2)), jnp.float32)


def mse_formula(heat, target):
    return 0.5 * (heat - target) ** 2


def adaptive_wing_formula(heat, target, omega=14.0, epsilon=1.0, alpha=2.1, theta=0.5):
    """Wang et al. 2019, for one cell."""
    difference = abs(target - heat)
    if difference < theta:
        return omega * np.log(1 + abs((target - heat) / epsilon) ** (alpha - target))
    a = omega * (1 / (1 + (theta / epsilon) ** (alpha - target))) * (alpha - target)
    a *= (theta / epsilon) ** (alpha - target - 1) * (1 / epsilon)
    c = theta * a - omega * np.log(1 + (theta / epsilon) ** (alpha - target))
    return a * difference - c


def wing_formula(x, w=10.0, epsilon=2.0):
    """Feng et al. 2018, for one coordinate."""
    c = w - w * np.log(1 + w / epsilon)
    return w * np.log(1 + abs(x) / epsilon) if abs(x) < w else abs(x) - c


def smooth_l1_formula(x):
    """Girshick 2015, eq. 3."""
    return 0.5 * x**2 if abs(x) < 1 else abs(x) - 0.5


def mean_by_loops(cell_loss, heat, targets, visible, weight=0.0):
    heat, targets = np.asarray(heat, np.float64), np.asarray(targets, np.float64)
    losses = []
    for image, landmark in np.argwhere(np.asarray(visible)):
        for y in range(H):
            for x in range(W):
                near = targets[image, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2, landmark]
                factor = weight * (near.max() >= 0.2) + 1
                cell = heat[image, y, x, landmark], targets[image, y, x, landmark]
                losses.append(factor * cell_loss(*cell))
    return np.mean(losses)


@pytest.mark.parametrize(
    ("loss", "formula", "weight"),
    [(mse, mse_formula, 0.0), (adaptive_wing, adaptive_wing_formula, 10.0)],
)
def test_losses_of_heat_are_the_published_formulas(loss, formula, weight):
    expected = mean_by_loops(formula, HEAT, TARGETS, VISIBLE, weight)
    np.testing.assert_allclose(loss(HEAT, TARGETS, VISIBLE), expected, rtol=1e-5)
    if (
        weight
    ):  # parts of the map are near a peak, parts are not, and their errors on both sides of theta
        assert expected > 1.2 * mean_by_loops(formula, HEAT, TARGETS, VISIBLE)
        errors = abs(HEAT - TARGETS)[~HIDDEN]
        assert 0.2 < (errors < 0.5).mean() < 0.8


@pytest.mark.parametrize(
    ("loss", "formula"), [(smooth_l1, smooth_l1_formula), (wing, wing_formula)]
)
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_losses_of_points_are_the_published_formulas(loss, formula, scale):
    points = LANDMARKS + scale * (POINTS - LANDMARKS)
    differences = (np.asarray(points, np.float64) - np.asarray(LANDMARKS))[np.asarray(VISIBLE)]
    expected = np.mean([formula(x) for x in differences.ravel()])
    np.testing.assert_allclose(loss(points, LANDMARKS, VISIBLE), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("loss", "heat_or_points", "truth"),
    [
        (mse, HEAT, TARGETS),
        (adaptive_wing, HEAT, TARGETS),
        (l1, POINTS, LANDMARKS),
        (smooth_l1, POINTS, LANDMARKS),
        (wing, POINTS, LANDMARKS),
    ],
)
class TestEveryLoss:
    def test_gradient_is_that_of_its_differences(self, loss, heat_or_points, truth):
        check_grads(
            lambda x: loss(jnp.asarray(x), truth, VISIBLE),
            (heat_or_points,),
            order=1,
            modes=["fwd", "rev"],
            eps=1e-3,
            atol=1e-2,
            rtol=1e-2,
        )

    @pytest.mark.parametrize("junk", [1e6, jnp.nan])
    def test_hidden_landmarks_do_not_count(self, loss, heat_or_points, truth, junk):
        shown = VISIBLE[:, None, None] if truth.ndim == 4 else VISIBLE[..., None]
        clean, gradient = jax.value_and_grad(loss)(heat_or_points, truth, VISIBLE)
        dirty = jax.value_and_grad(loss)(heat_or_points, jnp.where(shown, truth, junk), VISIBLE)
        jax.tree.map(np.testing.assert_array_equal, (clean, gradient), dirty)
        hidden = jnp.broadcast_to(~shown, truth.shape)
        assert not gradient[hidden].any()
        assert gradient[~hidden].all()
        assert loss(heat_or_points, truth, jnp.zeros((B, K), bool)) == 0.0

    def test_the_truth_itself_costs_nothing_and_has_a_finite_gradient(
        self, loss, heat_or_points, truth
    ):
        value, gradient = jax.value_and_grad(loss)(truth, truth, VISIBLE)
        assert value == 0.0
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("loss", "joint"), [(wing, 10.0), (smooth_l1, 1.0)])
def test_the_pieces_of_a_loss_of_points_join(loss, joint):
    def at(x):
        return float(loss(jnp.full((1, 1, 2), x), jnp.zeros((1, 1, 2)), jnp.ones((1, 1), bool)))

    assert at(joint + 1e-4) - at(joint - 1e-4) == pytest.approx(2e-4, abs=2e-4)


def test_the_pieces_of_adaptive_wing_join_in_value_and_slope():
    shown = jnp.ones((1, 1), bool)

    def at(x, target):
        everywhere = jnp.full((1, 3, 3, 1), target, jnp.float32)
        return jax.value_and_grad(lambda x: adaptive_wing(everywhere + x, everywhere, shown))(x)

    for target in (0.0, 0.6, 1.0):
        (value_1, slope_1), (value_2, slope_2) = at(0.4999, target), at(0.5001, target)
        np.testing.assert_allclose([value_1, slope_1], [value_2, slope_2], rtol=2e-3)


LABELS = np.array([[0, 1, -1], [2, -1, 0]], np.int8)
CLASS_WEIGHTS = (1.0, 3.0, 0.5)


def cross_entropy(logits, labels=LABELS):
    return masked_cross_entropy(jax.nn.log_softmax(logits), jnp.asarray(labels), CLASS_WEIGHTS)


def test_cross_entropy_is_the_weighted_mean_over_known_labels():
    logits = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    total = count = 0.0
    for face, landmark in np.argwhere(LABELS >= 0):
        label = LABELS[face, landmark]
        z = logits[face, landmark].astype(float)
        total += CLASS_WEIGHTS[label] * (np.log(np.exp(z).sum()) - z[label])
        count += CLASS_WEIGHTS[label]
    assert float(cross_entropy(jnp.asarray(logits))) == pytest.approx(total / count, rel=1e-5)


def test_unknown_labels_have_no_gradient_at_all():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3)), jnp.float32)
    gradient = np.asarray(jax.grad(cross_entropy)(logits))
    assert not gradient[LABELS < 0].any()
    assert gradient[LABELS >= 0].any(axis=1).all()
    loss, gradient = jax.value_and_grad(cross_entropy)(logits, np.full_like(LABELS, -1))
    assert loss == 0
    assert not np.asarray(gradient).any()

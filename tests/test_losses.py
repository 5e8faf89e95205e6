import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lcgcn_jax.heatmaps import encode, moments
from lcgcn_jax.losses import (
    adaptive_wing,
    bce,
    focal,
    l1,
    masked_cross_entropy,
    masked_mean,
    mse,
    normalized_l2,
    smooth_l1,
    star,
    wing,
)

# A program for each function compiles faster than one for each operation.
adaptive_wing, bce, l1, mse, normalized_l2, smooth_l1, wing = map(
    jax.jit, (adaptive_wing, bce, l1, mse, normalized_l2, smooth_l1, wing)
)
focal = jax.jit(focal, static_argnames=("alpha", "beta"))
star = jax.jit(star, static_argnames=("beta", "restriction"))
moments = jax.jit(moments, static_argnames=("normalization", "temperature"))
encode = jax.jit(encode, static_argnames=("shape", "sigma", "subpixel"))

RNG = np.random.default_rng(0)
B, H, W, K = 2, 6, 5, 3
LOGITS = jnp.asarray(RNG.normal(-1, 2, (B, H, W, K)), jnp.float32)
LANDMARKS = jnp.asarray(RNG.uniform([0, 0], [W - 1, H - 1], (B, K, 2)), jnp.float32)
TARGETS = encode(LANDMARKS, (H, W), sigma=1.0)
VISIBLE = jnp.array([[True, False, True], [True, True, False]])
HIDDEN = ~VISIBLE[:, None, None] & jnp.ones_like(TARGETS, bool)


def focal_reference(logits, targets, visible, alpha=2.0, beta=4.0):
    """Law and Deng 2018, eq. 1, pixel by pixel in float64."""
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
def test_focal_equals_the_formula_of_its_paper(powers):
    expected = focal_reference(LOGITS, TARGETS, VISIBLE, **powers)
    np.testing.assert_allclose(focal(LOGITS, TARGETS, VISIBLE, **powers), expected, rtol=1e-5)


def test_l1_is_the_mean_over_visible_coordinates():
    predicted = np.array(LANDMARKS + 1.0)
    predicted[0, 0] += [2.0, -4.0]  # an error of (3, -3); that of the others is (1, 1)
    loss = l1(jnp.asarray(predicted), LANDMARKS, VISIBLE)
    np.testing.assert_allclose(loss, (3 + 3 + 3 * 2) / 8, rtol=1e-6)


@pytest.mark.parametrize("junk", [1e6, jnp.nan])
def test_targets_of_hidden_landmarks_have_no_effect(junk):
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


def test_hidden_landmarks_have_no_gradient():
    by_logits = jax.grad(focal)(LOGITS, TARGETS, VISIBLE)
    assert not by_logits[HIDDEN].any()
    assert by_logits[~HIDDEN].all()
    by_points = jax.grad(l1)(LANDMARKS + 0.3, LANDMARKS, VISIBLE)
    assert (by_points.any(axis=-1) == VISIBLE).all()


def test_loss_is_0_without_visible_landmarks():
    nothing = jnp.zeros((B, K), bool)
    assert focal(LOGITS, TARGETS, nothing) == 0.0
    assert l1(LANDMARKS + 0.3, LANDMARKS, nothing) == 0.0
    assert masked_mean(jnp.ones((B, K)), nothing) == 0.0


@pytest.mark.parametrize("level", [-80.0, 80.0])
def test_focal_is_finite_at_extreme_logits(level):
    loss, gradient = jax.value_and_grad(focal)(jnp.full_like(LOGITS, level), TARGETS, VISIBLE)
    # A confident error costs its logit: of the positive pixel, or of all others.
    assert 70 < loss < 80 * H * W
    assert np.isfinite(gradient).all()


def test_gradient_of_focal_equals_finite_differences():
    check_grads(
        lambda logits: focal(jnp.asarray(logits), TARGETS, VISIBLE),
        (LOGITS,),
        order=1,
        modes=["fwd", "rev"],
        atol=1e-2,
        rtol=1e-2,
    )


def test_bfloat16_logits_are_computed_in_float32():
    rough = LOGITS.astype(jnp.bfloat16)
    expected = focal_reference(rough.astype(jnp.float32), TARGETS, VISIBLE)
    np.testing.assert_allclose(focal(rough, TARGETS, VISIBLE), expected, rtol=1e-5)


# Heatmaps with errors below and above theta of Adaptive Wing; points below and above w of Wing and beta of
# smooth L1.
HEATMAPS = jnp.asarray(RNG.uniform(-0.2, 1.2, (B, H, W, K)), jnp.float32)
POINTS = LANDMARKS + jnp.asarray(RNG.uniform(0.1, 14, (B, K, 2)), jnp.float32)


def mse_formula(value, target):
    return 0.5 * (value - target) ** 2


def adaptive_wing_formula(value, target, omega=14.0, epsilon=1.0, alpha=2.1, theta=0.5):
    """Wang et al. 2019, for one pixel."""
    difference = abs(target - value)
    if difference < theta:
        return omega * np.log(1 + abs((target - value) / epsilon) ** (alpha - target))
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


def mean_reference(pixel_loss, heatmaps, targets, visible, weight=0.0):
    heatmaps, targets = np.asarray(heatmaps, np.float64), np.asarray(targets, np.float64)
    losses = []
    for image, landmark in np.argwhere(np.asarray(visible)):
        for y in range(H):
            for x in range(W):
                near = targets[image, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2, landmark]
                factor = weight * (near.max() >= 0.2) + 1
                pixel = heatmaps[image, y, x, landmark], targets[image, y, x, landmark]
                losses.append(factor * pixel_loss(*pixel))
    return np.mean(losses)


@pytest.mark.parametrize(
    ("loss", "formula", "weight"),
    [(mse, mse_formula, 0.0), (adaptive_wing, adaptive_wing_formula, 10.0)],
)
def test_heatmap_losses_equal_the_formulas_of_their_papers(loss, formula, weight):
    expected = mean_reference(formula, HEATMAPS, TARGETS, VISIBLE, weight)
    np.testing.assert_allclose(loss(HEATMAPS, TARGETS, VISIBLE), expected, rtol=1e-5)
    if weight:  # pixels near a peak and far from it, with errors below and above theta
        assert expected > 1.2 * mean_reference(formula, HEATMAPS, TARGETS, VISIBLE)
        errors = abs(HEATMAPS - TARGETS)[~HIDDEN]
        assert 0.2 < (errors < 0.5).mean() < 0.8


@pytest.mark.parametrize(
    ("loss", "formula"), [(smooth_l1, smooth_l1_formula), (wing, wing_formula)]
)
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_coordinate_losses_equal_the_formulas_of_their_papers(loss, formula, scale):
    points = LANDMARKS + scale * (POINTS - LANDMARKS)
    differences = (np.asarray(points, np.float64) - np.asarray(LANDMARKS))[np.asarray(VISIBLE)]
    expected = np.mean([formula(x) for x in differences.ravel()])
    np.testing.assert_allclose(loss(points, LANDMARKS, VISIBLE), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("loss", "predicted", "target"),
    [
        (mse, HEATMAPS, TARGETS),
        (adaptive_wing, HEATMAPS, TARGETS),
        (l1, POINTS, LANDMARKS),
        (smooth_l1, POINTS, LANDMARKS),
        (wing, POINTS, LANDMARKS),
        (normalized_l2, POINTS, LANDMARKS),
    ],
)
class TestEveryLoss:
    def test_gradient_equals_finite_differences(self, loss, predicted, target):
        check_grads(
            lambda x: loss(jnp.asarray(x), target, VISIBLE),
            (predicted,),
            order=1,
            modes=["fwd", "rev"],
            eps=1e-3,
            atol=1e-2,
            rtol=1e-2,
        )

    @pytest.mark.parametrize("junk", [1e6, jnp.nan])
    def test_hidden_landmarks_have_no_effect(self, loss, predicted, target, junk):
        mask = VISIBLE[:, None, None] if target.ndim == 4 else VISIBLE[..., None]
        clean, gradient = jax.value_and_grad(loss)(predicted, target, VISIBLE)
        dirty = jax.value_and_grad(loss)(predicted, jnp.where(mask, target, junk), VISIBLE)
        jax.tree.map(np.testing.assert_array_equal, (clean, gradient), dirty)
        hidden = jnp.broadcast_to(~mask, target.shape)
        assert not gradient[hidden].any()
        assert gradient[~hidden].all()
        assert loss(predicted, target, jnp.zeros((B, K), bool)) == 0.0

    def test_loss_is_0_at_the_target_with_a_finite_gradient(self, loss, predicted, target):
        value, gradient = jax.value_and_grad(loss)(target, target, VISIBLE)
        assert value == 0.0
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("loss", "joint"), [(wing, 10.0), (smooth_l1, 1.0)])
def test_coordinate_losses_are_continuous(loss, joint):
    def at(x):
        return float(loss(jnp.full((1, 1, 2), x), jnp.zeros((1, 1, 2)), jnp.ones((1, 1), bool)))

    assert at(joint + 1e-4) - at(joint - 1e-4) == pytest.approx(2e-4, abs=2e-4)


def test_adaptive_wing_is_continuous_in_value_and_slope():
    visible = jnp.ones((1, 1), bool)

    def at(x, target):
        everywhere = jnp.full((1, 3, 3, 1), target, jnp.float32)
        return jax.value_and_grad(lambda x: adaptive_wing(everywhere + x, everywhere, visible))(x)

    for target in (0.0, 0.6, 1.0):
        (value_1, slope_1), (value_2, slope_2) = at(0.4999, target), at(0.5001, target)
        np.testing.assert_allclose([value_1, slope_1], [value_2, slope_2], rtol=2e-3)


def test_bce_is_the_divergence_of_each_pixel():
    targets = encode(LANDMARKS, (H, W), sigma=1.0, subpixel=True)
    p = 1 / (1 + np.exp(-np.asarray(LOGITS, np.float64)))
    t = np.asarray(targets, np.float64)
    divergence = t * np.log(t / p) + (1 - t) * np.log((1 - t) / (1 - p))
    expected = divergence.sum(axis=(1, 2))[np.asarray(VISIBLE)].mean()
    np.testing.assert_allclose(bce(LOGITS, targets, VISIBLE), expected, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_bce_is_0_for_exact_heatmaps_and_finite_for_targets_of_0_and_1(value):
    targets = jnp.full_like(LOGITS, value)
    loss, gradient = jax.value_and_grad(bce)(
        jnp.full_like(LOGITS, 40 * (2 * value - 1)), targets, VISIBLE
    )
    assert loss == pytest.approx(0, abs=1e-6)
    assert np.isfinite(gradient).all()


def test_normalized_l2_is_the_distance_over_the_root_of_the_box_area():
    true = jnp.array([[[0, 0], [40, 10], [0, 90]], [[5, 5], [15, 25], [10, 10]]], jnp.float32)
    distances = np.array([[3.0, 0.0, 7.0], [0.0, 2.0, 9.0]])
    predicted = true + jnp.asarray(distances[..., None] * [[[0.6, 0.8]]], jnp.float32)
    visible = jnp.array([[True, True, True], [True, True, False]])
    expected = np.sum(distances[0] / 60) + 2 / np.sqrt(10 * 20)
    np.testing.assert_allclose(normalized_l2(predicted, true, visible), expected / 5, rtol=1e-6)


def test_moments_are_those_of_the_distribution():
    weights = np.exp(2 * np.asarray(LOGITS, np.float64))
    weights /= weights.sum(axis=(1, 2), keepdims=True)
    y, x = np.indices((H, W))
    points = np.stack([x, y], axis=-1).astype(float)
    mean, covariance = moments(LOGITS, temperature=2.0)
    for image, landmark in np.ndindex(B, K):
        p = weights[image, :, :, landmark].ravel()
        expected = p @ points.reshape(-1, 2)
        np.testing.assert_allclose(mean[image, landmark], expected, atol=1e-5)
        matrix = np.cov(points.reshape(-1, 2).T, aweights=p, bias=True)
        np.testing.assert_allclose(covariance[image, landmark], matrix, atol=1e-5)


def test_moments_of_sigmoid_heatmaps_are_those_of_the_target():
    points = jnp.array([[[2.3, 2.6]]], jnp.float32)
    targets = encode(points, (H, W), sigma=0.5, subpixel=True)
    targets = jnp.clip(targets, 1e-6, 1 - 1e-6)
    mean, covariance = moments(jnp.log(targets) - jnp.log1p(-targets), normalization="sigmoid")
    np.testing.assert_allclose(mean, points, atol=0.03)  # the border cuts off the tails
    np.testing.assert_allclose(covariance[0, 0], 0.25 * np.eye(2), atol=0.03)


def star_reference(mean, covariance, true, beta, restriction):
    """Zhou et al. 2023, eq. 5 to 8, with NumPy's eigenvectors."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    error = np.einsum("bkij,bki->bkj", vectors, np.asarray(mean - true, np.float64))
    x = abs(error) / np.sqrt(values)
    smooth = np.where(x < beta, x**2 / (2 * beta), x - beta / 2).sum(axis=-1)
    return smooth + restriction / 2 * values.sum(axis=-1)


@pytest.mark.parametrize(("beta", "restriction"), [(0.05, 1.0), (1.0, 0.1)])
def test_star_equals_the_formula_of_its_paper(beta, restriction):
    mean, covariance = moments(LOGITS)
    loss = star(mean, covariance, LANDMARKS, VISIBLE, beta=beta, restriction=restriction)
    expected = star_reference(mean, covariance, LANDMARKS, beta, restriction)
    np.testing.assert_allclose(loss, expected[np.asarray(VISIBLE)].mean(), rtol=1e-4)


def test_star_allows_errors_along_the_ambiguous_direction():
    covariance = jnp.array([[[[9.0, 0.0], [0.0, 0.25]]]])
    mean, visible = jnp.zeros((1, 1, 2)), jnp.ones((1, 1), bool)
    along, across = (
        star(mean, covariance, jnp.array([[point]]), visible, restriction=0.0)
        for point in ([2.0, 0.0], [0.0, 2.0])
    )
    assert along < across / 2


@pytest.mark.parametrize(
    "logits",
    [jnp.zeros((1, 5, 5, 1)), jnp.zeros((1, 5, 5, 1)).at[0, 2, 2, 0].set(200.0)],
    ids=["uniform", "one pixel"],
)
def test_star_has_a_finite_gradient_at_equal_and_at_zero_eigenvalues(logits):
    def loss(logits):
        return star(*moments(logits), jnp.array([[[1.0, 3.0]]]), jnp.ones((1, 1), bool))

    value, gradient = jax.value_and_grad(loss)(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("junk", [1e6, jnp.nan])
def test_star_ignores_hidden_landmarks(junk):
    def loss(logits, true):
        return star(*moments(logits), true, VISIBLE)

    clean = jax.value_and_grad(loss)(LOGITS, LANDMARKS)
    dirty = jax.value_and_grad(loss)(LOGITS, jnp.where(VISIBLE[..., None], LANDMARKS, junk))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert not clean[1][HIDDEN].any()


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


def test_unknown_labels_have_no_gradient():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3)), jnp.float32)
    gradient = np.asarray(jax.grad(cross_entropy)(logits))
    assert not gradient[LABELS < 0].any()
    assert gradient[LABELS >= 0].any(axis=1).all()
    loss, gradient = jax.value_and_grad(cross_entropy)(logits, np.full_like(LABELS, -1))
    assert loss == 0
    assert not np.asarray(gradient).any()

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lcgcn_jax import heatmaps
from lcgcn_jax.geometry import input_to_heatmap
from lcgcn_jax.heatmaps import DECODERS, heatmap_pixels_at

# Compiled as one program; without `jit`, every operation would be compiled separately.
decode = jax.jit(heatmaps.decode, static_argnames=("method", "activation"))
encode = jax.jit(heatmaps.encode, static_argnames=("shape", "sigma", "subpixel"))
heatmap_std = jax.jit(heatmaps.heatmap_std, static_argnames="activation")
sample = jax.jit(heatmaps.sample, static_argnames="bilinear")
windows = jax.jit(heatmaps.windows, static_argnums=2)

H, W = 20, 24
RNG = np.random.default_rng(0)
INSIDE = RNG.uniform([5, 5], [W - 6, H - 6], (60, 2))


def gaussian_logits(points, sigma, shape=(H, W), peak=0.9):
    """Logits `[1 h w k]` of heatmaps whose probabilities are Gaussians at the points."""
    y, x = np.indices(shape)[..., None]
    squared = (x - points[:, 0]) ** 2 + (y - points[:, 1]) ** 2
    p = np.clip(peak * np.exp(-squared / (2 * sigma**2)), 1e-9, None)
    return jnp.asarray(np.log(p / (1 - p))[None], jnp.float32)


def decoded(points, method, sigma, **options):
    pixels, _ = decode(gaussian_logits(points, sigma, **options), method)
    return np.asarray(pixels[0])


def targets_of(point, **options):
    return np.asarray(encode(jnp.array([[point]], jnp.float32), (H, W), **options))[0, ..., 0]


@pytest.mark.parametrize("point", [(3.2, 7.4), (3.7, 7.6), (0.0, 0.0), (22.6, 18.9), (-0.4, 19.4)])
def test_target_is_exactly_1_at_the_nearest_pixel(point):
    targets = targets_of(point, sigma=1.5)
    x, y = (round(v) for v in point)
    assert targets[y, x] == 1.0
    assert (targets == 1.0).sum() == 1


@pytest.mark.parametrize(("subpixel", "center"), [(False, (8, 6)), (True, (7.7, 6.2))])
def test_targets_are_gaussians_around_the_pixel_or_the_point(subpixel, center):
    y, x = np.indices((H, W))
    expected = np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * 2.0**2))
    targets = targets_of((7.7, 6.2), sigma=2.0, subpixel=subpixel)
    np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_target_of_a_distant_landmark_is_0():
    assert targets_of((-30.0, 5.0), sigma=1.5).max() == 0.0


def test_argmax_is_accurate_to_half_a_pixel():
    error = np.abs(decoded(INSIDE, "argmax", 1.5) - INSIDE)
    assert 0.4 < error.max() <= 0.5


@pytest.mark.parametrize(
    ("method", "bound"),
    # The log of a Gaussian is a parabola, for which the Newton step of DARK is exact. Soft-argmax reads 5 x 5
    # pixels, and its truncation causes a bias towards the peak pixel.
    [("dark", {1.0: 1e-3, 1.5: 1e-3, 2.0: 1e-3}), ("soft", {1.0: 0.05, 1.5: 0.19, 2.0: 0.3})],
)
@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_subpixel_positions_are_recovered(method, bound, sigma):
    error = np.abs(decoded(INSIDE, method, sigma) - INSIDE)
    assert error.max() < bound[sigma]


cases = settings(deadline=None, max_examples=15, derandomize=True)
# Fractions of the region where the windows of all decoders are inside: [0, 1] is [3, side - 4].
fractions = arrays(np.float32, (1, 8, 2), elements=st.floats(0, 1, width=32))
sigmas = st.sampled_from([1.0, 1.5, 2.0])


def inner_points(fraction):
    return jnp.asarray(3 + fraction * np.float32([[[W - 7, H - 7]]]))


@pytest.mark.parametrize(
    ("method", "bounds"),
    [
        ("argmax", {1.0: 0.5, 1.5: 0.5, 2.0: 0.5}),
        ("quarter", {1.0: 0.25, 1.5: 0.25, 2.0: 0.25}),
        ("dark", {1.0: 0.01, 1.5: 0.01, 2.0: 0.01}),
        ("soft", {1.0: 0.05, 1.5: 0.19, 2.0: 0.3}),
    ],
)
@cases
@given(fraction=fractions, sigma=sigmas)
def test_subpixel_targets_are_decoded_to_their_points(method, bounds, fraction, sigma):
    points = inner_points(fraction)
    targets = encode(points, (H, W), sigma=sigma, subpixel=True)
    decoded, confidence = decode(targets, method, activation="linear")
    assert np.abs(decoded - points).max() <= bounds[sigma] + 1e-3
    assert (np.asarray(confidence) >= np.exp(-0.25 / sigma**2) - 1e-5).all()


@pytest.mark.parametrize("method", DECODERS)
@cases
@given(fraction=fractions, sigma=sigmas)
def test_targets_are_decoded_to_the_nearest_pixels(method, fraction, sigma):
    points = inner_points(fraction)
    decoded, confidence = decode(encode(points, (H, W), sigma=sigma), method, activation="linear")
    # DARK smooths the heatmap with zero padding, which affects points near the border.
    np.testing.assert_allclose(decoded, jnp.round(points), atol=0.01)
    assert (np.asarray(confidence) == 1.0).all()


@cases
@given(fractions, st.sampled_from([1, 2, 4, 8]))
def test_heatmap_pixels_at_matches_input_to_heatmap(positions, stride):
    input_pixels = positions * np.float32([[[W * stride, H * stride]]]) - np.float32(0.5)
    expected = input_to_heatmap(input_pixels, stride)
    pixels = heatmap_pixels_at(jnp.asarray(positions), (H, W))
    np.testing.assert_allclose(pixels, expected, atol=1e-4)


@pytest.mark.parametrize("tilt", [-0.6, 0.6])
def test_dark_decodes_rotated_peaks(tilt):
    y, x = np.indices((H, W))
    dx, dy = x - 10.3, y - 8.6
    squared = (dx**2 - 2 * tilt * dx * dy + dy**2) / (1.5**2 * (1 - tilt**2))
    p = np.clip(0.9 * np.exp(-squared / 2), 1e-9, None)
    pixels, _ = decode(jnp.asarray(np.log(p / (1 - p))[None, ..., None], jnp.float32), "dark")
    np.testing.assert_allclose(pixels[0, 0], [10.3, 8.6], atol=1e-2)


@pytest.mark.parametrize("subpixel", ["quarter", "dark", "soft"])
def test_subpixel_decoders_have_a_lower_error_than_argmax(subpixel):
    def mean_error(method):
        return np.linalg.norm(decoded(INSIDE, method, 1.5) - INSIDE, axis=1).mean()

    assert mean_error(subpixel) < 0.7 * mean_error("argmax")


@pytest.mark.parametrize("method", DECODERS)
def test_peaks_at_the_border_are_decoded_inside_the_heatmap(method):
    x, y = np.meshgrid([-0.3, 0.4, 1.2, W - 2.3, W - 0.6], [-0.3, 0.4, 9.0, H - 2.3, H - 0.6])
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    pixels = decoded(points, method, 1.5)
    assert np.isfinite(pixels).all()
    assert (pixels >= 0).all()
    assert (pixels <= [W - 1, H - 1]).all()
    assert np.abs(pixels - points).max() < 1.2


@pytest.mark.parametrize("method", DECODERS)
@pytest.mark.parametrize("level", [-80.0, 0.0, 80.0])
def test_constant_heatmaps_are_decoded_inside_the_heatmap(method, level):
    pixels, confidence = decode(jnp.full((1, H, W, 2), level), method)
    assert np.isfinite(pixels).all()
    assert (np.asarray(pixels) >= 0).all()
    assert (np.asarray(pixels) <= [W - 1, H - 1]).all()
    np.testing.assert_allclose(confidence, jax.nn.sigmoid(level))


@pytest.mark.parametrize("method", DECODERS)
def test_confidence_is_the_probability_at_the_peak(method):
    logits = jnp.asarray(RNG.normal(size=(2, H, W, 3)), jnp.float32)
    _, confidence = decode(logits, method)
    highest = np.asarray(logits, np.float64).max(axis=(1, 2))
    np.testing.assert_allclose(confidence, 1 / (1 + np.exp(-highest)), rtol=1e-6)


def test_each_heatmap_is_decoded_independently():
    points = RNG.uniform([5, 5], [W - 6, H - 6], (6, 2))
    logits = gaussian_logits(points, 1.5).reshape(H, W, 2, 3).transpose(2, 0, 1, 3)
    pixels, _ = decode(logits, "dark")
    np.testing.assert_allclose(np.asarray(pixels).reshape(6, 2), points, atol=0.05)


def test_soft_is_differentiable_and_argmax_is_not():
    logits = gaussian_logits(np.array([[8.0, 9.0]]), 1.5)

    def gradient_of_x(method):
        return np.asarray(jax.jit(jax.grad(lambda m: decode(m, method)[0][0, 0, 0]))(logits))[
            0, ..., 0
        ]

    assert not gradient_of_x("argmax").any()
    soft = gradient_of_x("soft")
    assert soft[9, 9] > 0 > soft[9, 7]  # more weight on the right increases x
    assert not soft[:, :5].any()  # outside of the window


# Value at (x, y) in channel c: 100 c + 10 y + x.
RAMP = jnp.asarray(
    np.arange(4)[None, :, None, None] * 10.0
    + np.arange(6)[None, None, :, None]
    + np.arange(2)[None, None, None, :] * 100.0,
    jnp.float32,
)


@pytest.mark.parametrize(
    ("bilinear", "point", "value"),
    [
        (False, (2.4, 1.6), 22.0),
        (False, (4.6, 0.2), 5.0),
        (False, (9.0, -3.0), 5.0),
        (True, (2.25, 1.5), 17.25),
        (True, (5.0, 3.0), 35.0),
        (True, (0.0, 2.75), 27.5),
        (True, (-1.0, 7.0), 30.0),
    ],
)
def test_maps_are_sampled_at_points(bilinear, point, value):
    sampled = sample(RAMP, jnp.array([[point]], jnp.float32), bilinear=bilinear)
    assert sampled.tolist() == [[[value, value + 100]]]


def test_bilinear_sampling_weights_four_pixels():
    maps = jnp.array([[1.0, 2.0], [4.0, 16.0]])[None, :, :, None]
    sampled = sample(maps, jnp.array([[[0.25, 0.5]]]), bilinear=True)
    assert sampled.item() == 0.5 * (0.75 * 1 + 0.25 * 2) + 0.5 * (0.75 * 4 + 0.25 * 16)


@pytest.mark.parametrize("method", DECODERS)
def test_linear_heatmaps_are_decoded_like_probabilities(method):
    points = jnp.array([[[8.3, 9.2], [5.6, 6.4]]])
    probabilities = jnp.clip(0.9 * encode(points, (H, W), sigma=1.5, subpixel=True), 1e-6, None)
    from_logits = decode(jnp.log(probabilities / (1 - probabilities)), method)
    from_linear = decode(probabilities, method, activation="linear")
    for a, b in zip(from_linear, from_logits, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.parametrize("method", DECODERS)
def test_confidence_of_linear_heatmaps_is_clipped(method):
    heatmap = 1.5 * encode(jnp.array([[[8.0, 9.0]]]), (H, W), sigma=1.0) - 0.1
    pixels, confidence = decode(heatmap, method, activation="linear")
    np.testing.assert_allclose(pixels[0, 0], [8, 9], atol=1e-3)
    assert confidence[0, 0] == 1.0
    pixels, confidence = decode(jnp.full((1, H, W, 1), -0.2), method, activation="linear")
    assert np.isfinite(pixels).all()
    assert confidence[0, 0] == 0.0


def test_windows_match_samples_around_the_points():
    rng = np.random.default_rng(0)
    maps = jnp.asarray(rng.normal(size=(2, 9, 8, 3)), jnp.float32)
    points = jnp.array([[[3.3, 4.7], [0.2, 8.0], [-3.0, 2.5], [7.0, 0.0]]] * 2)
    patches = windows(maps, points, 3)
    assert patches.shape == (2, 4, 3, 3, 3)
    clipped = jnp.clip(points, 0, jnp.array([[[7.0, 8.0]]]))
    for row in range(3):
        for column in range(3):
            positions = clipped + jnp.array([[[column - 1.0, row - 1.0]]])
            # Bilinear sampling of a map with replicated borders.
            padded = jnp.pad(maps, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
            expected = sample(padded, positions + 2, bilinear=True)
            np.testing.assert_allclose(patches[:, :, row, column], expected, atol=1e-5)


@pytest.mark.parametrize("sigma", [1.0, 1.5])
def test_heatmap_std_is_that_of_the_squared_gaussian(sigma):
    points = np.random.default_rng(1).uniform(10, 22, (20, 2))
    std = heatmap_std(gaussian_logits(points, sigma, shape=(32, 32)))
    # A squared Gaussian has sigma / sqrt(2); the window ends 4 pixels from the peak.
    np.testing.assert_allclose(std[0], sigma / np.sqrt(2) / 32, rtol=0.03)


def test_heatmap_std_does_not_depend_on_the_height_of_the_peak():
    points = np.array([[12.3, 15.8]])
    high, low = (heatmap_std(gaussian_logits(points, 1.2, (32, 32), peak)) for peak in (0.9, 0.05))
    np.testing.assert_allclose(high, low, rtol=1e-3)


def test_heatmap_std_ignores_distant_peaks():
    near, far = (
        np.log(np.exp(gaussian_logits(np.array([[12.0, 12.0]]), 1.0, (32, 32)))
               + np.exp(gaussian_logits(np.array([[x, 12.0]]), 1.0, (32, 32), peak=0.8)))
        for x in (15.0, 25.0)
    )  # fmt: skip
    single = heatmap_std(gaussian_logits(np.array([[12.0, 12.0]]), 1.0, (32, 32)))
    np.testing.assert_allclose(heatmap_std(jnp.asarray(far)), single, rtol=1e-3)
    assert heatmap_std(jnp.asarray(near))[0, 0] > 1.4 * single[0, 0]


@pytest.mark.parametrize("point", [(0.0, 0.0), (23.0, 19.0), (-0.4, 7.0)])
def test_heatmap_std_at_the_border_is_finite(point):
    std = heatmap_std(gaussian_logits(np.array([point]), 1.0))
    assert 0 < std[0, 0] < 0.05


def test_heatmap_std_of_one_pixel_and_of_an_empty_heatmap_is_0():
    heatmap = np.full((1, H, W, 2), -0.5, np.float32)
    heatmap[0, 7, 9, 0] = 1.3
    std = heatmap_std(jnp.asarray(heatmap), activation="linear")
    np.testing.assert_allclose(std, 0, atol=1e-3)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from lcgcn_jax.fields import constraints_of
from lcgcn_jax.models.config import GraphConfig
from lcgcn_jax.models.layers import (
    MLP,
    BatchNorm,
    Conv,
    ConvBN,
    glorot_normal,
    he_normal,
    make_rngs,
    normal_init,
    upsample_bilinear,
)

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def run(module, x, **mode):
    """Output of a module, compiled as one program."""
    return nnx.jit(functools.partial(type(module).__call__, **mode))(module, x)


def make_mlp(norm, widths=(5, 4, 3)):
    return MLP(6, widths, norm=norm, momentum=0.9, dtype=jnp.float32, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("stride", "size", "shape"), [(1, 3, (6, 8)), (2, 3, (3, 4)), (2, 1, (3, 4)), (1, 1, (6, 8))]
)
def test_convolution_matches_a_sum_over_windows(stride, size, shape):
    conv = Conv(
        2, 3, size, stride=stride, use_bias=True, bias_init=0.7, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    x, pad = normal(1, 6, 8, 2), size // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    expected = np.zeros((1, *shape, 3))
    for i, j in np.ndindex(shape):
        window = padded[0, stride * i : stride * i + size, stride * j : stride * j + size]
        expected[0, i, j] = np.einsum("yxi,yxio->o", window, conv.kernel[...]) + 0.7
    np.testing.assert_allclose(run(conv, x), expected, atol=1e-5)


def test_1x1_convolution_matches_lax():
    conv = Conv(5, 7, 1, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = normal(2, 6, 4, 5)
    expected = lax.conv_general_dilated(
        x, conv.kernel[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(run(conv, x), expected, atol=1e-5)


def batch_norms(dtype=jnp.float32):
    ours = BatchNorm(5, momentum=0.9, dtype=dtype, rngs=nnx.Rngs(0))
    theirs = nnx.BatchNorm(5, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))
    scale, bias = normal(5), normal(5)
    for module in (ours, theirs):
        module.scale.set_value(scale)
        module.bias.set_value(bias)
    return ours, theirs


@pytest.mark.parametrize("leading", [(8,), (3, 4), (2, 4, 6)])
def test_batch_norm_matches_flax(leading):
    ours, theirs = batch_norms()
    for _ in range(2):
        x = 3 * normal(*leading, 5) + 10
        expected = run(theirs, x, use_running_average=False)
        np.testing.assert_allclose(run(ours, x, train=True), expected, atol=1e-4)
    np.testing.assert_allclose(ours.mean[...], theirs.mean[...], rtol=1e-4)
    np.testing.assert_allclose(ours.var[...], theirs.var[...], rtol=1e-4)
    expected = run(theirs, x, use_running_average=True)
    np.testing.assert_allclose(run(ours, x, train=False), expected, atol=1e-4)


@pytest.mark.parametrize("leading", [(8,), (2, 4, 6)])
def test_batch_norm_gradient_matches_flax(leading):
    x, weights = 3 * normal(*leading, 5) + 10, normal(*leading, 5)

    def gradients(module, **mode):
        graphdef, params, rest = nnx.split(module, nnx.Param, ...)

        def loss(x, params):
            return (
                weights * jnp.tanh(nnx.merge(graphdef, params, rest, copy=True)(x, **mode))
            ).sum()

        dx, d_params = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, params)
        return dx, d_params["scale"][...], d_params["bias"][...]

    ours, theirs = batch_norms()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        gradients(ours, train=True),
        gradients(theirs, use_running_average=False),
    )


def test_batch_norm_gradient_in_bfloat16_is_close_to_float32():
    x, weights = normal(4000, 5), normal(4000, 5)

    def gradient(dtype):
        norm, _ = batch_norms(dtype)
        norm.scale.set_value(jnp.ones(5))
        graphdef, state = nnx.split(norm)

        def loss(x):
            y = nnx.merge(graphdef, state, copy=True)(x, train=True)
            return (weights * y.astype(jnp.float32)).sum()

        return jax.jit(jax.grad(loss))(x.astype(dtype))

    half = gradient(jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), gradient(jnp.float32), atol=0.05)


def test_batch_norm_keeps_its_statistics_in_evaluation():
    ours, _ = batch_norms()
    before = ours.mean[...], ours.var[...]
    run(ours, normal(8, 5) + 10, train=False)
    jax.tree.map(np.testing.assert_array_equal, before, (ours.mean[...], ours.var[...]))


@pytest.mark.parametrize(("mean", "running_mean"), [(50, 0), (4096, 4090), (-4096, -4090)])
def test_batch_norm_variance_is_precise_with_a_large_mean(mean, running_mean):
    ours, _ = batch_norms()
    ours.mean.set_value(jnp.full(5, running_mean, jnp.float32))
    x = normal(1000, 5)
    run(ours, x + mean, train=True)
    variance = (ours.var[...] - 0.9) / 0.1
    np.testing.assert_allclose(variance, x.var(axis=0), rtol=2e-3)


def test_batch_norm_of_constant_values_is_finite():
    ours, _ = batch_norms()
    y = run(ours, jnp.full((1000, 5), 1e4), train=True)
    assert np.isfinite(y).all()
    assert (ours.var[...] >= 0).all()


def test_batch_norm_statistics_of_bfloat16_are_float32():
    ours, _ = batch_norms(jnp.bfloat16)
    assert run(ours, normal(8, 5).astype(jnp.bfloat16), train=True).dtype == jnp.bfloat16
    assert ours.mean[...].dtype == ours.var[...].dtype == jnp.float32


def test_equal_batch_norms_are_traced_and_lowered_once():
    make = {"momentum": 0.9, "dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    model = nnx.List(ConvBN(4, 4, 3, **make) for _ in range(6))

    @nnx.jit
    def run(model, x):
        for block in model:
            x = block(x, train=True)
        return x

    text = run.lower(model, normal(2, 8, 8, 4)).as_text()
    assert text.count("call @_batch_norm") == 6
    assert text.count("stablehlo.rsqrt") == 1


def test_mlp_is_linear_relu_and_norm_except_in_the_last_layer():
    mlp = make_mlp("batch")
    for norm in mlp.norms:
        norm.mean.set_value(normal(*norm.mean.shape))
        norm.scale.set_value(normal(*norm.scale.shape))
    x = normal(4, 6)
    h = np.asarray(x, np.float64)
    for linear, norm in zip(mlp.linears, [*mlp.norms, None], strict=True):
        h = h @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])
        if norm is not None:
            mean, scale = np.asarray(norm.mean[...]), np.asarray(norm.scale[...])
            h = (np.maximum(h, 0) - mean) / np.sqrt(1 + 1e-5) * scale
    np.testing.assert_allclose(run(mlp, x, train=False), h, atol=1e-5)


@pytest.mark.parametrize("norm", constraints_of(GraphConfig)["norm"].choices)
@pytest.mark.parametrize("train", [True, False])
def test_leading_axes_of_mlp_are_one_batch(norm, train):
    mlp, x = make_mlp(norm), normal(2, 3, 4, 6)
    flat = run(mlp, x.reshape(24, 6), train=train)
    np.testing.assert_allclose(run(mlp, x, train=train), flat.reshape(2, 3, 4, 3), atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "is_independent"), [("none", True), ("layer", True), ("batch", False)]
)
def test_rows_of_mlp_depend_on_each_other_only_with_batch_norm(norm, is_independent):
    mlp, x = make_mlp(norm), normal(8, 6)
    part, whole = run(mlp, x[:4], train=True), run(mlp, x, train=True)[:4]
    assert np.allclose(part, whole, atol=1e-5) == is_independent


@pytest.mark.parametrize("last_norm", [False, True])
def test_mlp_with_relu_and_norm_after_the_last_layer(last_norm):
    options = {"norm": "batch", "momentum": 0.9, "dtype": jnp.float32}
    mlp = MLP(6, (5, 3), last_relu=True, last_norm=last_norm, **options, rngs=nnx.Rngs(0))
    linear = MLP(6, (5, 3), **options, rngs=nnx.Rngs(0))
    x = normal(4, 6)
    expected = run(linear, x, train=False)
    assert (np.asarray(expected) < 0).any()
    expected = np.maximum(expected, 0)
    if last_norm:
        norm = mlp.norms[1]
        norm.scale.set_value(normal(3))
        norm.bias.set_value(normal(3))
        expected = run(norm, jnp.asarray(expected), train=False)
    np.testing.assert_allclose(run(mlp, x, train=False), expected, rtol=1e-5, atol=1e-6)


def test_mlp_with_one_layer_is_linear():
    mlp, x = make_mlp("batch", widths=(3,)), normal(2, 6)
    np.testing.assert_allclose(
        run(mlp, x, train=True) + run(mlp, -x, train=True), np.zeros((2, 3)), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(8, 12), (16, 24), (32, 48), (4, 6), (7, 11)])
def test_upsampling_matches_jax_image(shape):
    x = normal(2, 4, 6, 3)
    expected = jax.image.resize(x, (2, *shape, 3), "bilinear")
    np.testing.assert_allclose(upsample_bilinear(x, shape), expected, atol=1e-5)


def test_single_pixel_is_replicated():
    x = normal(1, 1, 1, 3)
    np.testing.assert_allclose(upsample_bilinear(x, (2, 2)), jnp.tile(x, (1, 2, 2, 1)))


@pytest.mark.parametrize(
    ("init", "std"),
    [
        (normal_init(0.001), 0.001),
        (he_normal, (2 / (9 * 40)) ** 0.5),
        (glorot_normal, (2 / (3 + 3 + 50 + 40)) ** 0.5),
    ],
    ids=["normal", "he", "glorot"],
)
def test_initial_weights_have_the_standard_deviation_of_the_paper(init, std):
    weights = init(jax.random.key(0), (3, 3, 50, 40))
    assert weights.std() == pytest.approx(std, rel=0.03)
    assert abs(weights.mean()) < 0.03 * std


def test_keys_match_flax():
    def draw(make):
        rngs = make(3)
        keys = [rngs.params(), rngs.params(), rngs.dropout(), nnx.Dropout(0.5, rngs=rngs).rngs()]
        return [jax.random.key_data(key) for key in keys]

    ours = jax.jit(lambda: draw(make_rngs))()
    np.testing.assert_array_equal(ours, jax.jit(lambda: draw(nnx.Rngs))())
    assert len(np.unique(ours, axis=0)) == 4


def test_initial_weights_depend_only_on_the_key():
    first, repeated, other = (normal_init(1.0)(jax.random.key(i), (4, 4)) for i in (0, 0, 1))
    assert (first == repeated).all()
    assert not (first == other).any()
    traced = jax.jit(lambda: normal_init(1.0)(jax.random.key(0), (4, 4)))()
    assert (first == traced).all()

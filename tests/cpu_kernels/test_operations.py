"""Tests of the operations of `cpu_kernels`: the same values and gradients as with XLA's operations."""

import itertools
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lcgcn_jax import cpu_kernels
from lcgcn_jax.cpu_kernels import library
from lcgcn_jax.models.layers import upsample_bilinear
from lcgcn_jax.profiling.roofline import Cost

EPSILON = 1e-5
TOLERANCE = 3e-5  # of the largest value


@pytest.fixture(scope="module", params=["-march=native", "-march=x86-64-v3", "-march=x86-64"])
def other_processor(request, tmp_path_factory):
    """Prefix of kernels with other instructions, which x86 processors with AVX2 have too."""
    if platform.machine() != "x86_64" or "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs an x86 processor with AVX2")
    options = [request.param if o.startswith("-march") else o for o in library._OPTIONS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.VARIABLE, "true")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        patch.setattr(library, "_OPTIONS", tuple(options))
        prefix = library.load_library(build=True)
    assert prefix is not None
    return prefix


def random_arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def run_both(function, prefix, *arguments):
    """Arrays that a function returns with XLA's operations and with the kernels."""
    results = []
    for active in (None, prefix):
        traced = cpu_kernels.with_cpu_kernels(function, active)
        compiled = jax.jit(traced).lower(*arguments).compile()
        assert (f'custom_call_target="{prefix}' in compiled.as_text()) == (active is not None)
        results.append(jax.tree.leaves(compiled(*arguments)))
    return results


def assert_same(function, prefix, *arguments, tolerance=TOLERANCE):
    for expected, actual in zip(*run_both(function, prefix, *arguments), strict=True):
        scale = max(float(np.abs(np.asarray(expected)).max(initial=0)), 1e-6)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def convolve(x, kernel, bias, residual, *, stride, relu):
    if cpu_kernels.is_active(x, kernel):
        return cpu_kernels.convolution(
            x, kernel, stride=stride, bias=bias, residual=residual, relu=relu
        )
    pad = kernel.shape[0] // 2
    y = lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y = y if bias is None else y + bias[None, None, None]
    y = y if residual is None else y + residual
    return jax.nn.relu(y) if relu else y


def with_gradients(function):
    """Returns the outputs of a function, and its gradients for random gradients of the first output."""

    def run(*arguments):
        y, backward = jax.vjp(function, *arguments)
        first = jax.tree.leaves(y)[0]
        cotangent = jnp.cos(jnp.arange(first.size, dtype=jnp.float32)).reshape(first.shape)
        zeros = jax.tree.map(jnp.zeros_like, y)
        cotangents = (cotangent, *zeros[1:]) if isinstance(y, tuple) else cotangent
        return y, backward(cotangents)

    return run


# Images, height, width, inputs, outputs, size of the kernel, stride.
CONVOLUTIONS = [
    (2, 16, 16, 18, 18, 3, 1),  # branches of HRNet-W18
    (2, 8, 8, 36, 36, 3, 1),
    (2, 4, 4, 72, 72, 3, 1),
    (3, 2, 2, 144, 144, 3, 1),
    (2, 6, 12, 64, 64, 3, 1),
    (2, 32, 32, 3, 64, 3, 2),  # first layer
    (2, 16, 16, 18, 36, 3, 2),
    (2, 8, 8, 270, 270, 1, 1),  # head
    (1, 8, 8, 270, 68, 1, 1),
    (2, 16, 16, 3, 16, 7, 2),  # first layer of the hourglass
    (1, 1, 1, 5, 3, 3, 1),
    (1, 2, 3, 20, 23, 3, 2),
    (2, 5, 7, 33, 35, 3, 1),
    (1, 3, 1, 40, 31, 5, 1),
    (1, 9, 2, 17, 1, 1, 1),
    (0, 4, 4, 18, 18, 3, 1),
    (1, 4, 4, 0, 18, 3, 1),
    (1, 0, 4, 18, 18, 1, 1),
    (1, 2, 700, 20, 18, 3, 1),  # a row does not fit the cache
]


def convolution_arguments(shape):
    images, height, width, inputs, outputs, size, stride = shape
    out = [(n - 1) // stride + 1 for n in (height, width)]
    return random_arrays(
        (images, height, width, inputs),
        (size, size, inputs, outputs),
        (outputs,),
        (images, *out, outputs),
    )


def check_convolution(shape, prefix, *, has_bias, has_residual, relu):
    x, kernel, bias, residual = convolution_arguments(shape)

    def run(x, kernel, bias, residual):
        return convolve(x, kernel, bias, residual, stride=shape[-1], relu=relu)

    arguments = (x, kernel, bias if has_bias else None, residual if has_residual else None)
    assert_same(with_gradients(run), prefix, *arguments)


@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_convolution(kernels, shape):
    check_convolution(shape, kernels, has_bias=False, has_residual=False, relu=False)
    check_convolution(shape, kernels, has_bias=True, has_residual=True, relu=True)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_bias_residual_and_relu_are_independent(kernels, has_bias, has_residual, relu):
    shape = (2, 5, 6, 9, 18, 3, 1)
    check_convolution(shape, kernels, has_bias=has_bias, has_residual=has_residual, relu=relu)


def check_batch_norm(shape, prefix, *, has_residual, relu):
    channels = shape[-1]
    x, residual, scale, bias = random_arrays(shape, shape, (channels,), (channels,))
    shift = jnp.full((channels,), 0.5, jnp.float32)

    def run(x, scale, bias, residual):
        if cpu_kernels.is_active(x):
            return cpu_kernels.batch_norm(
                x, scale, bias, shift, residual, epsilon=EPSILON, relu=relu
            )
        averages, variances = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        normalized = (x - averages[None, None, None]) / jnp.sqrt(
            variances[None, None, None] + EPSILON
        )
        y = normalized * scale[None, None, None] + bias[None, None, None]
        y = y if residual is None else y + residual
        outputs = (jax.nn.relu(y) if relu else y, averages, variances)
        return outputs[0], *lax.stop_gradient(outputs[1:])

    assert_same(with_gradients(run), prefix, x, scale, bias, residual if has_residual else None)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 8, 8, 18),
        (2, 5, 7, 36),
        (1, 9, 9, 72),
        (2, 4, 4, 144),
        (1, 8, 8, 270),
        (3, 1, 1, 5),
        (2, 3, 3, 1),
        (4, 32, 32, 64),
    ],
    ids=str,
)
def test_batch_norm(kernels, shape):
    for has_residual, relu in itertools.product((False, True), repeat=2):
        check_batch_norm(shape, kernels, has_residual=has_residual, relu=relu)


def test_batch_norm_of_a_large_mean(kernels):
    """The variance is correct if the mean is far from 0, and the shift is near it."""
    (x,) = random_arrays((4, 16, 16, 18))
    x = x + 1000
    scale, bias, shift = (jnp.full((18,), value, jnp.float32) for value in (1, 0, 999))
    normalize = cpu_kernels.with_cpu_kernels(
        lambda x: cpu_kernels.batch_norm(x, scale, bias, shift, epsilon=EPSILON, relu=False),
        kernels,
    )
    y, mean, variance = jax.jit(normalize)(x)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=(0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(variance, exact.var(axis=(0, 1, 2)), rtol=1e-4)
    expected = (exact - exact.mean(axis=(0, 1, 2))) / exact.std(axis=(0, 1, 2))
    np.testing.assert_allclose(y, expected, atol=1e-3)


def check_upsampling(shape, size, prefix):
    (x,) = random_arrays(shape)
    assert_same(with_gradients(lambda x: upsample_bilinear(x, size)), prefix, x)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 8, 8, 144), (64, 64)),
        ((2, 16, 16, 72), (32, 32)),
        ((1, 1, 1, 5), (4, 4)),
        ((2, 3, 5, 18), (7, 13)),
        ((3, 2, 2, 1), (3, 2)),
    ],
    ids=str,
)
def test_upsampling(kernels, shape, size):
    check_upsampling(shape, size, kernels)


@pytest.mark.slow
def test_other_processors(other_processor):
    for shape in CONVOLUTIONS:
        for flags in itertools.product((False, True), repeat=3):
            has_bias, has_residual, relu = flags
            check_convolution(
                shape, other_processor, has_bias=has_bias, has_residual=has_residual, relu=relu
            )
    for shape in ((2, 8, 8, 18), (2, 5, 7, 36), (3, 1, 1, 5)):
        check_batch_norm(shape, other_processor, has_residual=True, relu=True)
    check_upsampling((2, 3, 5, 18), (7, 13), other_processor)


def test_nan_is_not_hidden(kernels):
    """A ReLU keeps a NaN, so that training and predictions can find it."""
    x, kernel, bias, residual = convolution_arguments((1, 8, 8, 18, 18, 3, 1))
    x = x.at[0, 3, 4, 5].set(jnp.nan)
    run = jax.jit(
        cpu_kernels.with_cpu_kernels(
            lambda *arrays: convolve(*arrays, stride=1, relu=True), kernels
        )
    )
    assert np.isnan(run(x, kernel, bias, residual)[0, 2:5, 3:6]).all()
    scale = jnp.ones((18,), jnp.float32)
    normalize = cpu_kernels.with_cpu_kernels(
        lambda x: cpu_kernels.batch_norm(x, scale, bias, bias, epsilon=EPSILON, relu=True), kernels
    )
    y, mean, _ = jax.jit(normalize)(x)
    assert np.isnan(y[..., 5]).all()
    assert np.isnan(mean[5])
    assert np.isfinite(mean[6])


def test_results_do_not_depend_on_the_order_of_threads(kernels):
    x, kernel, bias, residual = convolution_arguments((4, 32, 32, 18, 18, 3, 1))
    function = with_gradients(lambda *arrays: convolve(*arrays, stride=1, relu=True))
    compiled = jax.jit(cpu_kernels.with_cpu_kernels(function, kernels))
    first = jax.tree.leaves(compiled(x, kernel, bias, residual))
    for _ in range(20):
        for a, b in zip(first, jax.tree.leaves(compiled(x, kernel, bias, residual)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_values_that_are_not_finite_stay_in_their_window(kernels):
    """A narrow tile reads the next pixels, too."""
    x, kernel, _, _ = convolution_arguments((1, 8, 8, 18, 18, 3, 1))
    x = x.at[0, 3, 4, 0].set(jnp.inf)
    run = jax.jit(
        cpu_kernels.with_cpu_kernels(
            lambda x: convolve(x, kernel, None, None, stride=1, relu=False), kernels
        )
    )
    is_finite = np.isfinite(run(x)[0]).all(axis=-1)
    expected = np.ones((8, 8), bool)
    expected[2:5, 3:6] = False
    np.testing.assert_array_equal(is_finite, expected)


def test_gradient_of_a_compiled_function(kernels):
    """The gradient is traced after the function, and outside of it."""
    x, kernel, bias, _ = convolution_arguments((2, 8, 8, 18, 36, 3, 1))

    def loss(x):
        y = convolve(x, kernel, bias, None, stride=1, relu=True)
        if cpu_kernels.is_active(y):
            y, _, _ = cpu_kernels.batch_norm(y, bias, bias, bias, epsilon=EPSILON, relu=True)
        return upsample_bilinear(y, (16, 16)).sum()

    compiled = jax.jit(cpu_kernels.with_cpu_kernels(loss, kernels))
    inside = jax.jit(cpu_kernels.with_cpu_kernels(jax.grad(loss), kernels))
    np.testing.assert_allclose(jax.grad(compiled)(x), inside(x), atol=1e-4)


def test_vmap(kernels):
    (x,) = random_arrays((3, 2, 4, 4, 5))
    upsample = cpu_kernels.with_cpu_kernels(lambda x: upsample_bilinear(x, (8, 8)), kernels)
    expected = np.stack([jax.jit(upsample)(image) for image in x])
    np.testing.assert_array_equal(jax.jit(jax.vmap(upsample))(x), expected)


@pytest.mark.parametrize("wrong", ["kernel", "bias", "residual", "scale"])
def test_shapes_are_checked(kernels, without_type_checks, wrong):
    x, kernel, bias, residual = convolution_arguments((2, 8, 8, 5, 7, 3, 1))
    if wrong == "kernel":
        kernel = kernel[:, :, :3]
    if wrong == "residual":
        residual = residual[:1]
    short = bias[:3] if wrong in ("bias", "scale") else bias

    def run(x):
        if wrong == "scale":
            return cpu_kernels.batch_norm(x, short, short, short, epsilon=EPSILON, relu=False)
        return convolve(x, kernel, short, residual, stride=1, relu=False)

    with pytest.raises(jax.errors.JaxRuntimeError, match="shapes of the arrays do not fit"):
        jax.block_until_ready(jax.jit(cpu_kernels.with_cpu_kernels(run, kernels))(x))


def test_shapes_of_a_kernel_gradient_are_checked(kernels, without_type_checks):
    """XLA leaves out the convolution, which checks them too, because its output is not used."""

    def loss(kernel):
        return cpu_kernels.convolution(jnp.ones((1, 8, 8, 4)), kernel, stride=1).sum()

    gradient = jax.jit(cpu_kernels.with_cpu_kernels(jax.grad(loss), kernels))
    with pytest.raises(jax.errors.JaxRuntimeError, match="shapes of the arrays do not fit"):
        jax.block_until_ready(gradient(jnp.ones((3, 1, 4, 4))))


def test_cost_includes_the_kernels(kernels):
    x, kernel, bias, residual = convolution_arguments((2, 16, 16, 18, 36, 3, 1))
    function = with_gradients(lambda *arrays: convolve(*arrays, stride=1, relu=False))
    traced = cpu_kernels.with_cpu_kernels(function, kernels)
    cost = Cost.of(jax.jit(traced).lower(x, kernel, bias, residual).compile())
    assert cost.flops == pytest.approx(3 * 2 * 2 * 16 * 16 * 36 * 9 * 18, rel=0.02)
    assert cost.bytes > 3 * (x.nbytes + residual.nbytes)


@pytest.mark.slow
def test_many_threads(kernel_cache):
    """All tests of the operations pass with another number of threads of XLA."""
    words = ["-m", "pytest", __file__, "-q", "-p", "no:cacheprovider", "-k"]
    result = subprocess.run(
        [sys.executable, *words, "test_convolution or test_batch_norm or test_upsampling"],
        env=os.environ | {"NPROC": "19"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout

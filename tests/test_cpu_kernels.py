"""Tests of `cpu_kernels`: the same values and gradients as XLA's operations, and when they are used."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from lcgcn_jax import cpu_kernels
from lcgcn_jax.cpu_kernels import library
from lcgcn_jax.inference.programs import Programs
from lcgcn_jax.models.bundles import load_bundle
from lcgcn_jax.models.layers import upsample_bilinear
from lcgcn_jax.models.registry import create_model
from lcgcn_jax.models.weights import batch_stats_of, merge_weights, split_weights
from lcgcn_jax.profiling.roofline import Cost
from lcgcn_jax.training import sharding

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or library._compiler() is None,
    reason="the kernels need Linux and a C++ compiler",
)

EPSILON = 1e-5
TOLERANCE = 3e-5  # of the largest value


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    """Folder with a library of the kernels, apart from JAX's cache, which other tests use."""
    folder = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.SWITCH, "true")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        assert library.load_library(build=True)
    return folder


@pytest.fixture
def kernels(cache_folder, monkeypatch):
    """Name of the library."""
    monkeypatch.setenv(library.SWITCH, "true")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache_folder))
    return library.load_library(build=False)


@pytest.fixture(scope="module", params=["-march=native", "-march=x86-64-v3", "-march=x86-64"])
def other_processor(request, tmp_path_factory):
    """Name of a library for other instructions, which this processor has too."""
    options = [request.param if o.startswith("-march") else o for o in library._OPTIONS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.SWITCH, "true")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        patch.setattr(library, "_OPTIONS", tuple(options))
        library._key.cache_clear()
        name = library.load_library(build=True)
    library._key.cache_clear()
    return name


def random_arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def run_both(function, name, *arguments):
    """Arrays that a function returns with XLA's operations and with the kernels."""
    results = []
    for library_name in (None, name):
        traced = cpu_kernels.with_cpu_kernels(function, library_name)
        compiled = jax.jit(traced).lower(*arguments).compile()
        assert (f'custom_call_target="{name}' in compiled.as_text()) == (library_name is not None)
        results.append(jax.tree.leaves(compiled(*arguments)))
    return results


def assert_same(function, name, *arguments, tolerance=TOLERANCE):
    for expected, actual in zip(*run_both(function, name, *arguments), strict=True):
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


def check_convolution(shape, name, *, has_bias, has_residual, relu):
    x, kernel, bias, residual = convolution_arguments(shape)

    def run(x, kernel, bias, residual):
        return convolve(x, kernel, bias, residual, stride=shape[-1], relu=relu)

    arguments = (x, kernel, bias if has_bias else None, residual if has_residual else None)
    assert_same(with_gradients(run), name, *arguments)


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


def check_batch_norm(shape, name, *, has_residual, relu):
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

    assert_same(with_gradients(run), name, x, scale, bias, residual if has_residual else None)


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


def check_upsampling(shape, size, name):
    (x,) = random_arrays(shape)
    assert_same(with_gradients(lambda x: upsample_bilinear(x, size)), name, x)


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


@pytest.mark.parametrize(
    ("heatmap", "size", "tolerance"),
    [
        ({"name": "hrnet", "arch": "w18-small-v1"}, 64, TOLERANCE),
        # Batch normalization of few values per channel, at the lowest resolution, amplifies rounding errors.
        ({"name": "hourglass"}, 128, 10 * TOLERANCE),
    ],
)
def test_models_in_training(kernels, heatmap, size, tolerance):
    model = {"heatmap": heatmap, "decode": "argmax", "graph": None, "bn_momentum": 0.9}
    graphdef, params, batch_stats = split_weights(create_model(model, 5, rngs=nnx.Rngs(0)))
    (images,) = random_arrays((2, size, size, 3))

    def run(params, batch_stats, images):
        merged = merge_weights(graphdef, params, batch_stats)
        logits, features = merged.heatmap_model(images, train=True)
        return logits, features, batch_stats_of(merged)

    assert_same(run, kernels, params, batch_stats, images, tolerance=tolerance)


def test_predictions(kernels):
    bundle = load_bundle("w300-lcgcn-small")
    crops = np.random.default_rng(0).integers(0, 256, (2, 192, 192, 3), np.uint8)
    programs = Programs(bundle)
    assert programs._kernels == kernels
    actual = programs.predict(crops)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.SWITCH, "0")
        other = Programs(bundle)
        assert other._kernels is None
        expected = other.predict(crops)
    assert other._key(1) != programs._key(1), "a program with kernels has another file"
    np.testing.assert_allclose(actual.landmarks, expected.landmarks, atol=1e-3)


def test_cost_includes_the_kernels(kernels):
    x, kernel, bias, residual = convolution_arguments((2, 16, 16, 18, 36, 3, 1))
    function = with_gradients(lambda *arrays: convolve(*arrays, stride=1, relu=False))
    traced = cpu_kernels.with_cpu_kernels(function, kernels)
    cost = Cost.of(jax.jit(traced).lower(x, kernel, bias, residual).compile())
    assert cost.flops == pytest.approx(3 * 2 * 2 * 16 * 16 * 36 * 9 * 18, rel=0.02)
    assert cost.bytes > 3 * (x.nbytes + residual.nbytes)


def test_only_programs_for_one_cpu_use_them(kernels):
    def uses_them(mesh):
        step = sharding.compile_predict_step(
            lambda params, stats, x: jnp.float32(cpu_kernels.is_active(x)) + x, mesh
        )
        return bool(step({}, {}, jnp.zeros((8, 1), jnp.float32)).all())

    assert uses_them(sharding.make_mesh(1))
    assert not uses_them(sharding.make_mesh(8))
    assert sharding.is_one_cpu(sharding.make_mesh(1))


def test_other_types_use_xla(kernels):
    x, kernel, *_ = convolution_arguments((1, 4, 4, 3, 3, 3, 1))
    active = cpu_kernels.with_cpu_kernels(cpu_kernels.is_active, kernels)
    assert active(x, kernel)
    assert not active(x, kernel.astype(jnp.bfloat16))
    assert not cpu_kernels.is_active(x)


# ------------------------------------------- Library --------------------------------------------


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """An empty cache folder, and no registered library."""
    monkeypatch.setenv(library.SWITCH, "true")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(library, "_PREFIXES", {})
    return tmp_path / "lcgcn_jax"


def test_library_is_compiled_once(cache_folder, kernels, monkeypatch):
    monkeypatch.setattr(library, "_PREFIXES", {})
    monkeypatch.setattr(library, "_compile", lambda *_: pytest.fail("compiled again"))
    assert library.load_library(build=True) == kernels
    (file,) = (cache_folder / "lcgcn_jax").glob("*.so")
    assert file.stem.partition("-")[0] in kernels


@pytest.mark.parametrize("value", ["0", "false", "False"])
def test_variable_disables_them(empty_cache, monkeypatch, value):
    monkeypatch.setenv(library.SWITCH, value)
    monkeypatch.setattr(library, "_compiler", lambda: None)
    assert library.load_library(build=True) is None
    assert library.compiler_advice() == ""


def test_predictions_do_not_compile_them(empty_cache, monkeypatch):
    monkeypatch.setattr(library, "_compile", lambda *_: pytest.fail("compiled"))
    assert library.load_library(build=False) is None
    assert not empty_cache.exists()


def test_without_a_compiler_xla_is_used(empty_cache, monkeypatch):
    assert library.compiler_advice() == ""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert library.load_library(build=True) is None
    assert "install g++" in library.compiler_advice()


@pytest.mark.parametrize(
    "compiler", ["false", "no-such-compiler", "sh -c 'echo failed >&2; exit 3' --"]
)
def test_compiler_that_fails(empty_cache, monkeypatch, caplog, compiler):
    caplog.set_level("INFO", "lcgcn_jax")
    monkeypatch.setenv("CXX", compiler)
    assert library.load_library(build=True) is None
    assert "cannot be compiled" in caplog.text
    assert list(empty_cache.iterdir()) == []


def test_folder_without_permission(empty_cache, monkeypatch, caplog):
    caplog.set_level("INFO", "lcgcn_jax")
    empty_cache.write_text("a file")
    assert library.load_library(build=True) is None
    assert "cannot be" in caplog.text


def test_damaged_library_is_not_used(cache_folder, kernels, empty_cache):
    empty_cache.mkdir()
    (file,) = (cache_folder / "lcgcn_jax").glob("*.so")
    (empty_cache / file.name).write_bytes(file.read_bytes()[:1000])
    assert library.load_library(build=False) is None


def test_library_of_another_user_is_not_loaded(cache_folder, kernels, monkeypatch):
    monkeypatch.setattr(library, "_PREFIXES", {})
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert library.load_library(build=False) is None


# ------------------------------------------- Training -------------------------------------------


@dataclasses.dataclass
class Run:
    """A finished training run."""

    workdir: Path
    output: str

    @property
    def metrics(self):
        lines = (self.workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def train(workdir, data, steps, *, switch, cache):
    variables = {
        library.SWITCH: switch,
        "XLA_FLAGS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
    options = [
        "--config.data.image_size=64",
        f"--config.data.dir={data}",
        "--config.train.batch_size=4",
        f"--config.train.steps={steps}",
        "--config.train.eval_every=4",
        "--config.train.checkpoint_every=4",
        "--config.train.log_every=1",
    ]
    words = ["train", "--config", "w300_lcgcn:small", "--workdir", str(workdir), *options]
    result = subprocess.run(
        [sys.executable, "-m", "lcgcn_jax", *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    return Run(workdir, result.stdout + result.stderr)


@pytest.mark.slow
def test_many_threads(cache_folder):
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


@pytest.mark.slow
def test_training_run(synthetic68, cache_folder, tmp_path):
    """The same losses as with XLA's operations, and a run can change between both."""
    plain = train(tmp_path / "plain", synthetic68, 8, switch="false", cache=tmp_path / "jit")
    train(tmp_path / "mixed", synthetic68, 4, switch="false", cache=tmp_path / "jit")
    mixed = train(tmp_path / "mixed", synthetic68, 8, switch="true", cache=cache_folder)
    assert "resuming from step 4" in mixed.output
    expected, actual = (
        [m["train/loss"] for m in run.metrics if "train/loss" in m] for run in (plain, mixed)
    )
    assert len(expected) == len(actual) == 8
    np.testing.assert_allclose(actual, expected, rtol=2e-2)
    assert not list((tmp_path / "jit").glob("lcgcn_jax/*.so"))

"""Compiler options: they do not change the results of training and prediction."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lcgcn_jax.compilation import compiler_options, inference_options
from lcgcn_jax.models.config import GraphConfig
from lcgcn_jax.training.config_types import Config, DataConfig, ModelConfig, TrainConfig
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.steps import make_inference_step
from lcgcn_jax.training.train_step import build_train_step, init_weights

pytestmark = pytest.mark.usefixtures("full_optimization")
SIZE, BATCH, K = 128, 2, 68  # large enough for YNNPACK, which XLA does not use for small arrays
MODELS = {
    "toy": {"heatmap": {"name": "toy", "width": 16}, "graph": None},
    "hrnet": {
        "heatmap": {"name": "hrnet", "arch": "tiny"},
        "graph": GraphConfig(embedding_widths=(8, 4)),
    },
}
FIRST_LAYERS = {
    "toy": ("heatmap_model.first.conv.kernel", "heatmap_model.first.bn.bias"),
    "hrnet": ("heatmap_model.stem1.conv.kernel", "heatmap_model.stem2.bn.bias"),
}
in_each = pytest.mark.parametrize("name", ["toy", pytest.param("hrnet", marks=pytest.mark.slow)])


@functools.cache
def training_of(name):
    """Graph definition, training step with gradient descent, state and batch of a model."""
    options = MODELS[name]
    config = Config(
        data=DataConfig(image_size=SIZE),
        model=ModelConfig(**options),
        train=TrainConfig(mode="joint" if options["graph"] else "heatmap_only", batch_size=BATCH),
    )
    # SGD updates by the gradient itself; Adam would hide its magnitude.
    step = build_train_step(config, K, make_mesh(1), optimizer=optax.sgd(1.0))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        "landmarks": rng.uniform(16, 112, (BATCH, K, 2)).astype(np.float32),
        "visible": rng.random((BATCH, K)) < 0.9,
    }
    state = step.init_state(*init_weights(config, K))
    return step.model.graphdef, step.function, state, batch


@functools.cache
def compiled_step(name: str, with_options: bool) -> jax.stages.Compiled:
    _, step, state, batch = training_of(name)
    return compile_with(with_options, step, state, batch)


def compile_with(with_options: bool, function, *arguments) -> jax.stages.Compiled:
    options = compiler_options() if with_options else {}
    return compile_for(options, function, *arguments)


def compile_for(options, function, *arguments) -> jax.stages.Compiled:
    return jax.jit(function, compiler_options=options).lower(*arguments).compile()


def uses_ynnpack(program: jax.stages.Compiled) -> bool:
    """Whether YNNPACK runs a ReLU: a maximum in one of its fusions."""
    text = program.as_text()
    names = re.findall(r'calls=%(\S+?),.*"__ynn_fusion"', text)
    bodies = dict(re.findall(r"^%(\S+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    return any(" maximum(" in bodies[name] for name in names)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_options_are_only_for_cpus(platform):
    assert compiler_options(platform) == {}
    assert compiler_options() == compiler_options("cpu") != {}


def test_xla_flags_take_precedence(monkeypatch):
    (option,) = compiler_options("cpu")
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_enable_fast_math=false --{option}=")
    assert compiler_options("cpu") == {}


@pytest.mark.slow
@in_each
def test_training_step_does_not_depend_on_options(toy, name):
    state, batch = training_of(name)[2:]
    plain, ours = compiled_step(name, False), compiled_step(name, True)
    assert uses_ynnpack(ours)
    assert not uses_ynnpack(plain)
    (expected, plain_scalars), (actual, scalars) = plain(state, batch), ours(state, batch)
    for name, value in plain_scalars.items():
        # Gradients through BatchNorm over 2 x 2 pixels amplify rounding errors; 1e-4 occurs.
        np.testing.assert_allclose(scalars[name], value, rtol=5e-4, err_msg=name)
    for weight, start in state.params.items():
        update = np.asarray(actual.params[weight] - start)
        expected_update = np.asarray(expected.params[weight] - start)
        # The norm of all values, since rounding can open or close a ReLU whose input is almost 0, which
        # changes single values by percents, and BatchNorm over few pixels distributes the change. 1 % occurs.
        difference = np.linalg.norm(update - expected_update)
        assert difference <= 2e-2 * np.linalg.norm(expected_update) + 1e-6, weight
    for statistic, value in expected.batch_stats.items():
        np.testing.assert_allclose(
            actual.batch_stats[statistic], value, rtol=1e-3, atol=1e-5, err_msg=statistic
        )


@in_each
def test_predictions_do_not_depend_on_options(toy, name):
    graphdef, _, state, batch = training_of(name)
    arguments = (
        make_inference_step(graphdef, "predict"),
        state.params,
        state.batch_stats,
        batch["image"],
    )
    plain, ours = (compile_for(options, *arguments) for options in ({}, inference_options()))
    assert uses_ynnpack(ours)
    assert not uses_ynnpack(plain)
    expected, actual = plain(*arguments[1:]), ours(*arguments[1:])
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@in_each
def test_norms_show_a_nan_that_the_loss_hides(toy, name):
    """`Trainer` checks these norms, see `compiler_options`."""
    state, batch = training_of(name)[2:]
    step = compiled_step(name, True)
    num_hidden = 0
    for weight in FIRST_LAYERS[name]:
        value = state.params[weight].at[(0,) * state.params[weight].ndim].set(jnp.nan)
        nan_state = dataclasses.replace(state, params=state.params | {weight: value})
        _, scalars = step(nan_state, batch)
        num_hidden += np.isfinite(scalars["loss"])
        assert not np.isfinite(scalars["parameter_norm"])
    assert num_hidden, "the loss shows every NaN, so checking the norms is not needed"

"""XLA's options change how fast a step is, and not what it computes."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.training.config_types import Config, DataConfig, ModelConfig, TrainConfig
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.steps import make_predict_step
from lcgcn_jax.training.train_step import build_train_step, init_weights

SIZE, BATCH, K = 128, 2, 68  # large enough for the library, which small arrays do not go to
MODELS = {
    "toy": {"heatmap": {"name": "toy", "width": 16}, "graph": None},
    "hrnet": {"heatmap": {"name": "hrnet", "arch": "w18-small-v1"}},
}
FIRST_LAYERS = {
    "toy": ("heatmap_model.first.conv.kernel", "heatmap_model.first.bn.bias"),
    "hrnet": ("heatmap_model.stem1.conv.kernel", "heatmap_model.stem2.bn.bias"),
}
in_each = pytest.mark.parametrize("name", ["toy", pytest.param("hrnet", marks=pytest.mark.slow)])


@functools.cache
def made(name):
    """Training of a heatmap model, with its graph if any, by plain gradient descent: step, state, batch."""
    options = MODELS[name]
    config = Config(
        data=DataConfig(image_size=SIZE),
        model=ModelConfig(**options),
        train=TrainConfig(mode="heatmap_only" if "graph" in options else "joint", batch_size=BATCH),
    )
    # Plain gradient descent, so that parameters move by their gradients; Adam would hide their size.
    step = build_train_step(config, K, make_mesh(1), optimizer=optax.sgd(1.0))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        "landmarks": rng.uniform(16, 112, (BATCH, K, 2)).astype(np.float32),
        "visible": rng.random((BATCH, K)) < 0.9,
    }
    state = step.init_state(*init_weights(config, K))
    return step.graphdef, step.function, state, batch


@functools.cache
def compiled_step(name: str, with_options: bool) -> jax.stages.Compiled:
    _, step, state, batch = made(name)
    return compile_by(with_options, step, state, batch)


def compile_by(with_options: bool, function, *arguments) -> jax.stages.Compiled:
    options = compiler_options() if with_options else {}
    return jax.jit(function, compiler_options=options).lower(*arguments).compile()


def goes_to_the_library(program: jax.stages.Compiled) -> bool:
    """Whether a ReLU does: a maximum within a fusion that is the library's, not XLA's own."""
    text = program.as_text()
    names = re.findall(r'calls=%(\S+?),.*"__ynn_fusion"', text)
    bodies = dict(re.findall(r"^%(\S+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    return any(" maximum(" in bodies[name] for name in names)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_only_a_cpu_gets_options(platform):
    assert compiler_options(platform) == {}
    assert compiler_options() == compiler_options("cpu") != {}


def test_what_a_user_sets_stays(monkeypatch):
    (option,) = compiler_options("cpu")
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_enable_fast_math=false --{option}=")
    assert compiler_options("cpu") == {}


@pytest.mark.slow
@in_each
def test_the_training_step_is_the_same(toy, name):
    state, batch = made(name)[2:]
    plain, ours = compiled_step(name, False), compiled_step(name, True)
    assert goes_to_the_library(ours)
    assert not goes_to_the_library(plain)
    (expected, figures), (found, ours) = plain(state, batch), ours(state, batch)
    for figure, value in figures.items():
        np.testing.assert_allclose(ours[figure], value, rtol=1e-4, err_msg=figure)
    for weight, start in state.params.items():
        moved = np.asarray(found.params[weight] - start)
        wanted = np.asarray(expected.params[weight] - start)
        # As a whole, since rounding may open or close a ReLU whose input is nearly 0, which changes a few
        # numbers by percents; BatchNorm over a few cells spreads it. 1 % has been seen.
        difference = np.linalg.norm(moved - wanted)
        assert difference <= 2e-2 * np.linalg.norm(wanted) + 1e-6, weight
    for statistic, value in expected.batch_stats.items():
        np.testing.assert_allclose(
            found.batch_stats[statistic], value, rtol=1e-3, atol=1e-5, err_msg=statistic
        )


@in_each
def test_predictions_are_the_same(toy, name):
    graphdef, _, state, batch = made(name)
    arguments = (make_predict_step(graphdef), state.params, state.batch_stats, batch["image"])
    plain, ours = (compile_by(options, *arguments) for options in (False, True))
    assert goes_to_the_library(ours)
    assert not goes_to_the_library(plain)
    expected, found = plain(*arguments[1:]), ours(*arguments[1:])
    for want, have in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-3, atol=1e-3)


@in_each
def test_a_nan_that_the_loss_does_not_show_is_seen(toy, name):
    """By the norms that `Trainer` looks at; see `compiler_options`."""
    state, batch = made(name)[2:]
    step = compiled_step(name, True)
    hidden = 0
    for weight in FIRST_LAYERS[name]:
        wrong = state.params[weight].at[(0,) * state.params[weight].ndim].set(jnp.nan)
        wrong = dataclasses.replace(state, params=state.params | {weight: wrong})
        _, figures = step(wrong, batch)
        hidden += np.isfinite(figures["loss"])
        assert not np.isfinite(figures["parameter_norm"])
    assert hidden, "the loss shows them all: the loop need look at nothing else"

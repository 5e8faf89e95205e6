import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lcgcn_jax import losses
from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.errors import InputError
from lcgcn_jax.heatmaps import encode
from lcgcn_jax.models.config import HourglassConfig
from lcgcn_jax.models.hourglass import StackedHourglass, _double, _halve
from lcgcn_jax.models.layers import PRIOR_BIAS, make_rngs
from lcgcn_jax.models.registry import create_model
from lcgcn_jax.models.weights import batch_stats_of, merge_weights, split_weights

K = 5
CONFIG = {
    "heatmap": {"name": "hourglass", "stacks": 2, "width": 16},
    "decode": "soft",
    "graph": {"embedding_widths": (8, 4), "sampling": "bilinear"},
    "bn_momentum": 0.9,
}


def make(num_landmarks=K, *, dtype=jnp.float32, **options):
    return StackedHourglass(
        HourglassConfig(**options), num_landmarks, dtype=dtype, rngs=make_rngs(0)
    )


@pytest.mark.parametrize(("stacks", "side"), [(1, 72), (2, 64), (2, 128)])
def test_heatmaps_and_features_have_stride_4(side, stacks):
    def run():
        model = make(stacks=stacks, width=16)
        return model(jnp.zeros((2, side, side + 32, 3)), train=False)

    logits, features = nnx.eval_shape(run)
    assert logits.shape == (2, side // 4, side // 4 + 8, K)
    assert features.shape == (2, side // 4, side // 4 + 8, 16)


def num_parameters(stacks, width):
    model = nnx.eval_shape(lambda: make(68, stacks=stacks, width=width))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.slow
def test_number_of_parameters_is_that_of_the_paper():
    # The public model with 8 stacks of width 256 has about 25.6 million, 3.2 million per stack.
    assert num_parameters(8, 256) == pytest.approx(25.6e6, rel=0.05)


def test_outputs_are_bfloat16():
    def run():
        model = make(width=16, dtype=jnp.bfloat16)
        return model(jnp.zeros((1, 64, 64, 3)), train=True)

    logits, features = nnx.eval_shape(run)
    assert logits.dtype == features.dtype == jnp.bfloat16


@pytest.mark.parametrize("side", [6, 7])
def test_pooling_and_upsampling_keep_maxima_in_place(side):
    x = np.random.default_rng(0).normal(size=(1, side, side, 2)).astype(np.float32)
    halved = np.asarray(_halve(jnp.asarray(x)))
    doubled = np.asarray(_double(jnp.asarray(halved), (side, side)))
    assert doubled.shape == x.shape
    for row in range(side):
        for column in range(side):
            y0, x0 = row // 2 * 2, column // 2 * 2
            window = x[0, y0 : y0 + 2, x0 : x0 + 2]
            np.testing.assert_array_equal(doubled[0, row, column], window.max(axis=(0, 1)))


@pytest.mark.slow
def test_hourglass_trains_with_the_graph():
    """By name in a config, with logits for the loss and features for the graph."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 64, 64, 3)), jnp.float32)
    points = jnp.asarray(rng.uniform(2, 13, (2, K, 2)), jnp.float32)
    targets, visible = encode(points, (16, 16), sigma=1.5), jnp.ones((2, K), bool)
    graphdef, params, batch_stats = split_weights(create_model(CONFIG, K, rngs=nnx.Rngs(0)))

    optimizer = optax.adam(3e-3)
    opt_state = optimizer.init(params)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def step(params, batch_stats, opt_state):
        def loss_of(params):
            model = merge_weights(graphdef, params, batch_stats)
            output = model(images, train_heatmap=True, train_graph=True)
            loss = losses.focal(output.heatmap_logits, targets, visible)
            loss += losses.l1(output.landmarks / 64, (4 * points + 1.5) / 64, visible)
            return loss, batch_stats_of(model)

        (loss, batch_stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types in its arithmetic
            updates, opt_state = optimizer.update(gradient, opt_state, params)
        return loss, gradient, optax.apply_updates(params, updates), batch_stats, opt_state

    history = []
    for _ in range(12):
        loss, gradient, params, batch_stats, opt_state = step(params, batch_stats, opt_state)
        history.append(float(loss))
    assert np.isfinite(history).all()
    assert history[-1] < 0.9 * history[0], history
    # Every stack receives a gradient.
    trained = {n for n, g in gradient.items() if np.asarray(g).any()}
    for stack in (0, 1):
        assert any(n.startswith(f"heatmap_model.hourglasses.{stack}.") for n in trained)


def test_initial_bias_is_the_prior_or_0():
    for activation, bias in (("sigmoid", PRIOR_BIAS), ("linear", 0.0)):
        model = make(stacks=1, width=4, activation=activation)
        assert (model.outs[0].bias[...] == bias).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stacks": 0}, "stacks: got 0; expected a whole number from 1 to 64"),
        ({"width": 15}, "width: got 15; expected a multiple of 2"),
        ({"activation": "tanh"}, "got 'tanh'; expected one of sigmoid, linear"),
        ({"arch": "w18"}, "unknown field 'arch'"),
    ],
)
def test_invalid_options_are_an_error(options, message):
    heatmap = CONFIG["heatmap"] | options
    with pytest.raises(InputError, match=message):
        create_model(CONFIG | {"heatmap": heatmap}, K, rngs=nnx.Rngs(0))

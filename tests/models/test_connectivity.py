import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax.fields import constraints_of
from lcgcn_jax.models.config import GraphConfig
from lcgcn_jax.models.connectivity import FixedEdges, PerImageEdges, StaticEdges, all_pairs

KINDS = constraints_of(GraphConfig)["connectivity"].choices

B, K = 3, 5
RNG = np.random.default_rng(0)
CONFIDENCE = jnp.asarray(RNG.uniform(0, 1, (B, K)), jnp.float32)


def randomize(module):
    """Set all parameters to random values, since biases that start at 0 would hide errors."""
    rng = np.random.default_rng(1)  # a new generator, so that tests do not depend on each other
    for _, param in nnx.iter_graph(module):
        if isinstance(param, nnx.Param):
            param.set_value(jnp.asarray(rng.normal(size=param.shape), jnp.float32))
    return module


def run(edges, confidence, *, train):
    """Edges, compiled as one program."""
    return nnx.jit(functools.partial(type(edges).__call__, train=train))(edges, confidence)


def make(kind, diagonal="learned", norm="none"):
    if kind == "learned_per_image":
        widths = {"class_widths": (6, 3), "edge_widths": (4,)}
        edges = PerImageEdges(
            K, **widths, diagonal=diagonal, norm=norm, bn_momentum=0.9, rngs=nnx.Rngs(0)
        )
    else:
        edges = StaticEdges(K) if kind == "learned_static" else FixedEdges(K, kind)
    return randomize(edges)


@pytest.mark.parametrize("kind", KINDS)
def test_incoming_edge_weights_sum_to_1(kind):
    edges = run(make(kind), CONFIDENCE, train=False)
    assert edges.shape == (B, K, K)
    assert (np.asarray(edges) >= 0).all()
    np.testing.assert_allclose(edges.sum(axis=-1), np.ones((B, K)), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_only_per_image_edges_depend_on_confidences(kind):
    edges = make(kind)
    first, second = (run(edges, c, train=False) for c in (CONFIDENCE, CONFIDENCE[::-1]))
    assert np.allclose(first, second, atol=1e-3) == (kind != "learned_per_image")


def test_edges_do_not_depend_on_other_images():
    edges = make("learned_per_image")
    batch, single = run(edges, CONFIDENCE, train=False), run(edges, CONFIDENCE[1:2], train=False)
    np.testing.assert_allclose(batch[1:2], single, rtol=1e-5)


def test_static_edges_are_the_softmax_of_their_matrix():
    edges = make("learned_static")
    exp = np.exp(np.asarray(edges.logits[...], np.float64))
    expected = exp / exp.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(run(edges, CONFIDENCE, train=True)[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"), [("uniform", np.full((K, K), 1 / K)), ("self_only", np.eye(K))]
)
def test_fixed_edges_are_constant(kind, expected):
    for edges in run(make(kind), CONFIDENCE, train=False):
        np.testing.assert_allclose(edges, expected, rtol=1e-6)


def test_all_pairs_has_f_of_i_and_j_at_row_i_and_column_j():
    x, y = jnp.arange(3.0)[:, None], jnp.array([10.0, 20.0, 50.0])[:, None]
    table = all_pairs(lambda a, b: a - 2 * b)(x, y)
    assert table.shape == (3, 3, 1)
    assert [[table[i, j, 0] for j in range(3)] for i in range(3)] == [
        [x[i, 0] - 2 * y[j, 0] for j in range(3)] for i in range(3)
    ]


def reference_mlp(mlp, x):
    *hidden, last = mlp.linears
    for linear in hidden:
        x = np.maximum(x @ np.float64(linear.kernel[...]) + np.float64(linear.bias[...]), 0)
    return x @ np.float64(last.kernel[...]) + np.float64(last.bias[...])


@pytest.mark.parametrize("diagonal", constraints_of(GraphConfig)["diagonal"].choices)
def test_per_image_edges_match_the_equation(diagonal):
    edges = make("learned_per_image", diagonal)
    one_hot, confidence = np.eye(K), np.float64(CONFIDENCE)
    expected = np.zeros((B, K, K))
    for image, i in np.ndindex(B, K):
        logits = np.zeros(K)
        for j in range(K):
            if i == j and diagonal == "zero":
                continue
            classes = reference_mlp(edges.class_mlp, np.concatenate([one_hot[i], one_hot[j]]))
            pair = np.concatenate(
                [[confidence[image, i], confidence[image, j]], np.maximum(classes, 0)]
            )
            logits[j] = reference_mlp(edges.edge_mlp, pair)[0]
        expected[image, i] = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(run(edges, CONFIDENCE, train=True), expected, rtol=1e-4)


def test_zero_diagonal_does_not_change_the_ratios_of_other_weights():
    edges = make("learned_per_image", "zero")
    with_diagonal = make("learned_per_image", "learned")
    nnx.update(with_diagonal, nnx.state(edges))
    zero, learned = run(edges, CONFIDENCE, train=False), run(with_diagonal, CONFIDENCE, train=False)
    off = ~np.eye(K, dtype=bool)
    # The ratios of the other weights are equal, since only one logit of each row differs.
    for a, b in zip(np.asarray(zero), np.asarray(learned), strict=True):
        rows_a, rows_b = (e[off].reshape(K, K - 1) for e in (a, b))
        np.testing.assert_allclose(
            rows_a / rows_a.sum(axis=1, keepdims=True),
            rows_b / rows_b.sum(axis=1, keepdims=True),
            rtol=1e-4,
        )
    assert not np.allclose(zero, learned, atol=1e-3)


def test_batch_norm_of_classes_does_not_depend_on_the_batch_size():
    edges = make("learned_per_image", norm="batch")
    run(edges, CONFIDENCE, train=True)
    single = make("learned_per_image", norm="batch")
    nnx.update(single, nnx.state(edges, nnx.Param))
    run(single, CONFIDENCE[:1], train=True)
    means = [module.class_mlp.norms[0].mean[...] for module in (edges, single)]
    np.testing.assert_allclose(*means, rtol=1e-6)


def test_all_edge_parameters_have_a_gradient():
    graphdef, params = nnx.split(make("learned_per_image"))

    def first_column(params):
        return nnx.merge(graphdef, params)(CONFIDENCE, train=True)[..., 0].sum()

    gradients = jax.tree.leaves(jax.jit(jax.grad(first_column))(params))
    # A constant that is added to all logits of a row has no effect, so the last bias has no gradient.
    assert sum(not np.allclose(g, 0, atol=1e-6) for g in gradients) == len(gradients) - 1

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax.models.connectivity import (
    DIAGONALS,
    KINDS,
    FixedEdges,
    PerImageEdges,
    StaticEdges,
    all_pairs,
)

B, K = 3, 5
RNG = np.random.default_rng(0)
CONFIDENCE = jnp.asarray(RNG.uniform(0, 1, (B, K)), jnp.float32)


def randomize(module):
    """Random parameters: most biases start at 0 and would hide mistakes."""
    rng = np.random.default_rng(1)  # its own, so that no test's weights hang on the tests before it
    for _, param in nnx.iter_graph(module):
        if isinstance(param, nnx.Param):
            param.set_value(jnp.asarray(rng.normal(size=param.shape), jnp.float32))
    return module


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
def test_what_reaches_a_node_sums_to_1(kind):
    edges = make(kind)(CONFIDENCE, train=False)
    assert edges.shape == (B, K, K)
    assert (np.asarray(edges) >= 0).all()
    np.testing.assert_allclose(edges.sum(axis=-1), np.ones((B, K)), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_only_per_image_edges_see_the_confidences(kind):
    edges = make(kind)
    first, second = (edges(c, train=False) for c in (CONFIDENCE, CONFIDENCE[::-1]))
    assert np.allclose(first, second, atol=1e-3) == (kind != "learned_per_image")


def test_edges_of_an_image_are_its_own():
    edges = make("learned_per_image")
    together, alone = edges(CONFIDENCE, train=False), edges(CONFIDENCE[1:2], train=False)
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-5)


def test_static_edges_are_the_softmax_of_their_matrix():
    edges = make("learned_static")
    exp = np.exp(np.asarray(edges.logits[...], np.float64))
    expected = exp / exp.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(edges(CONFIDENCE, train=True)[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"), [("uniform", np.full((K, K), 1 / K)), ("self_only", np.eye(K))]
)
def test_fixed_edges(kind, expected):
    for edges in make(kind)(CONFIDENCE, train=False):
        np.testing.assert_allclose(edges, expected, rtol=1e-6)


def test_all_pairs_has_f_of_i_and_j_at_row_i_and_column_j():
    x, y = jnp.arange(3.0)[:, None], jnp.array([10.0, 20.0, 50.0])[:, None]
    table = all_pairs(lambda a, b: a - 2 * b)(x, y)
    assert table.shape == (3, 3, 1)
    assert [[table[i, j, 0] for j in range(3)] for i in range(3)] == [
        [x[i, 0] - 2 * y[j, 0] for j in range(3)] for i in range(3)
    ]


def mlp_by_hand(mlp, x):
    *hidden, last = mlp.linears
    for linear in hidden:
        x = np.maximum(x @ np.float64(linear.kernel[...]) + np.float64(linear.bias[...]), 0)
    return x @ np.float64(last.kernel[...]) + np.float64(last.bias[...])


@pytest.mark.parametrize("diagonal", DIAGONALS)
def test_per_image_edges_are_the_equation_pair_by_pair(diagonal):
    edges = make("learned_per_image", diagonal)
    one_hot, confidence = np.eye(K), np.float64(CONFIDENCE)
    expected = np.zeros((B, K, K))
    for image, i in np.ndindex(B, K):
        logits = np.zeros(K)
        for j in range(K):
            if i == j and diagonal == "zero":
                continue
            classes = mlp_by_hand(edges.class_mlp, np.concatenate([one_hot[i], one_hot[j]]))
            pair = np.concatenate(
                [[confidence[image, i], confidence[image, j]], np.maximum(classes, 0)]
            )
            logits[j] = mlp_by_hand(edges.edge_mlp, pair)[0]
        expected[image, i] = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(edges(CONFIDENCE, train=True), expected, rtol=1e-4)


def test_a_diagonal_fixed_at_0_changes_nothing_else_in_its_row():
    edges = make("learned_per_image", "zero")
    moved = make("learned_per_image", "learned")
    nnx.update(moved, nnx.state(edges))
    zero, learned = edges(CONFIDENCE, train=False), moved(CONFIDENCE, train=False)
    off = ~np.eye(K, dtype=bool)
    # The ratios between the others are the same, since only one logit of each row differs.
    for a, b in zip(np.asarray(zero), np.asarray(learned), strict=True):
        rows_a, rows_b = (e[off].reshape(K, K - 1) for e in (a, b))
        np.testing.assert_allclose(
            rows_a / rows_a.sum(axis=1, keepdims=True),
            rows_b / rows_b.sum(axis=1, keepdims=True),
            rtol=1e-4,
        )
    assert not np.allclose(zero, learned, atol=1e-3)


def test_batch_norm_counts_the_pairs_of_classes_once_for_the_batch():
    edges = make("learned_per_image", norm="batch")
    edges(CONFIDENCE, train=True)
    one = edges.class_mlp.norms[0].mean[...]
    other = make("learned_per_image", norm="batch")
    nnx.update(other, nnx.state(edges, nnx.Param))
    other(CONFIDENCE[:1], train=True)
    np.testing.assert_allclose(one, other.class_mlp.norms[0].mean[...], rtol=1e-6)


def test_unknown_diagonal_is_refused():
    with pytest.raises(ValueError, match=r"'one'.*learned"):
        make("learned_per_image", diagonal="one")


def test_edges_learn():
    graphdef, params = nnx.split(make("learned_per_image"))

    def toward_first(params):
        return nnx.merge(graphdef, params)(CONFIDENCE, train=True)[..., 0].sum()

    gradients = jax.tree.leaves(jax.grad(toward_first)(params))
    # A constant added to every logit of a row changes nothing: the last bias alone has no gradient.
    assert sum(not np.allclose(g, 0, atol=1e-6) for g in gradients) == len(gradients) - 1

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax.models.gcn import GraphConv

B, K, N, M = 2, 6, 4, 3
RNG = np.random.default_rng(0)
NODES = RNG.normal(size=(B, K, N))
POSITIONS = RNG.uniform(size=(B, K, 2))
EDGES = RNG.dirichlet(np.ones(K), size=(B, K))


def make(shape_features, dtype):
    block = GraphConv(N, M, shape_features=shape_features, rngs=nnx.Rngs(0))
    for _, param in nnx.iter_graph(block):
        if isinstance(param, nnx.Param):
            param.set_value(jnp.asarray(RNG.normal(size=param.shape), dtype))
    return block


def equation_4(block, nodes, positions, edges):
    """`h_i' = W1 h_i + b + sum_j e_ij W2 (h_j (+) (p_i - p_j))`, literally, in float64."""
    w1, w2 = np.float64(block.own[...]).T, np.float64(block.neighbour[...]).T
    if block.shape is not None:
        w2 = np.concatenate([w2, np.float64(block.shape[...]).T], axis=1)
    out = np.zeros((B, K, M))
    for image, i in np.ndindex(B, K):
        out[image, i] = w1 @ nodes[image, i] + np.float64(block.bias[...])
        for j in range(K):
            message = nodes[image, j]
            if block.shape is not None:
                message = np.concatenate([message, positions[image, i] - positions[image, j]])
            out[image, i] += edges[image, i, j] * (w2 @ message)
    return out


@pytest.mark.parametrize("shape_features", [True, False])
@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_two_products_are_the_sum_over_neighbours(shape_features, dtype, error):
    with jax.enable_x64(dtype == np.float64):
        block = make(shape_features, dtype)
        ours = block(*(jnp.asarray(x, dtype) for x in (NODES, POSITIONS, EDGES)))
        assert ours.dtype == dtype
        expected = equation_4(block, NODES, POSITIONS, EDGES)
    ours = np.asarray(ours)
    assert np.linalg.norm(ours - expected) < error * np.linalg.norm(expected)


def test_positions_move_no_message_without_shape_features():
    block = make(False, np.float32)
    nodes, positions, edges = (jnp.asarray(x, jnp.float32) for x in (NODES, POSITIONS, EDGES))
    np.testing.assert_array_equal(block(nodes, positions, edges), block(nodes, -positions, edges))


def test_shape_features_do_not_see_where_the_face_is():
    block = make(True, np.float32)
    nodes, positions, edges = (jnp.asarray(x, jnp.float32) for x in (NODES, POSITIONS, EDGES))
    np.testing.assert_allclose(
        block(nodes, positions, edges), block(nodes, positions + 3.0, edges), atol=1e-5
    )


def test_zero_init_gives_zeros_and_can_learn():
    block = GraphConv(N, M, shape_features=True, zero_init=True, rngs=nnx.Rngs(0))
    inputs = [jnp.asarray(x, jnp.float32) for x in (NODES, POSITIONS, EDGES)]
    assert not block(*inputs).any()
    gradients = nnx.grad(lambda block: block(*inputs).sum())(block)
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients))

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax.models.gcn import GraphConv, OffsetVoting, PairVectors
from lcgcn_jax.models.shape_refiner import ShapeRefiner, fit_similarity

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
    """Reference implementation of the equation with loops, in float64."""
    w1, w2 = np.float64(block.node[...]).T, np.float64(block.neighbor[...]).T
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
def test_matrix_products_match_the_equation(shape_features, dtype, error):
    with jax.enable_x64(dtype == np.float64):
        block = make(shape_features, dtype)
        ours = block(*(jnp.asarray(x, dtype) for x in (NODES, POSITIONS, EDGES)))
        assert ours.dtype == dtype
        expected = equation_4(block, NODES, POSITIONS, EDGES)
    ours = np.asarray(ours)
    assert np.linalg.norm(ours - expected) < error * np.linalg.norm(expected)


def test_positions_have_no_effect_without_shape_features():
    block = make(False, np.float32)
    nodes, positions, edges = (jnp.asarray(x, jnp.float32) for x in (NODES, POSITIONS, EDGES))
    np.testing.assert_array_equal(block(nodes, positions, edges), block(nodes, -positions, edges))


def test_shape_features_are_translation_invariant():
    block = make(True, np.float32)
    nodes, positions, edges = (jnp.asarray(x, jnp.float32) for x in (NODES, POSITIONS, EDGES))
    np.testing.assert_allclose(
        block(nodes, positions, edges), block(nodes, positions + 3.0, edges), atol=1e-5
    )


def test_zero_init_outputs_zeros_and_has_gradients():
    block = GraphConv(N, M, shape_features=True, zero_init=True, rngs=nnx.Rngs(0))
    inputs = [jnp.asarray(x, jnp.float32) for x in (NODES, POSITIONS, EDGES)]
    assert not block(*inputs).any()
    gradients = nnx.grad(lambda block: block(*inputs).sum())(block)
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients))


def test_pair_vectors_are_part_of_the_messages():
    block = GraphConv(N, M, shape_features=True, pair_width=5, rngs=nnx.Rngs(0))
    vectors = PairVectors(K, 5, rngs=nnx.Rngs(1))
    nodes, positions, edges = (jnp.asarray(x, jnp.float32) for x in (NODES, POSITIONS, EDGES))
    ours = block(nodes, positions, edges, vectors(edges))
    expected = equation_4(block, NODES, POSITIONS, EDGES)
    w, v = np.float64(block.pair[...]), np.float64(vectors.vectors[...])
    for image, i in np.ndindex(B, K):
        expected[image, i] += sum(EDGES[image, i, j] * (v[i, j] @ w) for j in range(K))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def rotation(angle, scale):
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def test_fit_similarity_recovers_rotation_and_scale():
    shape = RNG.normal(size=(K, 2))
    truth = np.stack([rotation(0.7, 1.5), rotation(-2.0, 0.2)])
    positions = np.einsum("bxd,kd->bkx", truth, shape) + RNG.normal(size=(B, 1, 2))
    weights = RNG.uniform(0.1, 1, size=(B, K))
    fitted = fit_similarity(*(jnp.asarray(x, jnp.float32) for x in (shape, positions, weights)))
    np.testing.assert_allclose(fitted, truth, atol=1e-5)


def test_fit_similarity_ignores_landmarks_with_weight_0():
    shape = RNG.normal(size=(K, 2))
    positions = np.broadcast_to(shape @ rotation(0.3, 2.0).T, (1, K, 2)).copy()
    positions[0, 0] += 100
    weights = np.ones((1, K))
    weights[0, 0] = 0
    fitted = fit_similarity(*(jnp.asarray(x, jnp.float32) for x in (shape, positions, weights)))
    np.testing.assert_allclose(fitted[0], rotation(0.3, 2.0), atol=1e-4)


def test_offset_votes_match_the_equation():
    offset_voting = OffsetVoting(K)
    mean, correction = RNG.normal(size=(K, 2)), RNG.normal(size=(K, K, 2))
    offset_voting.mean_shape.set_value(jnp.asarray(mean, jnp.float32))
    offset_voting.correction.set_value(jnp.asarray(correction, jnp.float32))
    confidence = RNG.uniform(size=(B, K))
    arguments = (jnp.asarray(x, jnp.float32) for x in (POSITIONS, confidence, EDGES))
    votes = offset_voting(*arguments)
    expected = np.zeros((B, K, 2))
    for image in range(B):
        # The transform by least squares instead of the closed form.
        root = confidence[image]  # square root of the weight c^2
        m = np.concatenate([mean, mean[:, ::-1] * [-1, 1]], axis=1).reshape(K, 2, 2)
        design = np.concatenate(
            [m.transpose(0, 2, 1), np.broadcast_to(np.eye(2), (K, 2, 2))], axis=2
        ).reshape(2 * K, 4)
        scaled = np.repeat(root, 2)
        a, b, *_ = np.linalg.lstsq(
            design * scaled[:, None], POSITIONS[image].reshape(-1) * scaled, rcond=None
        )[0]
        transform = np.array([[a, -b], [b, a]])
        for i, j in np.ndindex(K, K):
            offset = mean[i] - mean[j] + correction[i, j]
            expected[image, i] += EDGES[image, i, j] * (POSITIONS[image, j] + transform @ offset)
    np.testing.assert_allclose(votes, expected, atol=1e-4)


def test_offset_votes_do_not_change_the_mean_shape():
    offset_voting = OffsetVoting(K)
    mean = RNG.normal(size=(K, 2))
    offset_voting.mean_shape.set_value(jnp.asarray(mean, jnp.float32))
    positions = np.broadcast_to(mean @ rotation(0.5, 0.3).T + 0.4, (B, K, 2))
    arguments = (jnp.asarray(x, jnp.float32) for x in (positions, np.ones((B, K)), EDGES))
    np.testing.assert_allclose(offset_voting(*arguments), positions, atol=1e-5)


@pytest.mark.parametrize("pose_terms", [False, True])
def test_shape_refiner_matches_the_equation(pose_terms):
    refiner = ShapeRefiner(K, pose_terms=pose_terms)
    mean, direction = RNG.normal(size=(2, K, 2))
    transforms, bias = RNG.normal(size=(3, K, K, 2, 2)), RNG.normal(size=(3, K, 2))
    values = {"mean_shape": mean, "transforms": transforms[0], "bias": bias[0]}
    if pose_terms:
        values |= {
            "yaw_direction": direction, "yaw_transforms": transforms[1:], "yaw_bias": bias[1:]
        }  # fmt: skip
    for name, value in values.items():
        getattr(refiner, name).set_value(jnp.asarray(value, jnp.float32))
    confidence = RNG.uniform(0.1, 1, size=(B, K))
    arguments = [jnp.asarray(x, jnp.float32) for x in (POSITIONS, confidence)]
    expected = np.array(POSITIONS, np.float64)
    fitted = fit_similarity(jnp.asarray(mean, jnp.float32), arguments[0], arguments[1] ** 2)
    for image, transform in enumerate(np.asarray(fitted, np.float64)):
        weights = confidence[image] ** 2 / (confidence[image] ** 2).sum()
        translation = weights @ POSITIONS[image] - transform @ (weights @ mean)
        canonical = np.linalg.solve(transform, (POSITIONS[image] - translation).T).T
        yaw = np.clip((direction * (canonical - mean)).sum(), -2, 2)
        factors = (1, yaw, abs(yaw)) if pose_terms else (1,)
        for factor, m, b in zip(factors, transforms, bias, strict=False):
            for i in range(K):
                correction = b[i] + sum(m[i, j] @ (canonical[j] - mean[j]) for j in range(K))
                expected[image, i] += factor * transform @ correction
    np.testing.assert_allclose(refiner(*arguments), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pose_terms", [False, True])
def test_initial_shape_refiner_is_the_identity(pose_terms):
    refiner = ShapeRefiner(K, pose_terms=pose_terms)
    refiner.mean_shape.set_value(jnp.asarray(RNG.normal(size=(K, 2)), jnp.float32))
    positions, confidence = jnp.asarray(POSITIONS, jnp.float32), jnp.ones((B, K), jnp.float32)
    np.testing.assert_array_equal(refiner(positions, confidence), positions)

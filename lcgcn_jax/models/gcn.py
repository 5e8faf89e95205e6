"""Graph convolution over a dense adjacency, and what its messages can say of a pair of landmarks."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcgcn_jax.models.layers import glorot_normal, normal_init

Nodes = Float[Array, "b k n"]
Positions = Float[Array, "b k 2"]
Edges = Float[Array, "b k k"]


class GraphConv(nnx.Module):
    """`h_i' = W1 h_i + b + sum_j e_ij W2 (h_j (+) q_ij)`, with `q_ij = p_i - p_j` (the paper's eq. 4).

    Since each row of e sums to 1, the sum is `(E H) W2h + (P - E P) W2q`: two matrix products, and no
    tensor over pairs and channels. `e` must therefore be normalized over its last axis.

    Args:
      inputs: node width n.
      outputs: node width of the result.
      shape_features: whether q_ij joins the message.
      pair_width: length of the learned vectors v_ij that join it; 0: none.
      zero_init: start with all weights 0.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        shape_features: bool,
        pair_width: int = 0,
        zero_init: bool = False,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.zeros_init() if zero_init else glorot_normal
        self.own = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.neighbor = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.shape = (
            nnx.Param(init(rngs.params(), (2, outputs), jnp.float32)) if shape_features else None
        )
        self.pair = (
            nnx.Param(init(rngs.params(), (pair_width, outputs), jnp.float32))
            if pair_width
            else None
        )
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(
        self,
        nodes: Nodes,
        positions: Positions,
        edges: Edges,
        pairs: Float[Array, "b k v"] | None = None,
    ) -> Float[Array, "b k m"]:
        """Applies the block; `pairs` is sum_j e_ij v_ij (`PairVectors`)."""
        out = nodes @ self.own[...] + (edges @ nodes) @ self.neighbor[...]
        out = out + self.bias[...][None, None]
        if self.shape is not None:
            out = out + (positions - edges @ positions) @ self.shape[...]
        if self.pair is not None:
            out = out + pairs @ self.pair[...]
        return out


class PairVectors(nnx.Module):
    """A learned vector v_ij for each pair of landmarks, which lets a message say what the pair knows.

    In the paper's message W2 is the same for every pair, and the classes enter the scalar e_ij alone.

    Args:
      num_landmarks: k.
      width: length of the vectors.
      rngs: for the initial values.
    """

    def __init__(self, num_landmarks: int, width: int, *, rngs: nnx.Rngs):
        shape = (num_landmarks, num_landmarks, width)
        self.vectors = nnx.Param(normal_init(0.1)(rngs.params(), shape, jnp.float32))

    def __call__(self, edges: Edges) -> Float[Array, "b k v"]:
        """`sum_j e_ij v_ij` of every landmark i."""
        return jnp.einsum("bij,ijv->biv", edges, self.vectors[...])


class OffsetVoting(nnx.Module):
    """Where its neighbors believe each landmark is: `g_i = sum_j e_ij (p_j + A d_ij)`.

    d_ij are learned offsets in an upright frame, which start as those of the mean shape m,
    `m_i - m_j`; A is the rotation and scale that best fit m to p, weighted by the squared confidences.
    Two matrix products: `E P + (sum_j e_ij d_ij) A^T`.

    `mean_shape` is a statistic of the training faces, not a weight: the training sets it before the
    first step (`[k 2]`, centered, of unit size). While it is 0, A is 0 too.
    """

    def __init__(self, num_landmarks: int):
        self.mean_shape = nnx.BatchStat(jnp.zeros((num_landmarks, 2), jnp.float32))
        shape = (num_landmarks, num_landmarks, 2)
        self.correction = nnx.Param(jnp.zeros(shape, jnp.float32))

    def __call__(
        self, positions: Positions, confidence: Float[Array, "b k"], edges: Edges
    ) -> Positions:
        mean = self.mean_shape[...]
        offsets = mean[:, None] - mean[None, :] + self.correction[...]
        upright = jnp.einsum("bij,ijd->bid", edges, offsets)
        frame = fit_similarity(mean, positions, confidence**2)
        return edges @ positions + jnp.einsum("bxd,bid->bix", frame, upright)


class ShapeRefiner(nnx.Module):
    """A last turn in which all landmarks speak at once, each pair in words of its own.

    `x_i' = x_i + A (b_i + sum_j M_ij (A^-1 (x_j - t) - m_j))`: what moves landmark i is how far each j lies
    from the mean shape m, in the upright frame that A and t fit to the face, weighted by the squared
    confidences. M_ij is a 2 x 2 matrix of the pair: where `OffsetVoting` weighs what the others say by
    one number each, here a neighbor's x may speak of y, and may speak against.

    Starts as the identity. `training.fit_shape_refiner` finds M and b in closed form: few directions of a
    face's shape vary much, and gradients would take long to find the others.

    `mean_shape`: as that of `OffsetVoting`.
    """

    def __init__(self, num_landmarks: int):
        k = num_landmarks
        self.mean_shape = nnx.BatchStat(jnp.zeros((k, 2), jnp.float32))
        self.transforms = nnx.Param(jnp.zeros((k, k, 2, 2), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((k, 2), jnp.float32))

    def __call__(self, positions: Positions, confidence: Float[Array, "b k"]) -> Positions:
        frame, upright = self.upright(positions, confidence)
        moved = jnp.einsum(
            "ijde,bje->bid", self.transforms[...], upright - self.mean_shape[...][None]
        )
        moved = moved + self.bias[...][None]
        return positions + jnp.einsum("bxd,bid->bix", frame, moved)

    def upright(
        self, positions: Positions, confidence: Float[Array, "b k"]
    ) -> tuple[Float[Array, "b 2 2"], Positions]:
        """The face's frame A, and the landmarks in it, `A^-1 (x_j - t)`."""
        mean, weights = self.mean_shape[...], confidence**2
        frame = fit_similarity(mean, positions, weights)
        weights = _to_sum_one(weights)
        origin = jnp.einsum("bk,bkd->bd", weights, positions)
        origin = origin - jnp.einsum("bxd,bk,kd->bx", frame, weights, mean)
        # A is a rotation times a scale: its inverse is its transpose over the square of the scale.
        square = jnp.maximum((frame[:, :, 0] ** 2).sum(axis=-1), 1e-9)[:, None, None]
        return frame, jnp.einsum("bxd,bix->bid", frame, positions - origin[:, None]) / square


def fit_similarity(
    shape: Float[Array, "k 2"], positions: Positions, weights: Float[Array, "b k"]
) -> Float[Array, "b 2 2"]:
    """The matrix A = [[a, -b], [b, a]] that minimises sum_i w_i |A m_i + t - p_i|^2 over A and t."""
    weights = _to_sum_one(weights)
    m = shape[None] - jnp.einsum("bk,kd->bd", weights, shape)[:, None]
    p = positions - jnp.einsum("bk,bkd->bd", weights, positions)[:, None]
    size = jnp.maximum((weights * (m**2).sum(axis=-1)).sum(axis=-1), 1e-9)
    a = (weights * (m * p).sum(axis=-1)).sum(axis=-1) / size
    b = (weights * (m[..., 0] * p[..., 1] - m[..., 1] * p[..., 0])).sum(axis=-1) / size
    return jnp.stack([jnp.stack([a, -b], axis=-1), jnp.stack([b, a], axis=-1)], axis=-2)


def _to_sum_one(weights: Float[Array, "b k"]) -> Float[Array, "b k"]:
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-9)

"""Graph convolution over a dense adjacency, and offset voting."""

# Types of JAX functions are partially unknown.
# pyright: reportUnknownMemberType=false
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcgcn_jax.models.layers import glorot_normal, normal_init
from lcgcn_jax.models.shape_refiner import fit_similarity

Nodes = Float[Array, "b k n"]
Positions = Float[Array, "b k 2"]
Edges = Float[Array, "b k k"]


class GraphConv(nnx.Module):
    """`h_i' = W1 h_i + b + sum_j e_ij W2 (h_j (+) q_ij)`, with `q_ij = p_i - p_j` (eq. 4 of the paper).

    Each row of e sums to 1, so the sum is `(E H) W2h + (P - E P) W2q`: two matrix products, and no tensor
    over pairs and channels. `e` must therefore be normalized over its last axis.

    Args:
      shape_features: whether q_ij is part of the message.
      pair_width: length of the learned vectors v_ij in the message; 0: none.
      zero_init: whether all weights start at 0.
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

        def matrix(rows: int) -> nnx.Param[Array]:
            return nnx.Param(init(rngs.params(), (rows, outputs), jnp.float32))

        self.node, self.neighbor = matrix(inputs), matrix(inputs)
        self.shape = matrix(2) if shape_features else None
        self.pair = matrix(pair_width) if pair_width else None
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(
        self,
        nodes: Nodes,
        positions: Positions,
        edges: Edges,
        pairs: Float[Array, "b k v"] | None = None,
    ) -> Float[Array, "b k m"]:
        """Apply the block; `pairs` is sum_j e_ij v_ij (`PairVectors`)."""
        out = nodes @ self.node[...] + (edges @ nodes) @ self.neighbor[...]
        out = out + self.bias[...][None, None]
        if self.shape is not None:
            out = out + (positions - edges @ positions) @ self.shape[...]
        if self.pair is not None:
            assert pairs is not None, "a block with pair weights needs pair vectors"
            out = out + pairs @ self.pair[...]
        return out


class PairVectors(nnx.Module):
    """Learned vector v_ij for each pair of landmarks, as part of the messages.

    In the message of the paper W2 is shared by all pairs, and the classes affect only the scalar e_ij.
    """

    def __init__(self, num_landmarks: int, width: int, *, rngs: nnx.Rngs):
        shape = (num_landmarks, num_landmarks, width)
        self.vectors = nnx.Param(normal_init(0.1)(rngs.params(), shape, jnp.float32))

    def __call__(self, edges: Edges) -> Float[Array, "b k v"]:
        """Return `sum_j e_ij v_ij` for each landmark i."""
        return jnp.einsum("bij,ijv->biv", edges, self.vectors[...])


class OffsetVoting(nnx.Module):
    """Votes of all landmarks for the position of each landmark: `g_i = sum_j e_ij (p_j + A d_ij)`.

    d_ij are learned offsets in the canonical frame; initially they are those of the mean shape m,
    `m_i - m_j`. A is the rotation and scale that fit m to p, weighted by the squared confidences
    (`fit_similarity`). The sum is two matrix products: `E P + (sum_j e_ij d_ij) A^T`.

    `mean_shape` (`[k 2]`, centered, of unit size) is a statistic of the training faces and not a weight.
    Training sets it before the first step. While it is 0, A is 0 too.
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
        canonical_offsets = jnp.einsum("bij,ijd->bid", edges, offsets)
        transform = fit_similarity(mean, positions, confidence**2)
        return edges @ positions + jnp.einsum("bxd,bid->bix", transform, canonical_offsets)

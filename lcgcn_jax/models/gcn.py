"""Graph convolution over a dense adjacency, with shape features in the messages."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcgcn_jax.models.layers import glorot_normal

Nodes = Float[Array, "b k n"]
Positions = Float[Array, "b k 2"]
Edges = Float[Array, "b k k"]


class GraphConv(nnx.Module):
    """`h_i' = W1 h_i + b + sum_j e_ij W2 (h_j (+) q_ij)`, with `q_ij = p_i - p_j` (the paper's eq. 4).

    Since each row of e sums to 1, the sum is `(E H) W2h + (P - E P) W2q`: two matrix products, and no
    tensor over pairs and channels. `e` must therefore be normalised over its last axis.

    Args:
      inputs: node width n.
      outputs: node width of the result.
      shape_features: whether q_ij joins the message.
      zero_init: start with all weights 0.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        shape_features: bool,
        zero_init: bool = False,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.zeros_init() if zero_init else glorot_normal
        self.own = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.neighbour = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.shape = (
            nnx.Param(init(rngs.params(), (2, outputs), jnp.float32)) if shape_features else None
        )
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, nodes: Nodes, positions: Positions, edges: Edges) -> Float[Array, "b k m"]:
        out = nodes @ self.own[...] + (edges @ nodes) @ self.neighbour[...]
        out = out + self.bias[...][None, None]
        if self.shape is not None:
            out = out + (positions - edges @ positions) @ self.shape[...]
        return out

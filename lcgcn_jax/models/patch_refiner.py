"""Turns after the first: landmarks moved by what the maps show around them, and by their neighbors."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcgcn_jax import heatmaps
from lcgcn_jax.models.gcn import Edges, GraphConv, Nodes, Positions
from lcgcn_jax.models.layers import glorot_normal, normal_init

SIDE = 5
"""Side of the square window that is read around each landmark, in cells."""

CHANNELS = 32  # of the features in a window
CLASS_WIDTH = 16  # of the learned vector that says which landmark a node is
WIDTHS = (128, 64)  # of the nodes


class PatchRefiner(nnx.Module):
    """Moves every landmark within a window of the maps around where it was believed to be last.

    A node is what a window of `SIDE` x `SIDE` cells shows around its landmark, read bilinearly: the
    features, projected to `CHANNELS`, and the landmark's own heat; with its log confidence and a learned
    vector of its class. Two graph convolutions over the first turn's edges make of it a displacement in
    cells, which starts at 0. Where the window lies is taken as given: gradients flow into the maps and the
    weights, and not into the turn before.

    Reading features again at the refined points is what cascades and sparse local patches do (Li et al.
    2020; Xia et al., "Sparse Local Patch Transformer", CVPR 2022).

    Args:
      num_landmarks: k.
      feature_channels: c.
      rngs: for the initial weights.
    """

    def __init__(self, num_landmarks: int, feature_channels: int, *, rngs: nnx.Rngs):
        inputs = SIDE * SIDE * (CHANNELS + 1) + CLASS_WIDTH + 1
        self.project = nnx.Param(glorot_normal(rngs.params(), (feature_channels, CHANNELS)))
        self.classes = nnx.Param(normal_init(1.0)(rngs.params(), (num_landmarks, CLASS_WIDTH)))
        self.embedding = nnx.Param(glorot_normal(rngs.params(), (inputs, WIDTHS[0])))
        make = {"shape_features": True, "rngs": rngs}
        self.hidden = GraphConv(*WIDTHS, **make)
        self.displacement = GraphConv(WIDTHS[-1], 2, zero_init=True, **make)

    def __call__(
        self,
        positions: Positions,
        log_confidence: Float[Array, "b k"],
        edges: Edges,
        maps: Float[Array, "b hh hw c"],
        heat: Float[Array, "b hh hw k"],
    ) -> Positions:
        """The landmarks after one turn; positions are parts of the crop's side."""
        _, hh, hw, _ = heat.shape
        positions = jax.lax.stop_gradient(positions)
        size = jnp.array([[[hw, hh]]], jnp.float32)
        cells = heatmaps.cells_at(positions, (hh, hw))
        nodes = self._nodes(cells, log_confidence, maps, heat)
        # In cells, so that the shape features are of the size of the others.
        nodes = jax.nn.relu(self.hidden(nodes, cells, edges))
        return positions + self.displacement(nodes, cells, edges) / size

    def _nodes(self, cells, log_confidence, maps, heat) -> Nodes:
        b, hh, hw, k = heat.shape
        projected = maps.astype(jnp.float32) @ self.project[...]
        features = heatmaps.windows(projected, cells, SIDE).reshape(b, k, -1)
        own = heat.transpose(0, 3, 1, 2).reshape(b * k, hh, hw, 1)
        own = heatmaps.windows(own, cells.reshape(b * k, 1, 2), SIDE).reshape(b, k, -1)
        classes = jnp.broadcast_to(self.classes[...], (b, k, CLASS_WIDTH))
        nodes = jnp.concatenate([features, own, log_confidence[..., None], classes], axis=-1)
        return jax.nn.relu(nodes @ self.embedding[...])

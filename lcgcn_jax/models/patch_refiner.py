"""Patch refinement: moves landmarks by the features and heatmaps in a patch around each of them."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcgcn_jax import heatmaps
from lcgcn_jax.models.config import PatchRefinerConfig
from lcgcn_jax.models.gcn import Edges, GraphConv, Nodes, Positions
from lcgcn_jax.models.layers import glorot_normal, normal_init

DEFAULT_SIZE = PatchRefinerConfig()


class PatchRefiner(nnx.Module):
    """One refinement stage from patches around the current landmarks.

    The features of a node are a bilinearly sampled patch around its landmark (the projected feature maps and
    the heatmap of the landmark), its log confidence, and a learned vector of its class. Two graph
    convolutions over the edges of the graph head output a displacement in heatmap pixels, which is initially
    0. Patch positions are constants: gradients flow into the maps and the weights, but not into the previous
    stage.

    Cascades and sparse local patches also sample features at refined landmarks (Li et al. 2020; Xia et al.,
    "Sparse Local Patch Transformer", CVPR 2022).

    Args:
      num_landmarks: k.
      feature_channels: c.
      config: sizes.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        num_landmarks: int,
        feature_channels: int,
        *,
        config: PatchRefinerConfig = DEFAULT_SIZE,
        rngs: nnx.Rngs,
    ):
        side, channels, class_width = config.side, config.channels, config.class_width
        inputs = side * side * (channels + 1) + class_width + 1
        self.side = side
        self.project = nnx.Param(glorot_normal(rngs.params(), (feature_channels, channels)))
        self.classes = nnx.Param(normal_init(1.0)(rngs.params(), (num_landmarks, class_width)))
        self.embedding = nnx.Param(glorot_normal(rngs.params(), (inputs, config.widths[0])))
        self.hidden = GraphConv(*config.widths, shape_features=True, rngs=rngs)
        self.displacement = GraphConv(
            config.widths[-1], 2, shape_features=True, zero_init=True, rngs=rngs
        )

    def __call__(
        self,
        positions: Positions,
        log_confidence: Float[Array, "b k"],
        edges: Edges,
        maps: Float[Array, "b hh hw c"],
        activated: Float[Array, "b hh hw k"],
    ) -> Positions:
        """Return refined positions, as fractions of the side of the crop.

        Args:
          positions: current positions.
          log_confidence: logarithms of the heatmap peaks.
          edges: edge weights of the graph head.
          maps: feature maps.
          activated: heatmaps after the activation.
        """
        _, hh, hw, _ = activated.shape
        positions = jax.lax.stop_gradient(positions)
        size = jnp.array([[[hw, hh]]], jnp.float32)
        # Heatmap pixels, so that shape features have the magnitude of the other features.
        pixels = heatmaps.heatmap_pixels_at(positions, (hh, hw))
        nodes = self._nodes(pixels, log_confidence, maps, activated)
        nodes = jax.nn.relu(self.hidden(nodes, pixels, edges))
        return positions + self.displacement(nodes, pixels, edges) / size

    def _nodes(
        self,
        pixels: Positions,
        log_confidence: Float[Array, "b k"],
        maps: Float[Array, "b hh hw c"],
        activated: Float[Array, "b hh hw k"],
    ) -> Nodes:
        b, hh, hw, k = activated.shape
        projected = maps.astype(jnp.float32) @ self.project[...]
        features = heatmaps.windows(projected, pixels, self.side).reshape(b, k, -1)
        per_landmark = activated.transpose(0, 3, 1, 2).reshape(b * k, hh, hw, 1)
        patches = heatmaps.windows(per_landmark, pixels.reshape(b * k, 1, 2), self.side)
        classes = jnp.broadcast_to(self.classes[...], (b, k, self.classes[...].shape[-1]))
        nodes = jnp.concatenate(
            [features, patches.reshape(b, k, -1), log_confidence[..., None], classes], axis=-1
        )
        return jax.nn.relu(nodes @ self.embedding[...])

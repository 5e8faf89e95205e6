"""Patch refinement: moves landmarks by the features and heatmaps in a patch around each of them."""

# Types of JAX functions are partially unknown.
# pyright: reportUnknownMemberType=false
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcgcn_jax import heatmaps
from lcgcn_jax.models.gcn import Edges, GraphConv, Nodes, Positions
from lcgcn_jax.models.layers import glorot_normal, normal_init

SIDE = 5
"""Side of the square patch around each landmark, in heatmap pixels."""

_CHANNELS = 32  # features of each pixel of a patch
_CLASS_WIDTH = 16  # length of the learned vector of each landmark
_WIDTHS = (128, 64)  # of the nodes before and after the first graph convolution


class PatchRefiner(nnx.Module):
    """One refinement stage from patches around the current landmarks.

    The features of a node are a bilinearly sampled patch around its landmark (the projected feature maps and
    the heatmap of the landmark), its log confidence, and a learned vector of its class. Two graph
    convolutions over the edges of the graph head output a displacement in heatmap pixels, which is initially
    0. Patch positions are constants: gradients flow into the maps and the weights, but not into the previous
    stage.

    Cascades and sparse local patches also sample features at refined landmarks (Li et al. 2020; Xia et al.,
    "Sparse Local Patch Transformer", CVPR 2022).
    """

    def __init__(self, num_landmarks: int, feature_channels: int, *, rngs: nnx.Rngs):
        inputs = SIDE * SIDE * (_CHANNELS + 1) + _CLASS_WIDTH + 1
        self.project = nnx.Param(glorot_normal(rngs.params(), (feature_channels, _CHANNELS)))
        self.classes = nnx.Param(normal_init(1.0)(rngs.params(), (num_landmarks, _CLASS_WIDTH)))
        self.embedding = nnx.Param(glorot_normal(rngs.params(), (inputs, _WIDTHS[0])))
        self.hidden = GraphConv(*_WIDTHS, shape_features=True, rngs=rngs)
        self.displacement = GraphConv(
            _WIDTHS[-1], 2, shape_features=True, zero_init=True, rngs=rngs
        )

    def __call__(
        self,
        positions: Positions,
        log_confidence: Float[Array, "b k"],
        edges: Edges,
        maps: Float[Array, "b hh hw c"],
        activated: Float[Array, "b hh hw k"],
    ) -> Positions:
        """Return refined positions, as fractions of the side of the crop."""
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
        features = heatmaps.windows(projected, pixels, SIDE).reshape(b, k, -1)
        per_landmark = activated.transpose(0, 3, 1, 2).reshape(b * k, hh, hw, 1)
        patches = heatmaps.windows(per_landmark, pixels.reshape(b * k, 1, 2), SIDE)
        classes = jnp.broadcast_to(self.classes[...], (b, k, self.classes[...].shape[-1]))
        nodes = jnp.concatenate(
            [features, patches.reshape(b, k, -1), log_confidence[..., None], classes], axis=-1
        )
        return jax.nn.relu(nodes @ self.embedding[...])

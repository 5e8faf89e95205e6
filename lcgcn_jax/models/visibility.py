"""Visibility head: probability that each landmark is visible in the image."""

# Types of JAX functions are partially unknown.
# pyright: reportUnknownMemberType=false
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcgcn_jax.models.config import VisibilityConfig
from lcgcn_jax.models.connectivity import log_of
from lcgcn_jax.models.layers import glorot_normal, normal_init

CLASSES = ("visible", "externally_occluded", "self_occluded")
"""Classes in the order of the labels 0, 1 and 2."""

_CUES = 5  # confidence, log confidence, heatmap standard deviation, x and y
_PRIOR_LOGIT = 2.0  # most landmarks are visible: the initial probability is 0.88

Logits = Float[Array, "b k 2"]


class VisibilityHead(nnx.Module):
    """Classifier of the visibility of each landmark from the inputs of the graph.

    The features of a node are the visual feature at the landmark (normalized over its channels), the
    peak and the standard deviation of its heatmap, its position relative to the mean of all landmarks,
    and a learned vector of its class; all other weights are shared by all landmarks. With `attention`,
    one residual attention layer over the landmarks follows, with a learned bias for each pair of
    landmarks, because occluded neighbors and the pose of the face are informative about self-occlusion.

    Gradients flow into the visual features. Positions, confidences and standard deviations are constants, so
    that the heatmaps are not trained to encode visibility.

    Args:
      config: options; `head` is not `none`.
    """

    def __init__(
        self, config: VisibilityConfig, num_landmarks: int, feature_channels: int, *, rngs: nnx.Rngs
    ):
        width = config.width
        self.visual = _linear(feature_channels, width, rngs)
        self.cues = _linear(_CUES, width, rngs)
        shape = (num_landmarks, width)
        self.classes = nnx.Param(normal_init(0.1)(rngs.params(), shape, jnp.float32))
        self.attention = (
            LandmarkAttention(num_landmarks, width, rngs=rngs)
            if config.head == "attention"
            else None
        )
        self.hidden = _linear(width, width, rngs)
        # Small, so that the initial probabilities are the prior.
        self.output = nnx.Linear(width, 2, kernel_init=normal_init(0.001), rngs=rngs)
        assert self.output.bias is not None
        self.output.bias.set_value(jnp.array([_PRIOR_LOGIT, 0.0], jnp.float32))

    def __call__(
        self,
        positions: Float[Array, "b k 2"],
        confidence: Float[Array, "b k"],
        heatmap_std: Float[Array, "b k"],
        features: Float[Array, "b k c"],
    ) -> Logits:
        """Compute the logits of two binary decisions, which `log_probabilities` maps to three classes.

        Args:
          positions: positions of the initial landmarks, as fractions of the side of the crop.
          heatmap_std: standard deviation of each heatmap around its peak (`heatmaps.heatmap_std`).
          features: visual features at the initial landmarks.

        Returns:
          For each landmark the logit of `visible`, and the logit of `externally_occluded` given that the
          landmark is not visible.
        """
        positions, confidence, heatmap_std = jax.lax.stop_gradient(
            (positions, confidence, heatmap_std)
        )
        relative = positions - positions.mean(axis=1, keepdims=True)
        # Scaled to a magnitude of about 1.
        scalars = jnp.stack([confidence, log_of(confidence) / 4, 10 * heatmap_std], axis=-1)
        cues = jnp.concatenate([scalars, 4 * relative], axis=-1)
        nodes = self.visual(_normalized(features.astype(jnp.float32))) + self.cues(cues)
        nodes = jax.nn.relu(nodes + self.classes[...][None])
        if self.attention is not None:
            nodes = nodes + self.attention(nodes)
        return self.output(jax.nn.relu(self.hidden(nodes)))


class LandmarkAttention(nnx.Module):
    """Single-head attention over the landmarks, with a learned bias for each pair of landmarks."""

    def __init__(self, num_landmarks: int, width: int, *, rngs: nnx.Rngs):
        self.query = _linear(width, width, rngs)
        self.key = _linear(width, width, rngs)
        self.value = _linear(width, width, rngs)
        self.pair_bias = nnx.Param(jnp.zeros((num_landmarks, num_landmarks), jnp.float32))

    def __call__(self, nodes: Float[Array, "b k w"]) -> Float[Array, "b k w"]:
        scores = jnp.einsum("biw,bjw->bij", self.query(nodes), self.key(nodes))
        scores = scores / math.sqrt(nodes.shape[-1]) + self.pair_bias[...][None]
        return jax.nn.softmax(scores, axis=-1) @ self.value(nodes)


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, kernel_init=glorot_normal, rngs=rngs)


def _normalized(features: Float[Array, "b k c"]) -> Float[Array, "b k c"]:
    """Normalize features to zero mean and unit variance over the channels."""
    centered = features - features.mean(axis=-1, keepdims=True)
    variance = jnp.square(centered).mean(axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + 1e-5)


def log_probabilities(logits: Logits) -> Float[Array, "b k 3"]:
    """Log probabilities of `CLASSES`.

    For the logits v and e: `sigmoid(v)`, `sigmoid(-v) sigmoid(e)` and `sigmoid(-v) sigmoid(-e)`.
    """
    visible, external = logits[..., 0], logits[..., 1]
    hidden = jax.nn.log_sigmoid(-visible)
    return jnp.stack(
        [
            jax.nn.log_sigmoid(visible),
            hidden + jax.nn.log_sigmoid(external),
            hidden + jax.nn.log_sigmoid(-external),
        ],
        axis=-1,
    )

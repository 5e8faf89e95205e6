"""Two-stage graph cascade from the mean shape ("DAG", Li et al., ECCV 2020), a baseline of the paper."""

# Types of JAX functions are partially unknown.
# pyright: reportUnknownMemberType=false
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcgcn_jax import heatmaps
from lcgcn_jax.geometry import CROP_SCALE
from lcgcn_jax.models.config import CascadeConfig
from lcgcn_jax.models.connectivity import StaticEdges
from lcgcn_jax.models.gcn import Edges, GraphConv, Nodes, Positions
from lcgcn_jax.models.interfaces import GraphFeatures
from lcgcn_jax.models.layers import glorot_normal


class MeanShapeCascade(nnx.Module):
    """Cascade that moves the mean shape to the landmarks, first globally, then per landmark.

    The features of a node are the visual feature at its position, sampled bilinearly, and its displacements
    to all other nodes. The coarse stage pools all nodes to one perspective transformation of the mean shape.
    The fine stage then moves each landmark `fine_steps` times, and samples the features again each time. Each
    stage has one learned adjacency for all images.

    Positions are (x, y) as a fraction of the side of the crop, 0..1. The heatmaps are not used.

    `mean_shape` is a statistic of the training faces, which training sets before the first step, as in
    `gcn.OffsetVoting`.
    """

    def __init__(
        self, config: CascadeConfig, num_landmarks: int, feature_channels: int, *, rngs: nnx.Rngs
    ):
        self.mean_shape = nnx.BatchStat(jnp.zeros((num_landmarks, 2), jnp.float32))
        self.coarse = Stage(config, num_landmarks, feature_channels, rngs=rngs)
        self.fine = Stage(config, num_landmarks, feature_channels, rngs=rngs)
        # Both start at 0, so the initial output is the mean shape.
        self.transform = nnx.Param(jnp.zeros((config.width, 8), jnp.float32))
        self.displacement = GraphConv(
            config.width, 2, shape_features=False, zero_init=True, rngs=rngs
        )
        self.fine_steps = config.fine_steps

    def select_features(
        self, maps: Float[Array, "b h w c"], heatmaps: Float[Array, "b h w k"], pixels: Positions
    ) -> GraphFeatures:
        """Return the feature maps."""
        del heatmaps, pixels
        return GraphFeatures(maps=maps)

    def __call__(
        self,
        positions: Positions,
        confidence: Float[Array, "b k"],
        features: GraphFeatures,
        visible_logit: Float[Array, "b k"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "b t k 2"], Edges]:
        """Return the landmarks after the coarse stage and after each fine step, and the edge weights."""
        del positions, visible_logit, train
        maps = features.maps
        assert maps is not None, "select_features returns maps"
        start = placed_in_crop(self.mean_shape[...])
        start = jnp.broadcast_to(start, (maps.shape[0], *start.shape))
        nodes, edges = self.coarse(start, confidence, maps)
        stages = [apply_perspective(nodes.mean(axis=1) @ self.transform[...], start)]
        for _ in range(self.fine_steps):
            nodes, edges = self.fine(stages[-1], confidence, maps)
            stages.append(stages[-1] + self.displacement(nodes, stages[-1], edges))
        return jnp.stack(stages, axis=1), edges


class Stage(nnx.Module):
    """Sampling of features at positions, then residual graph convolutions over static edges."""

    def __init__(
        self, config: CascadeConfig, num_landmarks: int, feature_channels: int, *, rngs: nnx.Rngs
    ):
        half = config.width // 2
        self.connectivity = StaticEdges(num_landmarks)
        self.feature = nnx.Param(glorot_normal(rngs.params(), (feature_channels, half)))
        self.shape = nnx.Param(glorot_normal(rngs.params(), (2 * num_landmarks, half)))
        self.blocks = nnx.List(
            GraphConv(config.width, config.width, shape_features=False, rngs=rngs)
            for _ in range(config.blocks)
        )

    def __call__(
        self, positions: Positions, confidence: Float[Array, "b k"], maps: Float[Array, "b h w c"]
    ) -> tuple[Nodes, Edges]:
        b, k, _ = positions.shape
        edges = self.connectivity(confidence, train=False)
        pixels = heatmaps.heatmap_pixels_at(positions, maps.shape[1:3])
        visual = heatmaps.sample(maps, pixels, bilinear=True)
        displacements = (positions[:, None] - positions[:, :, None]).reshape(b, k, 2 * k)
        nodes = jnp.concatenate(
            [visual.astype(jnp.float32) @ self.feature[...], displacements @ self.shape[...]],
            axis=-1,
        )
        for block in self.blocks:
            nodes = nodes + jax.nn.relu(block(nodes, positions, edges))
        return nodes, edges


def placed_in_crop(shape: Float[Array, "k 2"]) -> Float[Array, "k 2"]:
    """Place a shape in the crop of its bounding box, as fractions of the side of the crop."""
    low, high = shape.min(axis=0, keepdims=True), shape.max(axis=0, keepdims=True)
    side = CROP_SCALE * jnp.maximum((high - low).max(), 1e-9)
    return 0.5 + (shape - (low + high) / 2) / side


def apply_perspective(parameters: Float[Array, "b 8"], points: Positions) -> Positions:
    """Apply perspective transformations around the center of the crop. All parameters 0: the identity.

    `x' = ((1 + a) x + b y + c) / (1 + g x + h y)`, `y' = (d x + (1 + e) y + f) / (1 + g x + h y)`.
    """
    a, b, c, d, e, f, g, h = (parameters[:, i, None] for i in range(8))
    x, y = points[..., 0] - 0.5, points[..., 1] - 0.5
    # Bounded away from 0: a point behind the camera is not part of a face.
    divisor = jnp.maximum(1 + g * x + h * y, 0.5)
    numerators = jnp.stack([(1 + a) * x + b * y + c, d * x + (1 + e) * y + f], axis=-1)
    return 0.5 + numerators / divisor[..., None]

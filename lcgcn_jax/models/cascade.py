"""The two-stage graph cascade from the mean shape (Li et al., ECCV 2020, "DAG"), the paper's main rival."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcgcn_jax import heatmaps
from lcgcn_jax.geometry import CROP_SCALE
from lcgcn_jax.models.connectivity import StaticEdges
from lcgcn_jax.models.gcn import Edges, GraphConv, Nodes, Positions
from lcgcn_jax.models.layers import glorot_normal


@dataclasses.dataclass(frozen=True)
class CascadeConfig:
    """Size of the cascade.

    Attributes:
      width: channels of a node.
      blocks: residual graph convolutions in each of the two stages.
      fine_steps: how often the fine stage moves the landmarks, with the same weights.
    """

    width: int = 128
    blocks: int = 3
    fine_steps: int = 3


class MeanShapeCascade(nnx.Module):
    """Mean shape and feature maps to landmarks, coarse then fine.

    A node is the visual feature at its position, read bilinearly, and the displacements to all other
    nodes. The coarse stage pools its nodes into one perspective transformation of the mean shape; the fine
    stage then moves every landmark by itself, `fine_steps` times, with features read again each time. Each
    stage has one learned matrix of edges for all images.

    Positions are (x, y) as a part of the crop's side, 0..1. The heatmap model's peaks are not used.

    `mean_shape` is a statistic of the training faces: the training sets it before the first step, as in
    `gcn.OffsetVoting`.

    Args:
      config: its size.
      num_landmarks: k.
      feature_channels: c.
      rngs: for the initial weights.
    """

    positions = "center"
    """As in `lcgcn.GraphConfig`."""

    def __init__(
        self, config: CascadeConfig, num_landmarks: int, feature_channels: int, *, rngs: nnx.Rngs
    ):
        make = {"num_landmarks": num_landmarks, "feature_channels": feature_channels, "rngs": rngs}
        self.mean_shape = nnx.BatchStat(jnp.zeros((num_landmarks, 2), jnp.float32))
        self.coarse = Stage(config, **make)
        self.fine = Stage(config, **make)
        # Both begin at 0: the mean shape stays where it is.
        self.transform = nnx.Param(jnp.zeros((config.width, 8), jnp.float32))
        self.displacement = GraphConv(
            config.width, 2, shape_features=False, zero_init=True, rngs=rngs
        )
        self.fine_steps = config.fine_steps

    def read(
        self, maps: Float[Array, "b h w c"], heat: Float[Array, "b h w k"], cells: Positions
    ) -> Float[Array, "b h w c"]:
        """What the cascade takes of the heatmap model: all of its features."""
        del heat, cells
        return maps

    def __call__(
        self,
        positions: Positions,
        confidence: Float[Array, "b k"],
        maps: Float[Array, "b h w c"],
        visible_logit: Float[Array, "b k"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "b t k 2"], Edges]:
        """The landmarks after the coarse stage and after each turn of the fine one, and its edges."""
        del positions, visible_logit, train
        start = placed_in_crop(self.mean_shape[...])
        start = jnp.broadcast_to(start, (maps.shape[0], *start.shape))
        nodes, _ = self.coarse(start, confidence, maps)
        found = [apply_perspective(nodes.mean(axis=1) @ self.transform[...], start)]
        for _ in range(self.fine_steps):
            nodes, edges = self.fine(found[-1], confidence, maps)
            found.append(found[-1] + self.displacement(nodes, found[-1], edges))
        return jnp.stack(found, axis=1), edges


class Stage(nnx.Module):
    """Nodes read at positions, then residual graph convolutions over static edges."""

    def __init__(
        self, config: CascadeConfig, *, num_landmarks: int, feature_channels: int, rngs: nnx.Rngs
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
        visual = heatmaps.sample(maps, heatmaps.cells_at(positions, maps.shape[1:3]), bilinear=True)
        displacements = (positions[:, None] - positions[:, :, None]).reshape(b, k, 2 * k)
        nodes = jnp.concatenate(
            [visual.astype(jnp.float32) @ self.feature[...], displacements @ self.shape[...]],
            axis=-1,
        )
        for block in self.blocks:
            nodes = nodes + jax.nn.relu(block(nodes, positions, edges))
        return nodes, edges


def placed_in_crop(shape: Float[Array, "k 2"]) -> Float[Array, "k 2"]:
    """A shape as it lies in the crop around its own bounding box, in parts of the crop's side."""
    low, high = shape.min(axis=0, keepdims=True), shape.max(axis=0, keepdims=True)
    side = CROP_SCALE * jnp.maximum((high - low).max(), 1e-9)
    return 0.5 + (shape - (low + high) / 2) / side


def apply_perspective(parameters: Float[Array, "b 8"], points: Positions) -> Positions:
    """Perspective transformations about the crop's center; all parameters 0: the identity.

    `x' = ((1 + a) x + b y + c) / (1 + g x + h y)`, `y' = (d x + (1 + e) y + f) / (1 + g x + h y)`.
    """
    a, b, c, d, e, f, g, h = (parameters[:, i, None] for i in range(8))
    x, y = points[..., 0] - 0.5, points[..., 1] - 0.5
    # A crop's corner behind the camera is no face: the divisor stays away from 0.
    divisor = jnp.maximum(1 + g * x + h * y, 0.5)
    moved = jnp.stack([(1 + a) * x + b * y + c, d * x + (1 + e) * y + f], axis=-1)
    return 0.5 + moved / divisor[..., None]

"""Graph head of the paper: initial landmarks to refined landmarks and edge weights."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcgcn_jax import heatmaps
from lcgcn_jax.models.config import GraphConfig
from lcgcn_jax.models.connectivity import (
    FixedEdges,
    PerImageEdges,
    StaticEdges,
    VisibilityGate,
    log_of,
)
from lcgcn_jax.models.gcn import GraphConv, OffsetVoting, PairVectors
from lcgcn_jax.models.interfaces import GraphFeatures
from lcgcn_jax.models.layers import MLP
from lcgcn_jax.models.patch_refiner import PatchRefiner
from lcgcn_jax.models.shape_refiner import ShapeRefiner

SELF_LOGIT = 4.0
"""Initial logit of the diagonal with offset votes: with 68 landmarks, each weighs itself by 0.45."""


class GraphHead(nnx.Module):
    """Graph that maps initial landmarks, confidences and visual features to landmarks and edges.

    Positions are (x, y) as a fraction of the side of the crop, 0..1.
    """

    def __init__(
        self,
        config: GraphConfig,
        num_landmarks: int,
        feature_channels: int,
        *,
        bn_momentum: float,
        rngs: nnx.Rngs,
    ):
        self.config = config
        authors = config.authors_conventions
        self.embedding = MLP(
            feature_channels,
            config.embedding_widths,
            norm=config.norm,
            last_relu=authors,
            momentum=bn_momentum,
            dtype=jnp.float32,
            rngs=rngs,
        )
        self.connectivity = _edges(config, num_landmarks, bn_momentum=bn_momentum, rngs=rngs)
        self.gate = VisibilityGate() if config.gate == "visibility" else None
        self.offset_voting = OffsetVoting(num_landmarks) if config.uses_offset_votes else None
        self.pair_vectors = (
            PairVectors(num_landmarks, config.pair_width, rngs=rngs)
            if config.message == "pair_vector"
            else None
        )
        inputs = 2 + config.embedding_widths[-1] + (3 if config.uses_offset_votes else 0)
        widths = (inputs, *config.gcn_widths)
        last = len(config.gcn_widths) - 1
        self.blocks = nnx.List(
            GraphConv(
                widths[i],
                widths[i + 1],
                shape_features=not authors or i in (0, last),
                pair_width=0 if self.pair_vectors is None else config.pair_width,
                # A residual starts at 0: the first output of the graph is its input.
                zero_init=config.output == "residual" and i == last,
                rngs=rngs,
            )
            for i in range(last + 1)
        )
        self.refinements = nnx.List(
            PatchRefiner(num_landmarks, feature_channels, rngs=rngs)
            for _ in range(config.refinements)
        )
        self.shape_refiner = (
            ShapeRefiner(num_landmarks, pose_terms=config.pose_terms)
            if config.shape_refiner
            else None
        )

    def select_features(
        self,
        maps: Float[Array, "b hh hw c"],
        heatmaps: Float[Array, "b hh hw k"],
        pixels: Float[Array, "b k 2"],
    ) -> GraphFeatures:
        """Return the features at the initial landmarks, or whole maps for patch refinement."""
        if self.refinements:
            return GraphFeatures(maps=maps, heatmaps=heatmaps.astype(maps.dtype))
        return GraphFeatures(points=self._sample(maps, pixels))

    def _sample(
        self, maps: Float[Array, "b hh hw c"], pixels: Float[Array, "b k 2"]
    ) -> Float[Array, "b k c"]:
        return heatmaps.sample(maps, pixels, bilinear=self.config.sampling == "bilinear")

    def __call__(
        self,
        positions: Float[Array, "b k 2"],
        confidence: Float[Array, "b k"],
        features: GraphFeatures,
        visible_logit: Float[Array, "b k"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "b t k 2"], Float[Array, "b k k"]]:
        """Return the landmarks after each stage, and the edge weights."""
        edges = self._edge_weights(confidence, visible_logit, train=train)
        points = features.points
        if features.maps is not None:
            points = self._sample(
                features.maps, heatmaps.heatmap_pixels_at(positions, features.maps.shape[1:3])
            )
        assert points is not None, "select_features returns points or maps"
        embedded = self.embedding(points.astype(jnp.float32), train=train)
        log_confidence = log_of(confidence)
        start, inputs = positions, [positions, embedded]
        if self.offset_voting is not None:
            start = self.offset_voting(positions, confidence, edges)
            inputs = [start, embedded, log_confidence[..., None], positions - start]
        pairs = None if self.pair_vectors is None else self.pair_vectors(edges)
        nodes = jnp.concatenate(inputs, axis=-1)
        for i, block in enumerate(self.blocks):
            if i > 0 and not self.config.authors_conventions:
                nodes = jax.nn.relu(nodes)
            nodes = block(nodes, start, edges, pairs)
        stages = [start + nodes if self.config.output == "residual" else nodes]
        for refine in self.refinements:
            assert features.maps is not None
            assert features.heatmaps is not None
            activated = features.heatmaps.astype(jnp.float32)
            stages.append(refine(stages[-1], log_confidence, edges, features.maps, activated))
        if self.shape_refiner is not None:
            stages.append(self.shape_refiner(stages[-1], confidence))
        return jnp.stack(stages, axis=1), edges

    def _edge_weights(
        self,
        confidence: Float[Array, "b k"],
        visible_logit: Float[Array, "b k"] | None,
        *,
        train: bool,
    ) -> Float[Array, "b k k"]:
        if visible_logit is not None and not self.config.visibility_gradient:
            visible_logit = jax.lax.stop_gradient(visible_logit)
        edges = self.connectivity(confidence, visible_logit, train=train)
        if self.gate is not None:
            assert visible_logit is not None, "ModelConfig rejects a gate without a visibility head"
            edges = self.gate(edges, visible_logit)
        return edges


def _edges(
    config: GraphConfig, num_landmarks: int, *, bn_momentum: float, rngs: nnx.Rngs
) -> PerImageEdges | StaticEdges | FixedEdges:
    voting = config.uses_offset_votes
    if config.connectivity == "learned_per_image":
        return PerImageEdges(
            num_landmarks,
            class_widths=config.class_widths,
            edge_widths=config.edge_widths,
            diagonal=config.diagonal,
            norm=config.norm,
            log_confidence=voting,
            inputs=config.edge_inputs,
            self_logit=SELF_LOGIT if voting else None,
            activate_logits=config.authors_conventions,
            bn_momentum=bn_momentum,
            rngs=rngs,
        )
    if config.connectivity == "learned_static":
        return StaticEdges(num_landmarks, SELF_LOGIT if voting else 0.0)
    return FixedEdges(num_landmarks, config.connectivity)

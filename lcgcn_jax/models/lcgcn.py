"""LCGCN: a heatmap model, and a graph that refines its landmarks (IEEE Access 2022)."""

# Types of JAX functions are partially unknown.
# pyright: reportUnknownMemberType=false
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from lcgcn_jax import heatmaps
from lcgcn_jax.geometry import centered_offset, heatmap_to_input, input_to_heatmap
from lcgcn_jax.models.cascade import MeanShapeCascade
from lcgcn_jax.models.config import CascadeConfig, GraphConfig, ModelConfig
from lcgcn_jax.models.graph_head import GraphHead
from lcgcn_jax.models.interfaces import Graph, GraphInputs, HasActivation, HeatmapModel, LCGCNOutput
from lcgcn_jax.models.visibility import VisibilityHead

__all__ = ["LCGCN", "MEAN_SHAPES", "GraphInputs", "LCGCNOutput", "normalize_images"]

MEAN_SHAPES = (
    "graph.offset_voting.mean_shape",
    "graph.shape_refiner.mean_shape",
    "graph.mean_shape",
)
"""Names of the statistics that are set to the mean shape of the training faces before the first step."""

# Accelerators multiply float32 matrices in bfloat16 or TF32 by default, which moves a landmark by up to half
# a pixel. The convolutions of the heatmap model keep the default.
_PRECISION = "highest"

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def normalize_images(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Convert RGB bytes to float32, normalized by the mean and standard deviation of ImageNet."""
    mean = jnp.array(IMAGE_MEAN, jnp.float32)[None, None, None]
    std = jnp.array(IMAGE_STD, jnp.float32)[None, None, None]
    return (images.astype(jnp.float32) / 255 - mean) / std


class LCGCN(nnx.Module):
    """Heatmap model with a graph that refines its landmarks, unless `config.graph` is None."""

    def __init__(
        self,
        heatmap_model: HeatmapModel,
        num_landmarks: int,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
    ):
        self.heatmap_model = heatmap_model
        self.activation: heatmaps.Activation = (
            heatmap_model.activation if isinstance(heatmap_model, HasActivation) else "sigmoid"
        )
        if self.activation not in heatmaps.ACTIVATIONS:
            raise ValueError(
                f"the heatmap model has the activation {self.activation!r}; use one of "
                f"{', '.join(heatmaps.ACTIVATIONS)}"
            )
        self.decode: heatmaps.Decoder = config.decode
        self.heatmap_offset = (
            centered_offset(heatmap_model.stride)
            if config.heatmap_offset is None
            else config.heatmap_offset
        )
        channels, graph = heatmap_model.feature_channels, config.graph
        self.graph = _create_graph(
            graph, num_landmarks, channels, bn_momentum=config.bn_momentum, rngs=rngs
        )
        self._positions_from_corner = isinstance(graph, GraphConfig) and graph.authors_conventions
        # After the graph, so that the initial weights of the graph do not depend on the head.
        self.visibility = (
            None
            if config.visibility.head == "none"
            else VisibilityHead(config.visibility, num_landmarks, channels, rngs=rngs)
        )

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        *,
        train_heatmap: bool = False,
        train_graph: bool = False,
    ) -> LCGCNOutput:
        """Run both stages.

        Args:
          images: square normalized crops (`normalize_images`).
          train_heatmap: whether BatchNorm in the heatmap model uses and updates batch statistics. If
            only the graph trains, no gradient flows into the heatmap model.
        """
        logits, graph_inputs = self.detect(images, train=train_heatmap)
        if train_graph and not train_heatmap:
            logits, graph_inputs = jax.lax.stop_gradient((logits, graph_inputs))
        output = self.refine(graph_inputs, images.shape[2], train=train_graph)
        heatmap_std = graph_inputs.heatmap_std
        if heatmap_std is None:
            heatmap_std = heatmaps.heatmap_std(logits, activation=self.activation)
        return dataclasses.replace(output, heatmap_logits=logits, heatmap_std=heatmap_std)

    def detect(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> tuple[Float[Array, "b hh hw k"], GraphInputs]:
        """Run the heatmap stage. Returns the logits and the inputs of the graph stage."""
        logits, maps = self.heatmap_model(images, train=train)
        logits = logits.astype(jnp.float32)
        return logits, self.read_peaks(logits, maps)

    def read_peaks(
        self, logits: Float[Array, "b hh hw k"], maps: Float[Array, "b hh hw c"]
    ) -> GraphInputs:
        """Decode the outputs of the heatmap model to the inputs of the graph stage."""
        with jax.default_matmul_precision(_PRECISION):
            return self._read_peaks(logits, maps)

    def _read_peaks(
        self, logits: Float[Array, "b hh hw k"], maps: Float[Array, "b hh hw c"]
    ) -> GraphInputs:
        pixels, confidence = heatmaps.decode(logits, self.decode, activation=self.activation)
        features = None
        if self.graph is not None:
            features = self.graph.select_features(
                maps, heatmaps.activate(logits, self.activation), pixels
            )
        landmarks = heatmap_to_input(pixels, self.heatmap_model.stride, self.heatmap_offset)
        heatmap_std = None
        if self.visibility is not None:
            heatmap_std = heatmaps.heatmap_std(logits, activation=self.activation)
        return GraphInputs(landmarks, confidence, features, heatmap_std)

    def refine(self, graph_inputs: GraphInputs, size: int, *, train: bool = False) -> LCGCNOutput:
        """Run the graph stage on crops of `size` pixels.

        The output has no `heatmap_logits` and, without a visibility head, no `heatmap_std`.
        """
        with jax.default_matmul_precision(_PRECISION):
            return self._refine(graph_inputs, size, train=train)

    def _refine(self, graph_inputs: GraphInputs, size: int, *, train: bool) -> LCGCNOutput:
        initial, confidence = graph_inputs.landmarks, graph_inputs.confidence
        if self.graph is None:
            return LCGCNOutput(None, initial, confidence, None, initial)
        shift_in, shift_out = (
            (-self.heatmap_offset, 0.0) if self._positions_from_corner else (0.5, 0.5)
        )
        assert graph_inputs.features is not None
        logits = visible_logit = visibility = None
        if self.visibility is not None:
            logits = self._visibility_logits(graph_inputs, size)
            visible_logit = logits[..., 0]
            visibility = jax.nn.sigmoid(visible_logit)
        positions, edges = self.graph(
            (initial + shift_in) / size,
            confidence,
            graph_inputs.features,
            visible_logit,
            train=train,
        )
        stages = positions * size - shift_out
        return LCGCNOutput(
            heatmap_logits=None,
            heatmap_landmarks=initial,
            confidence=confidence,
            edges=edges,
            landmarks=stages[:, -1],
            stages=stages,
            heatmap_std=graph_inputs.heatmap_std,
            visibility=visibility,
            visibility_logits=logits,
        )

    def _visibility_logits(self, graph_inputs: GraphInputs, size: int) -> Float[Array, "b k 2"]:
        features = graph_inputs.features
        assert self.visibility is not None
        assert features is not None
        points = features.points
        if features.maps is not None:
            pixels = input_to_heatmap(
                graph_inputs.landmarks, self.heatmap_model.stride, self.heatmap_offset
            )
            points = heatmaps.sample(features.maps, pixels, bilinear=True)
        assert points is not None
        assert graph_inputs.heatmap_std is not None
        positions = (graph_inputs.landmarks + 0.5) / size
        return self.visibility(positions, graph_inputs.confidence, graph_inputs.heatmap_std, points)


def _create_graph(
    config: GraphConfig | CascadeConfig | None,
    num_landmarks: int,
    feature_channels: int,
    *,
    bn_momentum: float,
    rngs: nnx.Rngs,
) -> Graph | None:
    if config is None:
        return None
    if isinstance(config, CascadeConfig):
        return MeanShapeCascade(config, num_landmarks, feature_channels, rngs=rngs)
    return GraphHead(config, num_landmarks, feature_channels, bn_momentum=bn_momentum, rngs=rngs)

"""Data types that pass between the parts of a model, and protocols of these parts.

Modules take these arguments: `num_landmarks` k, `feature_channels` c, `dtype` of the computation,
`bn_momentum` (decay of the running statistics) and `rngs`, the source of the initial weights. With `train`,
BatchNorm uses and updates batch statistics.
"""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float

from lcgcn_jax.heatmaps import Activation

AnyArray = Array | np.ndarray  # on a device or on the host


# As pytrees these classes also hold shapes, shardings and placeholders of JAX, which no type checker accepts.
@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GraphFeatures:
    """Outputs of the heatmap model that a graph reads. What it does not read is None.

    Attributes:
      points: features at the initial landmarks.
      maps: feature maps.
      heatmaps: heatmaps after the activation, in the dtype of `maps`.
    """

    points: Float[Array, "b k c"] | None = None
    maps: Float[Array, "b hh hw c"] | None = None
    heatmaps: Float[Array, "b hh hw k"] | None = None


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GraphInputs:
    """Inputs of the graph stage for a batch of face crops.

    Attributes:
      landmarks: landmarks of the heatmap stage, in crop pixels.
      confidence: probability at the peak of each heatmap.
      features: features and heatmaps; None without a graph.
      heatmap_std: standard deviation of each heatmap around its peak (`heatmaps.heatmap_std`); None
        without a visibility head.
    """

    landmarks: Float[Array, "b k 2"]
    confidence: Float[Array, "b k"]
    features: GraphFeatures | None = None
    heatmap_std: Float[Array, "b k"] | None = None


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LCGCNOutput:
    """Model outputs for a batch of face crops.

    Attributes:
      heatmap_logits: heatmaps before the activation, which is a sigmoid unless the model is `linear`;
        None in the output of the graph stage (`LCGCN.refine`).
      heatmap_landmarks: landmarks of the heatmap stage, in crop pixels.
      confidence: probability at the peak of each heatmap.
      edges: edge weights of the graph; row i has the incoming edges of landmark i. None without a graph.
      landmarks: landmarks of the graph stage, in crop pixels; without a graph, those of the heatmap stage.
      stages: landmarks after each stage of the graph, in crop pixels; the last are `landmarks`. None
        without a graph.
      heatmap_std: standard deviation of each heatmap around its peak (`heatmaps.heatmap_std`); None
        without heatmaps.
      visibility: probability that each landmark is visible; None without a visibility head.
      visibility_logits: logits of the visibility head (`visibility.VisibilityHead`), for the loss; None
        without the head.
    """

    heatmap_logits: Float[AnyArray, "b hh hw k"] | None
    heatmap_landmarks: Float[AnyArray, "b k 2"]
    confidence: Float[AnyArray, "b k"]
    edges: Float[AnyArray, "b k k"] | None
    landmarks: Float[AnyArray, "b k 2"]
    stages: Float[AnyArray, "b t k 2"] | None = None
    heatmap_std: Float[AnyArray, "b k"] | None = None
    visibility: Float[AnyArray, "b k"] | None = None
    visibility_logits: Float[AnyArray, "b k 2"] | None = None

    def take(self, indices: Sequence[int] | None) -> "LCGCNOutput":
        """Select landmarks, and the edges between them; None selects all."""
        if indices is None:
            return self
        rows = np.array(indices)
        axes = {"landmarks": -2, "heatmap_landmarks": -2, "stages": -2, "visibility_logits": -2}
        fields: dict[str, typing.Any] = {
            name: None if value is None else value.take(rows, axis=axes.get(name, -1))
            for name, value in vars(self).items()
        }
        if self.edges is not None:
            fields["edges"] = self.edges.take(rows, axis=-1).take(rows, axis=-2)
        return LCGCNOutput(**fields)


@runtime_checkable
class HeatmapModel(Protocol):
    """Network from normalized images to heatmap logits and feature maps.

    Attributes:
      stride: number of input pixels for each heatmap pixel.
      feature_channels: number of channels c of the feature maps.
    """

    stride: int
    feature_channels: int

    def __call__(
        self, images: Float[Array, "b h w 3"], /, *, train: bool
    ) -> tuple[Float[Array, "b hh hw k"], Float[Array, "b hh hw c"]]:
        """Return logits and features. With `train`, BatchNorm uses and updates batch statistics."""
        ...


@runtime_checkable
class HasActivation(Protocol):
    """Heatmap model that names the activation of its logits. Without it, the activation is a sigmoid.

    Attributes:
      activation: activation that the logits are trained for.
    """

    activation: Activation


@runtime_checkable
class HasHead(Protocol):
    """Heatmap model that separates its head from its backbone. `init_scope='backbone'` needs it.

    Attributes:
      head_modules: names of the submodules of the head: those whose shapes depend on the number of
        landmarks, and the layers trained together with them.
    """

    head_modules: tuple[str, ...]


@runtime_checkable
class FoldsBatchNorm(Protocol):
    """Module that can fold its BatchNorms into its convolutions or linear layers."""

    def fold_batch_norm(self) -> None:
        """Fold in place, see `bn_folding.fold_batch_norm`."""
        ...


@runtime_checkable
class Graph(Protocol):
    """Graph stage: initial landmarks and features to refined landmarks and edge weights.

    Positions are (x, y) as a fraction of the side of the crop, 0..1.
    """

    def select_features(
        self,
        maps: Float[Array, "b hh hw c"],
        heatmaps: Float[Array, "b hh hw k"],
        pixels: Float[Array, "b k 2"],
    ) -> GraphFeatures:
        """Return the features that the graph reads, given the initial landmarks in heatmap pixels."""
        ...

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
        ...

"""Functional form of a model: structure and weights apart, and pure functions of them.

Inference, export, evaluation, validation during training and benchmarks all run a model through this class.
"""

import dataclasses
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array, Float, UInt8

from lcgcn_jax.models.interfaces import GraphInputs, LCGCNOutput
from lcgcn_jax.models.lcgcn import LCGCN, normalize_images
from lcgcn_jax.models.weights import Weights, merge_weights


class FunctionalModel(NamedTuple):
    """A model that is split into its structure and its weights."""

    graphdef: nnx.GraphDef[Any]
    params: Weights
    batch_stats: Weights

    def merge(self) -> LCGCN:
        """Return the model as a module, whose variables can be updated under `jit`."""
        return merge_weights(*self)

    def forward(self, images: Float[Array, "b s s 3"]) -> LCGCNOutput:
        """Run both stages on normalized crops (`lcgcn.normalize_images`)."""
        return self.merge()(images)

    def predict(self, crops: UInt8[Array, "b s s 3"]) -> LCGCNOutput:
        """Run both stages on RGB crops; the output has no `heatmap_logits`, which are large."""
        return dataclasses.replace(self.forward(normalize_images(crops)), heatmap_logits=None)

    def detect(self, crops: UInt8[Array, "b s s 3"]) -> GraphInputs:
        """Run the heatmap stage on RGB crops, and return the inputs of the graph stage."""
        return self.merge().detect(normalize_images(crops))[1]

    def refine(self, graph_inputs: GraphInputs, image_size: int) -> LCGCNOutput:
        """Run the graph stage for crops of `image_size` pixels."""
        return self.merge().refine(graph_inputs, image_size)

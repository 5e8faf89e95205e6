"""Folding of BatchNorm into adjacent layers, for inference."""

from typing import Any

from flax import nnx

from lcgcn_jax.models.functional import FunctionalModel
from lcgcn_jax.models.interfaces import FoldsBatchNorm
from lcgcn_jax.models.weights import Weights, split_weights


def fold_batch_norm(
    graphdef: nnx.GraphDef[Any], params: Weights, batch_stats: Weights
) -> FunctionalModel:
    """Fold BatchNorm into the layers before or after it; outputs in evaluation stay equal.

    In evaluation BatchNorm is one factor and one offset per channel, which are multiplied into the kernel and
    bias of an adjacent convolution or linear layer, in float64. Modules that can do this have a method
    `fold_batch_norm` (`interfaces.FoldsBatchNorm`). Norms without such a layer stay.

    Returns:
      The folded model, which cannot be trained or saved as a bundle.
    """
    model = FunctionalModel(graphdef, params, batch_stats).merge()
    for _, module in list(nnx.iter_modules(model)):
        if isinstance(module, FoldsBatchNorm):
            module.fold_batch_norm()
    return FunctionalModel(*split_weights(model))

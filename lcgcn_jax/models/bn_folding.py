"""BatchNorm folded into the layers beside it, for models that are done with training."""

from flax import nnx

from lcgcn_jax.models.weights import Weights, merge_weights, split_weights


def fold_batch_norm(
    graphdef: nnx.GraphDef, params: Weights, batch_stats: Weights
) -> tuple[nnx.GraphDef, Weights, Weights]:
    """Makes a model that computes the same in evaluation, with fewer norms.

    In evaluation a BatchNorm is one factor and one offset a channel. Where a convolution or a linear layer
    stands right before or behind it, these go into its kernel and bias, in float64. Every module says what
    it can fold by a method `fold_batch_norm()` (`layers.ConvBN`, `layers.MLP`, ...); a norm that has no such
    neighbor stays.

    Args:
      graphdef: the model, taken apart as by `weights.split_weights`.
      params: its parameters, arrays.
      batch_stats: its batch statistics, arrays.

    Returns:
      The folded model, taken apart. It cannot be trained, and a bundle does not hold it.
    """
    model = merge_weights(graphdef, params, batch_stats)
    for _, module in list(nnx.iter_modules(model)):
        if hasattr(module, "fold_batch_norm"):
            module.fold_batch_norm()
    return split_weights(model)

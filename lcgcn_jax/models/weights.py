"""Weights of a model as flat dictionaries: `{"heatmap_model.stem1.conv.kernel": array, ...}`.

Bundles store flat names, the optimizer groups weights by them, and error messages contain them.
"""

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from lcgcn_jax.models.interfaces import AnyArray

if TYPE_CHECKING:
    Weights = dict[str, jax.Array]
else:  # an abstract model has shapes and dtypes instead of arrays
    Weights = dict[str, jax.Array | jax.ShapeDtypeStruct]
"""Arrays by name, or only shapes and dtypes for an abstract model."""


def split_weights(model: nnx.Module) -> tuple[nnx.GraphDef[Any], Weights, Weights]:
    """Split a model into structure, parameters and batch statistics."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, _flatten(params), _flatten(batch_stats)


def merge_weights(graphdef: nnx.GraphDef[Any], params: Weights, batch_stats: Weights) -> Any:
    """Merge a split model. Its variables are copies, which can be updated under `jit`."""
    return nnx.merge(graphdef, _nest(params | batch_stats), copy=True)


def all_weights(model: nnx.Module) -> Weights:
    """Parameters and batch statistics of a model."""
    _, params, batch_stats = split_weights(model)
    return params | batch_stats


def batch_stats_of(model: nnx.Module) -> Weights:
    """Current batch statistics of a model."""
    return _flatten(nnx.state(model, nnx.BatchStat))


def to_vector(weights: Weights) -> Float[Array, "n"]:
    """Concatenate all weights, sorted by name."""
    return jnp.concatenate([weights[name].ravel() for name in sorted(weights)])


def from_vector(vector: AnyArray, like: Mapping[str, Any]) -> dict[str, AnyArray]:
    """Split a vector of `to_vector` into weights.

    Args:
      vector: `[n]`. The weights are views of a NumPy vector.
      like: for each name an object with the `shape` of the weight.

    Raises:
      ValueError: the length of the vector differs from the total size of the weights.
    """
    names = sorted(like)
    shapes = [like[name].shape for name in names]
    ends = list(itertools.accumulate(map(math.prod, shapes)))
    if vector.shape != (ends[-1],):
        raise ValueError(
            f"cannot split a vector of {vector.size} numbers into weights with {ends[-1]} numbers"
        )
    starts = [0, *ends[:-1]]
    return {
        name: vector[start:end].reshape(shape)
        for name, shape, start, end in zip(names, shapes, starts, ends, strict=True)
    }


def _flatten(state: PyTree) -> Weights:
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _nest(flat: Mapping[str, Any]) -> dict[str | int, Any]:
    nested: dict[str | int, Any] = {}
    for name, leaf in flat.items():
        # Items of lists have integer keys.
        *path, last = (int(part) if part.isdigit() else part for part in name.split("."))
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf
    return nested

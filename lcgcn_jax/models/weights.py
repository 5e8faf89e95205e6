"""A model's weights as flat dictionaries, `{"heatmap_model.stem1.conv.kernel": array, ...}`.

Flat names are what bundles store, what the optimizer groups by, and what an error can name.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

AnyArray = Array | np.ndarray  # on a device, or not

Weights = dict[str, jax.Array | jax.ShapeDtypeStruct]
"""Arrays by name; shapes and types alone where the model is an abstract one."""


def split_weights(model: nnx.Module) -> tuple[nnx.GraphDef, Weights, Weights]:
    """Takes a model apart into its structure, parameters and batch statistics."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, _flatten(params), _flatten(batch_stats)


def merge_weights(graphdef: nnx.GraphDef, params: Weights, batch_stats: Weights) -> nnx.Module:
    """Puts a model together again; its variables are its own and may be written to under `jit`."""
    return nnx.merge(graphdef, _nest(params | batch_stats), copy=True)


def all_weights(model: nnx.Module) -> Weights:
    """Parameters and batch statistics of a model."""
    _, params, batch_stats = split_weights(model)
    return params | batch_stats


def batch_stats_of(model: nnx.Module) -> Weights:
    """The model's batch statistics as they are now."""
    return _flatten(nnx.state(model, nnx.BatchStat))


def to_vector(weights: Weights) -> Float[Array, "n"]:
    """All of them behind each other, in the order of their names."""
    return jnp.concatenate([weights[name].ravel() for name in sorted(weights)])


def from_vector(vector: AnyArray, like: Mapping[str, Any]) -> dict[str, AnyArray]:
    """The opposite of `to_vector`.

    Args:
      vector: `[n]`; NumPy's gives views of itself.
      like: what has a `shape`, by name, for each of the weights.

    Raises:
      ValueError: the vector is not as long as they are together.
    """
    names = sorted(like)
    shapes = [like[name].shape for name in names]
    ends = list(itertools.accumulate(map(math.prod, shapes)))
    if vector.shape != (ends[-1],):
        raise ValueError(f"{vector.size} numbers for weights of {ends[-1]}")
    starts = [0, *ends[:-1]]
    return {
        name: vector[start:end].reshape(shape)
        for name, shape, start, end in zip(names, shapes, starts, ends, strict=True)
    }


def _flatten(state: PyTree) -> Weights:
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _nest(flat: Mapping[str, Any]) -> dict:
    nested: dict = {}
    for name, leaf in flat.items():
        # Members of a list have their place as key.
        *path, last = (int(part) if part.isdigit() else part for part in name.split("."))
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf
    return nested

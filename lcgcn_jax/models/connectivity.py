"""Edge weights (adjacency) of the landmark graph."""

# Types of JAX functions are partially unknown.
# pyright: reportUnknownMemberType=false
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lcgcn_jax.models.config import Connectivity, Diagonal, EdgeInputs, Norm
from lcgcn_jax.models.layers import MLP

Edges = Float[Array, "b k k"]
Confidence = Float[Array, "b k"]


def all_pairs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Map f(a, b) over all pairs: `[k ...], [k ...]` to `[k k ...]`, where entry i, j is f(x_i, x_j)."""
    return jax.vmap(jax.vmap(function, in_axes=(None, 0)), in_axes=(0, None))


def _join(a: Array, b: Array) -> Array:
    return jnp.concatenate([a, b], axis=-1)


def log_of(confidence: Confidence) -> Confidence:
    """Logarithm of confidences, finite where a confidence is 0."""
    return jnp.log(jnp.maximum(confidence, 1e-6))


class PerImageEdges(nnx.Module):
    """Edge weights that are predicted for each image (section 3.2 of the paper).

    `l_ij = MLP(g(l_i) (+) g(l_j))` from the one-hot classes of the landmarks, once per batch, and
    `e_ij = softmax_j MLP([c_i, c_j] (+) l_ij)` from the confidences, both over all pairs.

    Args:
      class_widths: widths of the class MLP; the last one is the length of l_ij.
      diagonal: `learned`: an edge from a node to itself is predicted like all others; `zero`: its logit is 0
        (the authors' code).
      norm: normalization in the MLPs: `batch` (the authors' code), `layer` or `none`.
      inputs: inputs of the edge MLP for the two landmarks: their confidences `[c_i, c_j]` (the paper), their
        visibility logits `[v_i, v_j]`, or both.
      self_logit: initial value of a learned logit on the diagonal; None: no such logit.
      activate_logits: whether ReLU and norm follow the last layer of the edge MLP (the authors' code).
    """

    def __init__(
        self,
        num_landmarks: int,
        *,
        class_widths: tuple[int, ...],
        edge_widths: tuple[int, ...],
        diagonal: Diagonal,
        norm: Norm,
        log_confidence: bool = False,
        inputs: EdgeInputs = "confidence",
        self_logit: float | None = None,
        activate_logits: bool = False,
        bn_momentum: float,
        rngs: nnx.Rngs,
    ):
        # float32 on every backend: the graph is small, and its softmax needs the precision.
        options: dict[str, Any] = {
            "norm": norm,
            "momentum": bn_momentum,
            "dtype": jnp.float32,
            "rngs": rngs,
        }
        self.num_landmarks, self.diagonal = num_landmarks, diagonal
        self.log_confidence, self.inputs = log_confidence, inputs
        self.self_logit = (
            None if self_logit is None else nnx.Param(jnp.full((num_landmarks,), self_logit))
        )
        self.class_mlp = MLP(2 * num_landmarks, class_widths, last_relu=True, **options)
        self.edge_mlp = MLP(
            (4 if inputs == "both" else 2) + class_widths[-1],
            (*edge_widths, 1),
            last_relu=activate_logits,
            last_norm=activate_logits,
            **options,
        )

    def __call__(
        self, confidence: Confidence, visible_logit: Confidence | None = None, *, train: bool
    ) -> Edges:
        classes = self.class_mlp.of_class_pairs(train=train)
        scalars = (log_of(confidence) if self.log_confidence else confidence)[..., None]
        if self.inputs != "confidence":
            assert visible_logit is not None, "ModelConfig rejects these edges without the head"
            visible = visible_logit[..., None]
            scalars = _join(scalars, visible) if self.inputs == "both" else visible
        pairs = jax.vmap(all_pairs(_join))(scalars, scalars)
        classes = jnp.broadcast_to(classes, (*pairs.shape[:-1], classes.shape[-1]))
        logits = self.edge_mlp(_join(pairs, classes), train=train)[..., 0]
        if self.self_logit is not None:
            logits = logits + jnp.diag(self.self_logit[...])[None]
        if self.diagonal == "zero":
            # A NumPy array, and therefore a constant: onnxruntime has no boolean EyeLike.
            logits = jnp.where(np.eye(self.num_landmarks, dtype=bool), 0.0, logits)
        return jax.nn.softmax(logits, axis=-1)


class StaticEdges(nnx.Module):
    """One learned k x k matrix for all images (Li et al. 2020), with a softmax over each row.

    Args:
      self_logit: initial logit of the diagonal; all others start at 0.
    """

    def __init__(self, num_landmarks: int, self_logit: float = 0.0):
        self.logits = nnx.Param(self_logit * jnp.eye(num_landmarks, dtype=jnp.float32))

    def __call__(
        self, confidence: Confidence, visible_logit: Confidence | None = None, *, train: bool
    ) -> Edges:
        del visible_logit, train
        edges = jax.nn.softmax(self.logits[...], axis=-1)
        return jnp.broadcast_to(edges, (confidence.shape[0], *edges.shape))


class FixedEdges(nnx.Module):
    """Constant edge weights: `uniform`, 1/k everywhere, or `self_only`, the identity."""

    def __init__(self, num_landmarks: int, kind: Connectivity):
        self.num_landmarks, self.kind = num_landmarks, kind

    def __call__(
        self, confidence: Confidence, visible_logit: Confidence | None = None, *, train: bool
    ) -> Edges:
        del visible_logit, train
        k = self.num_landmarks
        edges = jnp.full((k, k), 1 / k) if self.kind == "uniform" else jnp.eye(k)
        return jnp.broadcast_to(edges.astype(jnp.float32), (confidence.shape[0], k, k))


class VisibilityGate(nnx.Module):
    """Scale each message by the visibility of its source: `e_ij p_j^a`, normalized over j.

    p_j is the probability that landmark j is visible. The exponent a is learned and starts at 1.
    """

    def __init__(self):
        self.exponent = nnx.Param(jnp.ones((), jnp.float32))

    def __call__(self, edges: Edges, visible_logit: Confidence) -> Edges:
        # The lower bound keeps a row normalizable if all of its sources are hidden.
        log_visible = jnp.maximum(jax.nn.log_sigmoid(visible_logit), -5.0)
        weights = edges * jnp.exp(self.exponent[...] * log_visible)[:, None, :]
        return weights / weights.sum(axis=-1, keepdims=True)

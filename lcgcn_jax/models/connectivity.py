"""Edges of the landmark graph: who listens to whom, and how much."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lcgcn_jax.models.layers import MLP

KINDS = ("learned_per_image", "learned_static", "uniform", "self_only")
DIAGONALS = ("learned", "zero")
EDGE_INPUTS = ("confidence", "visibility", "both")
GATES = ("none", "visibility")

Edges = Float[Array, "b k k"]
Confidence = Float[Array, "b k"]


def all_pairs(function: Callable) -> Callable:
    """Maps f(a, b) over all pairs: `[k ...], [k ...]` to `[k k ...]`, entry i, j being f(x_i, x_j)."""
    return jax.vmap(jax.vmap(function, in_axes=(None, 0)), in_axes=(0, None))


def _join(a: Array, b: Array) -> Array:
    return jnp.concatenate([a, b], axis=-1)


def log_of(confidence: Confidence) -> Confidence:
    """Logarithm of confidences, finite where one is 0."""
    return jnp.log(jnp.maximum(confidence, 1e-6))


class PerImageEdges(nnx.Module):
    """The paper's connectivity, predicted for each image (section 3.2).

    `l_ij = MLP(g(l_i) (+) g(l_j))` from the landmarks' one-hot classes, once for the batch, and
    `e_ij = softmax_j MLP([c_i, c_j] (+) l_ij)` from the confidences, both over all pairs.

    Args:
      num_landmarks: k.
      class_widths: widths of the class MLP; the last is the length of l_ij.
      edge_widths: hidden widths of the edge MLP.
      diagonal: `learned`: an edge to itself is predicted like any; `zero`: its logit is 0 (the authors'
        code).
      norm: in the MLPs: `batch` (the authors' code), `layer` or `none`.
      log_confidence: give the edge MLP log c instead of c.
      inputs: what the edge MLP gets of the two landmarks, one of `EDGE_INPUTS`: their confidences
        `[c_i, c_j]` (the paper), their visibility logits `[v_i, v_j]`, or `both`.
      self_logit: start of a learned logit on each landmark's edge to itself; None: there is none.
      edge_end: what the edge MLP's last layer is followed by, one of `layers.MLP_ENDS`.
      bn_momentum: part of the running statistics kept a step.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        num_landmarks: int,
        *,
        class_widths: tuple[int, ...],
        edge_widths: tuple[int, ...],
        diagonal: str,
        norm: str,
        log_confidence: bool = False,
        inputs: str = "confidence",
        self_logit: float | None = None,
        edge_end: str = "linear",
        bn_momentum: float,
        rngs: nnx.Rngs,
    ):
        if diagonal not in DIAGONALS:
            raise ValueError(f"unknown diagonal {diagonal!r}; use one of {DIAGONALS}")
        # The graph is small and its softmax wants digits: float32 on every backend.
        make = {"norm": norm, "momentum": bn_momentum, "dtype": jnp.float32, "rngs": rngs}
        self.num_landmarks, self.diagonal = num_landmarks, diagonal
        self.log_confidence, self.inputs = log_confidence, inputs
        self.self_logit = (
            None if self_logit is None else nnx.Param(jnp.full((num_landmarks,), self_logit))
        )
        self.class_mlp = MLP(2 * num_landmarks, class_widths, end="relu", **make)
        scalars = 4 if inputs == "both" else 2
        self.edge_mlp = MLP(scalars + class_widths[-1], (*edge_widths, 1), end=edge_end, **make)

    def __call__(
        self, confidence: Confidence, visible_logit: Confidence | None = None, *, train: bool
    ) -> Edges:
        one_hot = jnp.eye(self.num_landmarks, dtype=jnp.float32)
        classes = self.class_mlp(all_pairs(_join)(one_hot, one_hot), train=train)
        c = (log_of(confidence) if self.log_confidence else confidence)[..., None]
        if self.inputs != "confidence":
            assert visible_logit is not None, "LCGCN refuses these edges without a visibility head"
            v = visible_logit[..., None]
            c = _join(c, v) if self.inputs == "both" else v
        pairs = jax.vmap(all_pairs(_join))(c, c)
        classes = jnp.broadcast_to(classes, (*pairs.shape[:-1], classes.shape[-1]))
        logits = self.edge_mlp(_join(pairs, classes), train=train)[..., 0]
        if self.self_logit is not None:
            logits = logits + jnp.diag(self.self_logit[...])[None]
        if self.diagonal == "zero":
            # NumPy's, and so a constant: of booleans, onnxruntime cannot make one.
            logits = jnp.where(np.eye(self.num_landmarks, dtype=bool), 0.0, logits)
        return jax.nn.softmax(logits, axis=-1)


class StaticEdges(nnx.Module):
    """One learned k x k matrix for all images (Li et al. 2020), its rows normalized by softmax.

    Args:
      num_landmarks: k.
      self_logit: where the diagonal of the logits starts; the rest starts at 0.
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
    """Edges that nothing is learned of: `uniform`, 1/k everywhere, or `self_only`, the identity."""

    def __init__(self, num_landmarks: int, kind: str):
        self.num_landmarks, self.kind = num_landmarks, kind

    def __call__(
        self, confidence: Confidence, visible_logit: Confidence | None = None, *, train: bool
    ) -> Edges:
        del visible_logit, train
        k = self.num_landmarks
        edges = jnp.full((k, k), 1 / k) if self.kind == "uniform" else jnp.eye(k)
        return jnp.broadcast_to(edges.astype(jnp.float32), (confidence.shape[0], k, k))


class VisibilityGate(nnx.Module):
    """Scales each message by the visibility of its sender: `e_ij p_j^a`, normalized over j.

    p_j is the probability that landmark j is visible, and a is learned, from 1 on.
    """

    def __init__(self):
        self.exponent = nnx.Param(jnp.ones((), jnp.float32))

    def __call__(self, edges: Edges, visible_logit: Confidence) -> Edges:
        # The floor keeps a row whose edges all come from hidden landmarks normalizable.
        log_visible = jnp.maximum(jax.nn.log_sigmoid(visible_logit), -5.0)
        weights = edges * jnp.exp(self.exponent[...] * log_visible)[:, None, :]
        return weights / weights.sum(axis=-1, keepdims=True)

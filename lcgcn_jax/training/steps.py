"""Pure functions of one training step and of prediction; `sharding` compiles them."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from lcgcn_jax import heatmaps, losses
from lcgcn_jax.errors import InputError
from lcgcn_jax.geometry import input_to_heatmap
from lcgcn_jax.models.functional import FunctionalModel
from lcgcn_jax.models.lcgcn import GraphInputs, LCGCNOutput, normalize_images
from lcgcn_jax.models.visibility import log_probabilities
from lcgcn_jax.models.weights import Weights, batch_stats_of, merge_weights, to_vector
from lcgcn_jax.training.optimizer import TRAINED
from lcgcn_jax.training.state import TrainState

Batch = dict[str, Array | GraphInputs]
Scalars = dict[str, Float[Array, ""]]


HEATMAP_LOSSES = ("focal", "mse", "adaptive_wing")
COORDINATE_LOSSES = {"l1": losses.l1, "smooth_l1": losses.smooth_l1, "wing": losses.wing}

_FRAME = 256  # px; the side of the crops in whose pixels Wing's and smooth L1's constants are


def check_losses(config: Mapping[str, Any], activation: str) -> None:
    """Refuses losses that are not there, or do not fit the model.

    Args:
      config: as `total_loss` takes it.
      activation: the model's, one of `heatmaps.ACTIVATIONS`.

    Raises:
      InputError: with the names that there are.
    """
    for field, known in (("heatmap", HEATMAP_LOSSES), ("coordinate", COORDINATE_LOSSES)):
        if config[field] not in known:
            near = difflib.get_close_matches(config[field], known, n=1, cutoff=0.0)
            raise InputError(
                f"config loss.{field}: unknown loss {config[field]!r}; did you mean {near[0]!r}? "
                f"There are {', '.join(known)}"
            )
    if config["heatmap"] == "focal" and activation != "sigmoid":
        raise InputError(
            f"config loss.heatmap: focal is for a sigmoid, but model.heatmap.activation is "
            f"{activation!r}; use mse or adaptive_wing"
        )


def total_loss(
    output: LCGCNOutput,
    landmarks: Float[Array, "b k 2"],
    visible: Bool[Array, "b k"],
    *,
    config: Mapping[str, Any],
    groups: tuple[str, ...],
    size: int,
    activation: heatmaps.Activation = "sigmoid",
    heatmap_offset: float | None = None,
    visibility: Int[Array, "b k"] | None = None,
) -> tuple[Float[Array, ""], Scalars]:
    """The paper's L = lambda1 L1 + lambda2 focal, or others in their place, of the stages that train.

    A graph of several turns is held to the truth in every one. A visibility head, which trains with the
    graph, adds a cross entropy.

    Args:
      output: what the model said.
      landmarks: the truth, in crop pixels.
      visible: which of them are annotated.
      config: `sigma` (cells), `heatmap` (one of `HEATMAP_LOSSES`), `coordinate` (one of
        `COORDINATE_LOSSES`), `coordinate_weight` (lambda1), `heatmap_weight` (lambda2), and for a visibility
        head `visibility_weight` and `visibility_class_weights`.
      groups: the groups that train.
      size: side of the crops. Coordinate losses are taken in pixels of a crop of 256 px, where the
        constants of Wing and smooth L1 belong, and are then divided by 256: large errors count as much
        in all of them, and the L1 is in parts of the crop, like the graph's coordinates.
      activation: the model's, one of `heatmaps.ACTIVATIONS`.
      heatmap_offset: the model's; None as in `geometry.input_to_heatmap`.
      visibility: labels of the classes `models.visibility.CLASSES`, -1 where unknown; a visibility head
        needs them.

    Returns:
      The loss, and its parts by name before weighting.
    """
    parts, total = {}, jnp.zeros((), jnp.float32)
    if "heatmap" in groups:
        name = config["heatmap"]
        logits = output.heatmap_logits
        assert logits is not None, "the heatmap stage trains"
        hh, hw = logits.shape[1:3]
        cells = input_to_heatmap(landmarks, size / hw, heatmap_offset)
        # The focal loss takes a peak of exactly 1 as its positive; the others take the point as it is.
        targets = heatmaps.encode(cells, (hh, hw), sigma=config["sigma"], subpixel=name != "focal")
        if name == "focal":
            parts[name] = losses.focal(logits, targets, visible)
        else:
            loss = losses.mse if name == "mse" else losses.adaptive_wing
            parts[name] = loss(heatmaps.activate(logits, activation), targets, visible)
        total = total + config["heatmap_weight"] * parts[name]
    if "graph" in groups:
        name = config["coordinate"]
        scale = _FRAME / size
        stages = output.stages.shape[1]
        loss = COORDINATE_LOSSES[name](
            (output.stages * scale).reshape(-1, *landmarks.shape[1:]),
            jnp.repeat(landmarks * scale, stages, axis=0),
            jnp.repeat(visible, stages, axis=0),
        )
        parts[name] = loss / _FRAME
        total = total + config["coordinate_weight"] * parts[name]
        if output.visibility_logits is not None:
            parts["visibility"] = losses.masked_cross_entropy(
                log_probabilities(output.visibility_logits),
                visibility,
                config["visibility_class_weights"],
            )
            total = total + config["visibility_weight"] * parts["visibility"]
    return total, parts


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    trained: frozenset[str],
    *,
    mode: str,
    loss_config: Mapping[str, Any],
    image_size: int,
    ema_decay: float,
) -> Callable[[TrainState, Batch], tuple[TrainState, Scalars]]:
    """Makes the pure function `train_step(state, batch) -> (state, scalars)`.

    A batch is `image` uint8 [b s s 3], s being `image_size`, `landmarks` float32 [b k 2] in crop pixels
    and `visible` bool [b k]; for a model with a visibility head also `visibility`, int8 [b k], the
    labels (`total_loss`). Where the heatmap model does not train, `graph_inputs`, what it said of the
    images (`LCGCN.detect`), may be there in their place. The scalars are the loss, its parts, the norm
    of its gradient, and that of the trained parameters after the step.
    """
    groups = TRAINED[mode]

    def loss_of(learnt: Weights, state: TrainState, batch: Batch):
        # Parameters that do not train get no gradient: the backward pass stops where they begin.
        model = merge_weights(graphdef, state.params | learnt, state.batch_stats)
        if "graph_inputs" in batch:
            output = model.refine(batch["graph_inputs"], image_size, train=True)
        else:
            output = model(
                normalize_images(batch["image"]),
                train_heatmap="heatmap" in groups,
                train_graph="graph" in groups,
            )
        total, parts = total_loss(
            output,
            batch["landmarks"],
            batch["visible"],
            config=loss_config,
            groups=groups,
            size=image_size,
            activation=model.activation,
            heatmap_offset=model.heatmap_offset,
            visibility=batch.get("visibility"),
        )
        return total, (parts, batch_stats_of(model))

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        learnt = {name: state.params[name] for name in sorted(trained)}
        (loss, (parts, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            learnt, state, batch
        )
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic mixes types
            updates, opt_state = optimizer.update(gradients, state.opt_state, learnt)
        learnt = optax.apply_updates(learnt, updates)
        params = state.params | learnt
        step = state.step + 1
        scalars = {
            "loss": loss,
            **parts,
            "gradient_norm": _norm(gradients),
            "parameter_norm": _norm(learnt),
        }
        ema = state.ema
        if ema is not None:
            # Early on the average would be of the initial weights; see Polyak averaging with warm-up.
            count = step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
            ema = decay * ema + (1 - decay) * to_vector(params | batch_stats)
        return TrainState(step, params, batch_stats, opt_state, ema), scalars

    return train_step


def _norm(weights: Weights) -> Float[Array, ""]:
    """Euclidean, of all together. In one piece: XLA takes 10 s to compile a sum for each of W18's."""
    return jnp.linalg.norm(to_vector(weights))


def make_detect_step(
    graphdef: nnx.GraphDef,
) -> Callable[[Weights, Weights, UInt8[Array, "b s s 3"]], GraphInputs]:
    """Makes the pure function `detect_step(params, batch_stats, images) -> GraphInputs`."""

    def detect_step(params: Weights, batch_stats: Weights, images: UInt8[Array, "b s s 3"]):
        return FunctionalModel(graphdef, params, batch_stats).detect(images)

    return detect_step


def make_refine_step(
    graphdef: nnx.GraphDef, image_size: int
) -> Callable[[Weights, Weights, GraphInputs], LCGCNOutput]:
    """Makes the pure function `refine_step(params, batch_stats, graph_inputs) -> LCGCNOutput`."""

    def refine_step(params: Weights, batch_stats: Weights, graph_inputs: GraphInputs):
        return FunctionalModel(graphdef, params, batch_stats).refine(graph_inputs, image_size)

    return refine_step


def make_predict_step(
    graphdef: nnx.GraphDef,
) -> Callable[[Weights, Weights, UInt8[Array, "b s s 3"]], LCGCNOutput]:
    """Makes the pure function `predict_step(params, batch_stats, images) -> LCGCNOutput`."""

    def predict_step(params: Weights, batch_stats: Weights, images: UInt8[Array, "b s s 3"]):
        return FunctionalModel(graphdef, params, batch_stats).predict(images)

    return predict_step

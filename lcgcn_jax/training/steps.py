"""Pure functions of a training step and of prediction; `sharding` compiles them."""

from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lcgcn_jax import heatmaps, losses
from lcgcn_jax.errors import InputError
from lcgcn_jax.geometry import input_to_heatmap
from lcgcn_jax.models.functional import FunctionalModel
from lcgcn_jax.models.lcgcn import LCGCNOutput, normalize_images
from lcgcn_jax.models.visibility import log_probabilities
from lcgcn_jax.models.weights import Weights, batch_stats_of, merge_weights, to_vector
from lcgcn_jax.training.config_types import Config, CoordinateLoss, LossConfig
from lcgcn_jax.training.optimizer import TRAINED
from lcgcn_jax.training.state import TrainState

Batch = dict[str, Any]
"""Arrays `[b ...]` by name, and `GraphInputs` as `graph_inputs`."""
Scalars = dict[str, Float[Array, ""]]

COORDINATE_LOSSES: dict[CoordinateLoss, Callable[..., Float[Array, ""]]] = {
    "l1": losses.l1,
    "smooth_l1": losses.smooth_l1,
    "wing": losses.wing,
    "normalized_l2": losses.normalized_l2,
}

_FRAME = 256  # side in px of the crops for which the constants of Wing and smooth L1 are defined


def check_activation(loss: LossConfig, activation: str) -> None:
    """Check that the heatmap loss is compatible with the activation of the heatmap model.

    Args:
      activation: one of `heatmaps.ACTIVATIONS`.

    Raises:
      InputError: they are not compatible.
    """
    if loss.heatmap in ("focal", "bce") and activation != "sigmoid":
        raise InputError(
            f"config loss.heatmap: {loss.heatmap} needs a sigmoid, but model.heatmap.activation is "
            f"{activation!r}; use mse or adaptive_wing"
        )


def total_loss(
    output: LCGCNOutput,
    landmarks: Float[Array, "b k 2"],
    visible: Bool[Array, "b k"],
    *,
    config: LossConfig,
    groups: tuple[str, ...],
    size: int,
    activation: heatmaps.Activation = "sigmoid",
    heatmap_offset: float | None = None,
    visibility: Int[Array, "b k"] | None = None,
) -> tuple[Float[Array, ""], Scalars]:
    """Weighted sum of the losses of the stages that train; the paper's is lambda1 L1 + lambda2 focal.

    Every refinement stage of the graph is supervised. A visibility head, which trains with the graph, adds a
    cross entropy.

    Args:
      landmarks: the true landmarks, in crop pixels.
      size: side of the crops. Coordinate losses are computed in pixels of a 256 px crop, for which the
        constants of Wing and smooth L1 are defined, and divided by 256: their gradients are equal for large
        errors, and the L1 is in fractions of the crop, like the coordinates of the graph.
      activation: the model's, one of `heatmaps.ACTIVATIONS`.
      heatmap_offset: the model's; None as in `geometry.input_to_heatmap`.
      visibility: labels of the classes `models.visibility.CLASSES`, -1 where unknown; a visibility head
        needs them.

    Returns:
      The loss, and its parts by name before weighting.
    """
    parts, total = {}, jnp.zeros((), jnp.float32)
    if "heatmap" in groups:
        name = config.heatmap
        assert output.heatmap_logits is not None, "the heatmap stage trains"
        logits = jnp.asarray(output.heatmap_logits)
        hh, hw = logits.shape[1:3]
        points = input_to_heatmap(landmarks, size / hw, heatmap_offset)
        # The focal loss needs a pixel with a target of exactly 1; the others take the position itself.
        targets = heatmaps.encode(points, (hh, hw), sigma=config.sigma, subpixel=name != "focal")
        if name in ("focal", "bce"):
            parts[name] = getattr(losses, name)(logits, targets, visible)
        else:
            loss = losses.mse if name == "mse" else losses.adaptive_wing
            parts[name] = loss(heatmaps.activate(logits, activation), targets, visible)
        total = total + config.heatmap_weight * parts[name]
        if config.heatmap_coordinate != "none":
            # Accelerators would round the positions to bfloat16 or TF32.
            with jax.default_matmul_precision("highest"):
                loss = heatmap_coordinate_loss(logits, points, visible, config)
            parts["heatmap_coordinate"] = loss
            total = total + config.heatmap_coordinate_weight * parts["heatmap_coordinate"]
    if "graph" in groups:
        name = config.coordinate
        scale = _FRAME / size
        assert output.stages is not None, "the graph stage trains"
        stages = output.stages.shape[1]
        loss = COORDINATE_LOSSES[name](
            (jnp.asarray(output.stages) * scale).reshape(-1, *landmarks.shape[1:]),
            jnp.repeat(landmarks * scale, stages, axis=0),
            jnp.repeat(visible, stages, axis=0),
        )
        # Already a fraction, of the face's size.
        parts[name] = loss if name == "normalized_l2" else loss / _FRAME
        total = total + config.coordinate_weight * parts[name]
        if output.visibility_logits is not None:
            assert visibility is not None, "a visibility head needs labels"
            parts["visibility"] = losses.masked_cross_entropy(
                log_probabilities(jnp.asarray(output.visibility_logits)),
                visibility,
                config.visibility_class_weights,
            )
            total = total + config.visibility_weight * parts["visibility"]
    return total, parts


def heatmap_coordinate_loss(
    logits: Float[Array, "b hh hw k"],
    points: Float[Array, "b k 2"],
    visible: Bool[Array, "b k"],
    config: LossConfig,
) -> Float[Array, ""]:
    """Coordinate loss of the heatmap stage, on the means of whole heatmaps.

    Landmarks outside the heatmap do not count, because no mean can reach them.

    Args:
      points: the true landmarks, in heatmap pixels.

    Returns:
      `l1` and `smooth_l1` (linear from 1 px of a 256 px crop) in fractions of the crop, like the coordinate
      loss of the graph; `star` without a unit, with eigenvalues in units of half a crop, as in the code of
      its authors.
    """
    hh, hw = logits.shape[1:3]
    mean, covariance = heatmaps.moments(
        logits, normalization=config.heatmap_normalization, temperature=config.heatmap_temperature
    )
    last = jnp.array([[[hw - 0.5, hh - 0.5]]], points.dtype)
    visible = visible & ((points >= -0.5) & (points < last)).all(axis=-1)
    if config.heatmap_coordinate == "star":
        return losses.star(mean, covariance, points, visible, restriction=1 / (hh * hw / 4))
    assert config.heatmap_coordinate != "none"
    scale = _FRAME / hw
    loss = COORDINATE_LOSSES[config.heatmap_coordinate]
    return loss(mean * scale, points * scale, visible) / _FRAME


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    trained: frozenset[str],
    config: Config,
) -> Callable[[TrainState, Batch], tuple[TrainState, Scalars]]:
    """Make the pure function `train_step(state, batch) -> (state, scalars)`.

    A batch has `image` uint8 [b s s 3] with s = `data.image_size`, `landmarks` float32 [b k 2] in crop
    pixels, `visible` bool [b k], and for a model with a visibility head `visibility` int8 [b k], the labels
    (`total_loss`). If the heatmap model does not train, `graph_inputs` (`LCGCN.detect`) can replace `image`.
    The scalars are the loss, its unweighted parts, the norm of its gradient, and the norm of the trained
    parameters after the step.

    Args:
      config: uses `data.image_size`, `loss`, `train.mode` and `train.ema_decay`.
    """
    groups = TRAINED[config.train.mode]
    image_size, ema_decay = config.data.image_size, config.train.ema_decay

    def loss_of(learned: Weights, state: TrainState, batch: Batch):
        # The other parameters are constants, so the backward pass does not compute their gradients.
        model = merge_weights(graphdef, state.params | learned, state.batch_stats)
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
            config=config.loss,
            groups=groups,
            size=image_size,
            activation=model.activation,
            heatmap_offset=model.heatmap_offset,
            visibility=batch.get("visibility"),
        )
        return total, (parts, batch_stats_of(model))

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        learned = {name: state.params[name] for name in sorted(trained)}
        (loss, (parts, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            learned, state, batch
        )
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types
            updates, opt_state = optimizer.update(gradients, state.opt_state, learned)
        learned = cast(Weights, optax.apply_updates(learned, updates))  # typed as any tree
        params = state.params | learned
        step = state.step + 1
        scalars = {
            "loss": loss,
            **parts,
            "gradient_norm": _norm(gradients),
            "parameter_norm": _norm(learned),
        }
        ema = state.ema
        if ema is not None:
            # With a warm-up of the decay, so that early averages do not hold the initial weights.
            count = step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
            ema = decay * ema + (1 - decay) * to_vector(params | batch_stats)
        return TrainState(step, params, batch_stats, opt_state, ema), scalars

    return train_step


def _norm(weights: Weights) -> Float[Array, ""]:
    """Euclidean norm of all weights as one vector: XLA takes 10 s to compile a sum per weight of W18."""
    return jnp.linalg.norm(to_vector(weights))


def make_inference_step(
    graphdef: nnx.GraphDef, method: Literal["predict", "detect", "refine"], *arguments: Any
) -> Callable[[Weights, Weights, Any], Any]:
    """Make the pure function `step(params, batch_stats, inputs)` of a method of `FunctionalModel`."""

    def step(params: Weights, batch_stats: Weights, inputs: Any) -> Any:
        return getattr(FunctionalModel(graphdef, params, batch_stats), method)(inputs, *arguments)

    return step

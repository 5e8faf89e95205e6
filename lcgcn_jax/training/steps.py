"""Pure functions of one training step and of prediction; `sharding` compiles them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from lcgcn_jax import heatmaps, losses
from lcgcn_jax.geometry import input_to_heatmap
from lcgcn_jax.models.lcgcn import LCGCNOutput, normalize_images
from lcgcn_jax.models.weights import Weights, batch_stats_of, merge_weights
from lcgcn_jax.training.optimizer import TRAINED
from lcgcn_jax.training.state import TrainState

Batch = dict[str, Array]
Scalars = dict[str, Float[Array, ""]]


def total_loss(
    output: LCGCNOutput,
    landmarks: Float[Array, "b k 2"],
    visible: Bool[Array, "b k"],
    *,
    config: Mapping[str, Any],
    groups: tuple[str, ...],
    size: int,
) -> tuple[Float[Array, ""], Scalars]:
    """The paper's L = lambda1 L1 + lambda2 focal, of the stages that train.

    Args:
      output: what the model said.
      landmarks: the truth, in crop pixels.
      visible: which of them are annotated.
      config: `sigma` (cells), `coordinate_weight` (lambda1) and `heatmap_weight` (lambda2).
      groups: the groups that train.
      size: side of the crops; the L1 is in parts of it, like the graph's coordinates.

    Returns:
      The loss, and its parts by name before weighting.
    """
    parts, total = {}, jnp.zeros((), jnp.float32)
    if "heatmap" in groups:
        hh, hw = output.heatmap_logits.shape[1:3]
        cells = input_to_heatmap(landmarks, size / hw)
        targets = heatmaps.encode(cells, (hh, hw), sigma=config["sigma"])
        parts["focal"] = losses.focal(output.heatmap_logits, targets, visible)
        total = total + config["heatmap_weight"] * parts["focal"]
    if "graph" in groups:
        parts["l1"] = losses.l1(output.landmarks / size, landmarks / size, visible)
        total = total + config["coordinate_weight"] * parts["l1"]
    return total, parts


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    trained: frozenset[str],
    *,
    mode: str,
    loss_config: Mapping[str, Any],
    ema_decay: float,
) -> Callable[[TrainState, Batch], tuple[TrainState, Scalars]]:
    """Makes the pure function `train_step(state, batch) -> (state, scalars)`.

    A batch is `image` uint8 [b s s 3], `landmarks` float32 [b k 2] in crop pixels and `visible` bool
    [b k]. The scalars are the loss, its parts and the norm of the gradient.
    """
    groups = TRAINED[mode]

    def loss_of(learnt: Weights, state: TrainState, batch: Batch):
        # Parameters that do not train get no gradient: the backward pass stops where they begin.
        model = merge_weights(graphdef, state.params | learnt, state.batch_stats)
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
            size=batch["image"].shape[2],
        )
        return total, (parts, batch_stats_of(model))

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        learnt = {name: state.params[name] for name in sorted(trained)}
        (loss, (parts, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            learnt, state, batch
        )
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic mixes types
            updates, opt_state = optimizer.update(gradients, state.opt_state, learnt)
        params = state.params | optax.apply_updates(learnt, updates)
        step = state.step + 1
        scalars = {"loss": loss, **parts, "gradient_norm": optax.tree.norm(gradients)}
        ema = state.ema
        if ema:
            # Early on the average would be of the initial weights; see Polyak averaging with warm-up.
            count = step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
            ema = {
                name: decay * average + (1 - decay) * new
                for (name, average), new in zip(
                    sorted(ema.items()),
                    (value for _, value in sorted((params | batch_stats).items())),
                    strict=True,
                )
            }
        return TrainState(step, params, batch_stats, opt_state, ema), scalars

    return train_step


def make_predict_step(
    graphdef: nnx.GraphDef,
) -> Callable[[Weights, Weights, UInt8[Array, "b s s 3"]], LCGCNOutput]:
    """Makes the pure function `predict_step(params, batch_stats, images) -> LCGCNOutput`."""

    def predict_step(params: Weights, batch_stats: Weights, images: UInt8[Array, "b s s 3"]):
        return merge_weights(graphdef, params, batch_stats)(normalize_images(images))

    return predict_step

"""Losses on heatmaps and coordinates.

Landmarks that are not visible do not count: their truth may be anything, NaN included.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Visible = Bool[Array, "b k"]


def focal(
    logits: Float[Array, "b hh hw k"],
    targets: Float[Array, "b hh hw k"],
    visible: Visible,
    *,
    alpha: float = 2.0,
    beta: float = 4.0,
) -> Float[Array, ""]:
    """Penalty-reduced focal loss, the mean over visible landmarks of the sum over their cells.

    With p the sigmoid of a cell and t its target: `-(1 - p)^alpha log p` where t = 1, elsewhere
    `-(1 - t)^beta p^alpha log(1 - p)` (Law and Deng 2018, eq. 1; the paper's heatmap loss).
    """
    logits = logits.astype(jnp.float32)
    targets = jnp.where(visible[:, None, None], targets, 0.0)
    p = jax.nn.sigmoid(logits)
    positive = (1 - p) ** alpha * jax.nn.log_sigmoid(logits)
    negative = (1 - targets) ** beta * p**alpha * jax.nn.log_sigmoid(-logits)
    per_landmark = -jnp.where(targets >= 1, positive, negative).sum(axis=(1, 2))
    return masked_mean(per_landmark, visible)


def l1(
    predicted: Float[Array, "b k 2"], true: Float[Array, "b k 2"], visible: Visible
) -> Float[Array, ""]:
    """Mean absolute error over the coordinates of visible landmarks, in the unit of the inputs."""
    return masked_mean(jnp.abs(predicted - true).mean(axis=-1), visible)


def masked_mean(values: Float[Array, "b k"], mask: Visible) -> Float[Array, ""]:
    """Mean of the values under the mask; 0 where the mask is empty."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1).astype(values.dtype)

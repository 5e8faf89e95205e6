"""Losses on heatmaps and coordinates.

Landmarks that are not visible do not count: their truth may be anything, NaN included.
"""

# Types of JAX functions are partially unknown.
# pyright: reportUnknownMemberType=false
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Heatmaps = Float[Array, "b hh hw k"]
Points = Float[Array, "b k 2"]
Visible = Bool[Array, "b k"]


def focal(
    logits: Heatmaps,
    targets: Heatmaps,
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


def mse(heat: Heatmaps, targets: Heatmaps, visible: Visible) -> Float[Array, ""]:
    """Half the squared error, the mean over the cells of visible landmarks (HRNet's JointsMSE).

    Args:
      heat: what should equal the targets (`heatmaps.activate`). HRNet's own baseline regresses them
        without a sigmoid. Behind one it learns slower, for near 0, where nearly all cells are, the
        sigmoid is flat: in a trial on synthetic faces, 9.9 % NME after 200 steps against 6.8 %.
      targets: in 0..1.
      visible: which landmarks count.
    """
    error = jnp.where(visible[:, None, None], heat.astype(jnp.float32) - targets, 0.0)
    return masked_mean(0.5 * jnp.square(error).mean(axis=(1, 2)), visible)


def adaptive_wing(
    heat: Heatmaps,
    targets: Heatmaps,
    visible: Visible,
    *,
    omega: float = 14.0,
    epsilon: float = 1.0,
    alpha: float = 2.1,
    theta: float = 0.5,
    weight: float = 10.0,
) -> Float[Array, ""]:
    """Weighted Adaptive Wing loss, the mean over the cells of visible landmarks.

    With d = |t - h| for a target t and its heat h: `omega log(1 + (d / epsilon)^(alpha - t))` where
    d < theta, elsewhere `A d - C`, which goes on with the same value and slope. Cells within a cell
    of a target >= 0.2 count `weight + 1` times (Wang et al. 2019, Adaptive Wing and its weighted map).

    Args:
      heat: as in `mse`.
      targets: in 0..1.
      visible: which landmarks count.
      omega: scale.
      epsilon: error up to which the curve is steep.
      alpha: exponent on the background; on a peak it is one less.
      theta: error from which the loss is linear.
      weight: W, what the cells near a peak count more.
    """
    shown = visible[:, None, None]
    targets = jnp.where(shown, targets, 0.0)
    error = jnp.abs(jnp.where(shown, heat.astype(jnp.float32) - targets, 0.0))
    power = alpha - targets
    ratio = (theta / epsilon) ** power
    slope = omega / (1 + ratio) * power * (theta / epsilon) ** (power - 1) / epsilon
    offset = theta * slope - omega * jnp.log1p(ratio)
    near = omega * jnp.log1p((error / epsilon) ** power)
    loss = jnp.where(error < theta, near, slope * error - offset)
    dilated = jax.lax.reduce_window(
        targets, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"
    )
    loss = loss * jnp.where(dilated >= 0.2, weight + 1, 1.0)
    return masked_mean(loss.mean(axis=(1, 2)), visible)


def l1(predicted: Points, true: Points, visible: Visible) -> Float[Array, ""]:
    """Mean absolute error over the coordinates of visible landmarks, in the unit of the inputs."""
    return masked_mean(_absolute_error(predicted, true, visible).mean(axis=-1), visible)


def smooth_l1(
    predicted: Points, true: Points, visible: Visible, *, beta: float = 1.0
) -> Float[Array, ""]:
    """Mean over visible coordinates of `x^2 / (2 beta)` below beta, elsewhere `|x| - beta / 2`.

    Girshick 2015, eq. 3, where beta is 1. The loss is in the unit of the inputs, and so is beta.
    """
    x = _absolute_error(predicted, true, visible)
    loss = jnp.where(x < beta, jnp.square(x) / (2 * beta), x - beta / 2)
    return masked_mean(loss.mean(axis=-1), visible)


def wing(
    predicted: Points, true: Points, visible: Visible, *, w: float = 10.0, epsilon: float = 2.0
) -> Float[Array, ""]:
    """Mean over visible coordinates of `w log(1 + |x| / epsilon)` below w, elsewhere `|x| - C`.

    C joins the two (Feng et al. 2018, the Wing loss). The loss is in the unit of the inputs, and so are
    w and epsilon: for the defaults, pixels of a 256 px crop.
    """
    x = _absolute_error(predicted, true, visible)
    offset = w - w * jnp.log1p(w / epsilon)
    loss = jnp.where(x < w, w * jnp.log1p(x / epsilon), x - offset)
    return masked_mean(loss.mean(axis=-1), visible)


def masked_cross_entropy(
    log_probabilities: Float[Array, "b k n"],
    labels: Int[Array, "b k"],
    class_weights: Sequence[float],
) -> Float[Array, ""]:
    """Weighted mean cross entropy over the landmarks with a label; 0 where there is none.

    Args:
      log_probabilities: of the classes.
      labels: the true classes; negative: unknown, without any gradient.
      class_weights: weight of each class.
    """
    known = labels >= 0
    one_hot = jax.nn.one_hot(jnp.where(known, labels, 0), len(class_weights), dtype=jnp.float32)
    weights = one_hot @ jnp.array(class_weights, jnp.float32)
    weights = jnp.where(known, weights, 0.0)
    total = -(weights * (one_hot * log_probabilities).sum(axis=-1)).sum()
    # A sum of weights is 0 only if no landmark counts; the loss is then 0 as well.
    return total / jnp.maximum(weights.sum(), 1e-9)


def _absolute_error(predicted: Points, true: Points, visible: Visible) -> Points:
    """Absolute errors; 0 where hidden."""
    # Masked first: the gradient of a loss at NaN would be NaN, and 0 times that as well.
    return jnp.abs(jnp.where(visible[..., None], predicted - true, 0.0))


def masked_mean(values: Float[Array, "b k"], mask: Visible) -> Float[Array, ""]:
    """Mean of the values under the mask; 0 where the mask is empty."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1).astype(values.dtype)

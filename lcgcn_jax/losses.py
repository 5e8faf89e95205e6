"""Losses on heatmaps, coordinates and visibility.

Landmarks that are not visible (without a location) do not count, whatever their target holds, NaN included.
"""

# Types of JAX functions are partially unknown.
# pyright: reportUnknownMemberType=false
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Heatmaps = Float[Array, "b hh hw k"]
Points = Float[Array, "b k 2"]
Covariances = Float[Array, "b k 2 2"]
Visible = Bool[Array, "b k"]

_MIN_VARIANCE = 1e-6  # px^2; keeps the square roots of `star` differentiable


def focal(
    logits: Heatmaps, targets: Heatmaps, visible: Visible, *, alpha: float = 2.0, beta: float = 4.0
) -> Float[Array, ""]:
    """Penalty-reduced focal loss: mean over visible landmarks of the sum over heatmap pixels.

    With p the sigmoid of a pixel and t its target: `-(1 - p)^alpha log p` where t = 1, elsewhere
    `-(1 - t)^beta p^alpha log(1 - p)` (Law and Deng 2018, eq. 1; the heatmap loss of LCGCN).
    """
    logits = logits.astype(jnp.float32)
    targets = jnp.where(visible[:, None, None], targets, 0.0)
    p = jax.nn.sigmoid(logits)
    positive = (1 - p) ** alpha * jax.nn.log_sigmoid(logits)
    negative = (1 - targets) ** beta * p**alpha * jax.nn.log_sigmoid(-logits)
    per_landmark = -jnp.where(targets >= 1, positive, negative).sum(axis=(1, 2))
    return masked_mean(per_landmark, visible)


def bce(logits: Heatmaps, targets: Heatmaps, visible: Visible) -> Float[Array, ""]:
    """Binary cross entropy with soft targets: mean over visible landmarks of the sum over heatmap pixels.

    `-t log p - (1 - t) log(1 - p)` with p the sigmoid of a pixel and t its target in 0..1, less the entropy
    of the targets, so that a perfect heatmap has a loss of 0. Unlike `focal`, it needs no pixel with a target
    of exactly 1, so that the peak can lie between pixels.
    """
    logits = logits.astype(jnp.float32)
    targets = jnp.where(visible[:, None, None], targets, 0.0)
    cross_entropy = -(
        targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits)
    )
    entropy = jax.scipy.special.entr(targets) + jax.scipy.special.entr(1 - targets)
    return masked_mean((cross_entropy - entropy).sum(axis=(1, 2)), visible)


def mse(heatmaps: Heatmaps, targets: Heatmaps, visible: Visible) -> Float[Array, ""]:
    """Half the squared error, averaged over the pixels of visible landmarks (JointsMSE of HRNet).

    Args:
      heatmaps: heatmaps after the activation (`heatmaps.activate`). HRNet's baseline uses none. With a
        sigmoid, training is slower, since the sigmoid is flat near 0, the value of most pixels: 9.9 % NME
        instead of 6.8 % after 200 steps on synthetic faces.
      targets: in 0..1.
    """
    error = jnp.where(visible[:, None, None], heatmaps.astype(jnp.float32) - targets, 0.0)
    return masked_mean(0.5 * jnp.square(error).mean(axis=(1, 2)), visible)


def adaptive_wing(heatmaps: Heatmaps, targets: Heatmaps, visible: Visible) -> Float[Array, ""]:
    """Weighted Adaptive Wing loss, averaged over the pixels of visible landmarks.

    With d = |t - h| for a target t and a heatmap value h: `omega log(1 + (d / epsilon)^(alpha - t))` where
    d < theta, elsewhere `A d - C`, with the same value and slope at theta. Pixels within one pixel of a
    target >= 0.2 count `weight + 1` times (Wang et al. 2019, Adaptive Wing and its weighted map).

    Args:
      heatmaps: as in `mse`.
      targets: in 0..1.
    """
    omega, epsilon, alpha, theta, weight = 14.0, 1.0, 2.1, 0.5, 10.0  # those of the paper
    mask = visible[:, None, None]
    targets = jnp.where(mask, targets, 0.0)
    error = jnp.abs(jnp.where(mask, heatmaps.astype(jnp.float32) - targets, 0.0))
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

    Girshick 2015, eq. 3, where beta is 1. The loss and beta have the unit of the inputs.
    """
    x = _absolute_error(predicted, true, visible)
    return masked_mean(_huber(x, beta).mean(axis=-1), visible)


def wing(
    predicted: Points, true: Points, visible: Visible, *, w: float = 10.0, epsilon: float = 2.0
) -> Float[Array, ""]:
    """Mean over visible coordinates of `w log(1 + |x| / epsilon)` below w, elsewhere `|x| - C`.

    C makes the loss continuous (Feng et al. 2018, Wing loss). The loss, w and epsilon have the unit of the
    inputs; the defaults are for pixels of a 256 px crop.
    """
    x = _absolute_error(predicted, true, visible)
    offset = w - w * jnp.log1p(w / epsilon)
    loss = jnp.where(x < w, w * jnp.log1p(x / epsilon), x - offset)
    return masked_mean(loss.mean(axis=-1), visible)


def normalized_l2(predicted: Points, true: Points, visible: Visible) -> Float[Array, ""]:
    """Mean distance of visible landmarks, divided by the size of their face.

    The size is the square root of the area of the bounding box of the visible true landmarks, at least 1: the
    error metric of MERL-RAV. Small faces count as much as large ones, unlike in the losses above.
    """
    points = jnp.where(visible[..., None], true, jnp.nan)
    sides = jnp.nanmax(points, axis=1) - jnp.nanmin(points, axis=1)
    size = jnp.sqrt(jnp.maximum(jnp.nan_to_num(sides).prod(axis=-1), 1.0))
    square = jnp.square(_absolute_error(predicted, true, visible)).sum(axis=-1)
    # The square root has no derivative at 0.
    distance = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return masked_mean(distance / size[:, None], visible)


def star(
    mean: Points,
    covariance: Covariances,
    true: Points,
    visible: Visible,
    *,
    beta: float = 0.05,
    restriction: float = 1.0,
) -> Float[Array, ""]:
    """STAR loss: a coordinate loss that is small along the direction in which a heatmap is ambiguous.

    With eigenvalues l1, l2 and eigenvectors v1, v2 of a heatmap's covariance, and the error e of its mean:
    `sum_i smooth_l1(v_i . e / sqrt(l_i)) + restriction / 2 (l1 + l2)` (Zhou et al. 2023, eq. 5 to 8). The
    second term keeps the heatmaps narrow. The mean over visible landmarks is taken.

    Args:
      mean: means of the heatmaps (`heatmaps.moments`).
      covariance: their covariances, in the squared unit of `mean`.
      true: the true positions, in the unit of `mean`.
      beta: error, in standard deviations, from which the loss is linear.
      restriction: weight of the eigenvalues, per squared unit of `mean`.
    """
    error = jnp.where(visible[..., None], mean - true, 0.0)
    a, b, c = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    # Closed form of a symmetric 2 x 2 matrix. Angles have no gradient: at equal eigenvalues it is infinite.
    angle = jax.lax.stop_gradient(0.5 * jnp.arctan2(2 * b, a - c))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    along = cos * error[..., 0] + sin * error[..., 1]
    across = cos * error[..., 1] - sin * error[..., 0]
    cross = 2 * sin * cos * b
    variance_along = cos**2 * a + sin**2 * c + cross
    variance_across = sin**2 * a + cos**2 * c - cross
    loss = 0.5 * restriction * (a + c)
    for projection, variance in ((along, variance_along), (across, variance_across)):
        deviation = jnp.sqrt(jnp.maximum(variance, _MIN_VARIANCE))
        loss = loss + _huber(jnp.abs(projection) / deviation, beta)
    return masked_mean(loss, visible)


def masked_cross_entropy(
    log_probabilities: Float[Array, "b k n"],
    labels: Int[Array, "b k"],
    class_weights: Sequence[float],
) -> Float[Array, ""]:
    """Weighted mean cross entropy over the landmarks with a label; 0 if there are none.

    Args:
      labels: the true classes; negative values are unknown and have no gradient.
    """
    known = labels >= 0
    one_hot = jax.nn.one_hot(jnp.where(known, labels, 0), len(class_weights), dtype=jnp.float32)
    weights = one_hot @ jnp.array(class_weights, jnp.float32)
    weights = jnp.where(known, weights, 0.0)
    total = -(weights * (one_hot * log_probabilities).sum(axis=-1)).sum()
    # A sum of weights is 0 only if no landmark counts; the loss is then 0 as well.
    return total / jnp.maximum(weights.sum(), 1e-9)


def masked_mean(values: Float[Array, "b k"], mask: Visible) -> Float[Array, ""]:
    """Mean of the values under the mask; 0 if the mask is empty."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1).astype(values.dtype)


def _absolute_error(predicted: Points, true: Points, visible: Visible) -> Points:
    """Absolute errors; 0 for landmarks that are not visible."""
    # Masked before any loss: the gradient of a loss at NaN is NaN, also when multiplied by 0.
    return jnp.abs(jnp.where(visible[..., None], predicted - true, 0.0))


def _huber(x: Float[Array, "..."], beta: float) -> Float[Array, "..."]:
    """`x^2 / (2 beta)` below beta, elsewhere `x - beta / 2`, for x >= 0."""
    return jnp.where(x < beta, jnp.square(x) / (2 * beta), x - beta / 2)

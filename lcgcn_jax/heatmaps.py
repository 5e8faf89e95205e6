"""Encoding of landmarks as heatmaps, and decoding.

Heatmaps are `[b hh hw k]`. Points are (x, y) in heatmap pixels, and the center of pixel (0, 0) is at (0, 0).
`geometry.input_to_heatmap` and `heatmap_to_input` convert between heatmap pixels and input pixels.
"""

# Types of JAX functions are partially unknown.
# pyright: reportUnknownMemberType=false
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

Heatmaps = Float[Array, "b hh hw k"]
Points = Float[Array, "b k 2"]
PixelIndices = Int[Array, "b k 2"]
PerLandmark = Float[Array, "b k"]

Decoder = Literal["argmax", "quarter", "dark", "soft"]
DECODERS: tuple[Decoder, ...] = get_args(Decoder)

Activation = Literal["sigmoid", "linear"]
"""Activation of the logits; `linear`: none, as in HRNet's own code, which regresses heatmaps by MSE."""

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

Normalization = Literal["softmax", "sigmoid"]
"""Normalization of heatmaps to probability distributions over their pixels (`moments`)."""

# Fraction of the side in each direction from the peak, for the standard deviation.
_STD_WINDOW = 1 / 8
_RADIUS = 2  # pixels on each side of the peak that sub-pixel decoding reads
_DARK_SIGMA = 1.0  # pixels; Gaussian smoothing before the Newton step of DARK


def encode(
    landmarks: Points, shape: tuple[int, int], *, sigma: float, subpixel: bool = False
) -> Heatmaps:
    """Create Gaussian target heatmaps.

    Args:
      landmarks: points in heatmap pixels.
      sigma: standard deviation in heatmap pixels.
      subpixel: whether the Gaussian is centered on the point. Otherwise it is centered on the nearest
        pixel, so that its peak is exactly 1, which the focal loss needs.

    Returns:
      Targets in 0..1. For a landmark outside the heatmap they have at most the tail of its Gaussian.
    """
    center = landmarks if subpixel else jnp.round(landmarks)
    y, x = (jnp.arange(n, dtype=landmarks.dtype)[None, None] for n in shape)
    gauss_x = jnp.exp(-((x - center[..., :1]) ** 2) / (2 * sigma**2))
    gauss_y = jnp.exp(-((y - center[..., 1:]) ** 2) / (2 * sigma**2))
    return jnp.einsum("bky,bkx->byxk", gauss_y, gauss_x)


def activate(logits: Heatmaps, activation: Activation) -> Heatmaps:
    """Apply the activation to logits. With `linear`, values can lie outside of 0..1."""
    return jax.nn.sigmoid(logits) if activation == "sigmoid" else logits


def decode(
    logits: Heatmaps, method: Decoder, *, activation: Activation = "sigmoid"
) -> tuple[Points, PerLandmark]:
    """Decode the position and confidence of the peak of each heatmap.

    Args:
      method: `argmax` (the paper): center of the highest pixel. `quarter`: offset by a quarter pixel
        towards the higher neighbor on each axis. `dark`: Newton step on the smoothed log-heatmap (Zhang
        et al. 2020, eq. 7). `soft`: mean of the 5 x 5 pixels around the peak, weighted by their
        probabilities, which is differentiable.
      activation: activation of the logits; linear heatmaps are clipped to probabilities.

    Returns:
      Points in heatmap pixels, and confidences, which are the highest probability of each heatmap.
    """
    logits = logits.astype(jnp.float32)
    _, hh, hw, _ = logits.shape
    peak = _highest_pixel(logits)
    center = peak.astype(jnp.float32)
    heatmaps = activate(logits, activation)
    if activation == "linear":
        heatmaps = jnp.maximum(heatmaps, 0.0)  # not clipped at 1, to keep the shape of the peak
    confidence = jnp.minimum(_values_per_landmark(heatmaps, peak), 1.0)
    if method == "argmax":
        return center, confidence
    if method == "dark":
        # Smoothing reduces the noise of the second derivatives.
        heatmaps = jnp.log(jnp.maximum(_smooth(heatmaps), 1e-10))
    window = _window_at(heatmaps, peak)
    if method == "soft":
        return center + _mean_offset(window, peak, (hh, hw)), confidence
    gradient, hessian = _derivatives(window)
    offset = jnp.sign(gradient) * 0.25 if method == "quarter" else _newton_step(gradient, hessian)
    # No offset near the border, where the window extends beyond the heatmap.
    limit = jnp.array([[[hw, hh]]]) - 1 - _RADIUS
    inside = ((peak >= _RADIUS) & (peak <= limit)).all(axis=-1, keepdims=True)
    return center + jnp.where(inside, offset, 0.0), confidence


def heatmap_std(logits: Heatmaps, *, activation: Activation = "sigmoid") -> PerLandmark:
    """Compute the standard deviation of each heatmap around its peak, as a fraction of its side.

    Weights are the squared heatmap values within an eighth of the side around the peak, which excludes low
    values elsewhere. The result combines both axes: `sqrt((var x + var y) / 2)`.

    Args:
      activation: activation of the logits; negative values of linear heatmaps count as 0.
    """
    logits = logits.astype(jnp.float32)
    _, hh, hw, _ = logits.shape
    peak = _highest_pixel(logits)
    x, y = (jnp.arange(n, dtype=jnp.int32) for n in (hw, hh))
    dx = (x[None, None, :, None] - peak[:, None, None, :, 0]) / hw
    dy = (y[None, :, None, None] - peak[:, None, None, :, 1]) / hh
    is_near = (jnp.abs(dx) <= _STD_WINDOW) & (jnp.abs(dy) <= _STD_WINDOW)
    weights = jnp.square(jnp.maximum(activate(logits, activation), 0.0))
    weights = jnp.where(is_near, weights, 0.0)
    weights = weights / (weights.sum(axis=(1, 2), keepdims=True) + 1e-20)
    mean_x, mean_y = ((weights * d).sum(axis=(1, 2)) for d in (dx, dy))
    square = (weights * (jnp.square(dx) + jnp.square(dy))).sum(axis=(1, 2))
    variance = square - jnp.square(mean_x) - jnp.square(mean_y)
    return jnp.sqrt(jnp.maximum(variance, 0.0) / 2)


def heatmap_pixels_at(positions: Points, shape: tuple[int, ...]) -> Points:
    """Convert positions to pixels of maps that cover the crop evenly.

    Args:
      positions: (x, y) as fractions of the side of the crop, 0..1.
      shape: height and width of the maps in pixels.

    Returns:
      Points (x, y) in pixels of the maps, the center of the first pixel at (0, 0).
    """
    return positions * jnp.array([[shape[::-1]]], positions.dtype) - 0.5


def sample(
    maps: Float[Array, "b hh hw c"], points: Points, *, bilinear: bool
) -> Float[Array, "b k c"]:
    """Sample maps at points in heatmap pixels, bilinearly or at the nearest pixel.

    Points are clipped to the map.
    """
    _, hh, hw, _ = maps.shape
    last = jnp.array([[[hw - 1, hh - 1]]], points.dtype)
    points = jnp.clip(points, 0, last)
    if not bilinear:
        return _values_at(maps, jnp.round(points).astype(jnp.int32))
    low = jnp.clip(jnp.floor(points), 0, last - 1)
    fraction = (points - low).astype(maps.dtype)
    low = low.astype(jnp.int32)
    result = jnp.zeros((), maps.dtype)
    for dx in (0, 1):
        for dy in (0, 1):
            weight_x = fraction[..., :1] if dx else 1 - fraction[..., :1]
            weight_y = fraction[..., 1:] if dy else 1 - fraction[..., 1:]
            corner = _values_at(maps, low + jnp.array([[[dx, dy]]]))
            result = result + weight_x * weight_y * corner
    return result


def windows(
    maps: Float[Array, "b hh hw c"], points: Points, side: int
) -> Float[Array, "b k {side} {side} c"]:
    """Sample windows of `side` x `side` pixels (odd) around points, rows first, bilinearly.

    Maps are extended by replicating their border. Points, in heatmap pixels, are clipped to the map.
    """
    b, hh, hw, c = maps.shape
    k = points.shape[1]
    points = jnp.clip(points, 0, jnp.array([[[hw - 1, hh - 1]]], points.dtype))
    low = jnp.floor(points)
    fraction = (points - low).astype(maps.dtype)[:, :, None, None]
    # One more row and column than in the output: all pixels of a window have the same fractional part.
    steps = jnp.arange(side + 1)[None, None] - side // 2
    columns, rows = (low[..., axis, None].astype(jnp.int32) + steps for axis in (0, 1))
    index = (
        jnp.clip(rows, 0, hh - 1)[..., :, None] * hw + jnp.clip(columns, 0, hw - 1)[..., None, :]
    )
    values = jnp.take_along_axis(
        maps.reshape(b, hh * hw, c), index.reshape(b, k * (side + 1) ** 2, 1), axis=1
    ).reshape(b, k, side + 1, side + 1, c)
    along_x = values[..., :-1, :] + fraction[..., :1] * (values[..., 1:, :] - values[..., :-1, :])
    above, below = along_x[:, :, :-1], along_x[:, :, 1:]
    return above + fraction[..., 1:] * (below - above)


def _highest_pixel(logits: Heatmaps) -> PixelIndices:
    b, hh, hw, k = logits.shape
    index = jnp.argmax(logits.reshape(b, hh * hw, k), axis=1).astype(jnp.int32)
    # Not `//` and `%`: ONNX exporters fail on their handling of negative numbers.
    row = lax.div(index, jnp.full_like(index, hw))
    return jnp.stack([index - row * hw, row], axis=-1)


def _values_at(maps: Float[Array, "b hh hw c"], pixels: PixelIndices) -> Float[Array, "b k c"]:
    """Read all channels at integer pixels."""
    b, hh, hw, c = maps.shape
    index = pixels[..., 1] * hw + pixels[..., 0]
    return jnp.take_along_axis(maps.reshape(b, hh * hw, c), index[..., None], axis=1)


def _values_per_landmark(maps: Heatmaps, pixels: PixelIndices) -> PerLandmark:
    """Read the heatmap of each landmark at its integer pixel."""
    b, hh, hw, k = maps.shape
    index = pixels[..., 1] * hw + pixels[..., 0]
    return jnp.take_along_axis(maps.reshape(b, hh * hw, k), index[:, None, :], axis=1)[:, 0]


def _window_at(maps: Heatmaps, pixels: PixelIndices) -> Float[Array, "b k 5 5"]:
    """Read the 5 x 5 pixels around the pixel of each landmark, rows first, with replicated borders."""
    b, hh, hw, k = maps.shape
    steps = jnp.arange(-_RADIUS, _RADIUS + 1)[None, None]
    rows = jnp.clip(pixels[..., 1:] + steps, 0, hh - 1)
    columns = jnp.clip(pixels[..., :1] + steps, 0, hw - 1)
    index = rows[..., :, None] * hw + columns[..., None, :]
    flat = maps.reshape(b, hh * hw, k).transpose(0, 2, 1)
    side = 2 * _RADIUS + 1
    values = jnp.take_along_axis(flat, index.reshape(b, k, side * side), axis=2)
    return values.reshape(b, k, side, side)


def _mean_offset(
    window: Float[Array, "b k 5 5"], peak: PixelIndices, shape: tuple[int, int]
) -> Points:
    steps = jnp.arange(-_RADIUS, _RADIUS + 1)
    rows, columns = (peak[..., axis, None] + steps[None, None] for axis in (1, 0))
    on_map = ((rows >= 0) & (rows < shape[0]))[..., :, None] & (
        (columns >= 0) & (columns < shape[1])
    )[..., None, :]
    weights = jnp.where(on_map, window, 0.0)
    weights = weights / (weights.sum(axis=(-2, -1), keepdims=True) + 1e-12)
    steps = steps.astype(window.dtype)
    dx = jnp.einsum("bkyx,x->bk", weights, steps)
    dy = jnp.einsum("bkyx,y->bk", weights, steps)
    return jnp.stack([dx, dy], axis=-1)


def _derivatives(
    window: Float[Array, "b k 5 5"],
) -> tuple[Points, tuple[PerLandmark, PerLandmark, PerLandmark]]:
    """Central differences at the center of the window: gradient (x, y) and Hessian (xx, xy, yy)."""
    m = _RADIUS
    middle = window[..., m, m]
    dx = (window[..., m, m + 1] - window[..., m, m - 1]) / 2
    dy = (window[..., m + 1, m] - window[..., m - 1, m]) / 2
    dxx = (window[..., m, m + 2] - 2 * middle + window[..., m, m - 2]) / 4
    dyy = (window[..., m + 2, m] - 2 * middle + window[..., m - 2, m]) / 4
    falling = window[..., m + 1, m + 1] + window[..., m - 1, m - 1]
    rising = window[..., m + 1, m - 1] + window[..., m - 1, m + 1]
    return jnp.stack([dx, dy], axis=-1), (dxx, (falling - rising) / 4, dyy)


def _newton_step(gradient: Points, hessian: tuple[PerLandmark, PerLandmark, PerLandmark]) -> Points:
    dxx, dxy, dyy = hessian
    determinant = dxx * dyy - dxy**2
    is_peak = (determinant > 1e-12) & (dxx < 0)
    safe = jnp.where(is_peak, determinant, 1.0)
    dx, dy = gradient[..., 0], gradient[..., 1]
    step = -jnp.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], axis=-1) / safe[..., None]
    # The maximum lies within one pixel of the highest pixel; a longer step comes from a flat heatmap.
    return jnp.where(is_peak[..., None], jnp.clip(step, -1.0, 1.0), 0.0)


def _smooth(maps: Heatmaps) -> Heatmaps:
    rows, columns = (jnp.asarray(_gaussian_matrix(n), maps.dtype) for n in maps.shape[1:3])
    return jnp.einsum("Yy,byxk,Xx->bYXk", rows, maps, columns)


@functools.lru_cache
def _gaussian_matrix(n: int) -> np.ndarray:
    """Matrix `[n n]` that smooths n values with a Gaussian and zero padding."""
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    kernel = np.exp(-(distance**2) / (2 * _DARK_SIGMA**2))
    full = np.exp(-(np.arange(-n, n + 1) ** 2) / (2 * _DARK_SIGMA**2)).sum()
    return kernel / full


def moments(
    logits: Heatmaps, *, normalization: Normalization = "softmax", temperature: float = 1.0
) -> tuple[Float[Array, "b k 2"], Float[Array, "b k 2 2"]]:
    """Mean and covariance of each heatmap as a probability distribution over its pixels.

    Args:
      normalization: the softmax of the logits times `temperature`, or their sigmoid divided by its sum.
      temperature: factor on the logits under `softmax`.

    Returns:
      Means (x, y) in heatmap pixels, and covariances in squared heatmap pixels.
    """
    logits = logits.astype(jnp.float32)
    _, hh, hw, _ = logits.shape
    if normalization == "softmax":
        weights = jax.nn.softmax(logits * temperature, axis=(1, 2))
    else:
        weights = jax.nn.sigmoid(logits)
        weights = weights / (weights.sum(axis=(1, 2), keepdims=True) + 1e-12)
    x, y = (jnp.arange(n, dtype=jnp.float32) for n in (hw, hh))
    along_x, along_y = weights.sum(axis=1), weights.sum(axis=2)
    mean = jnp.stack(
        [jnp.einsum("bxk,x->bk", along_x, x), jnp.einsum("byk,y->bk", along_y, y)], axis=-1
    )
    dx = x[None, :, None] - mean[:, None, :, 0]
    dy = y[None, :, None] - mean[:, None, :, 1]
    variance_x = (along_x * jnp.square(dx)).sum(axis=1)
    variance_y = (along_y * jnp.square(dy)).sum(axis=1)
    covariance = ((weights * dx[:, None]).sum(axis=2) * dy).sum(axis=1)
    entries = jnp.stack([variance_x, covariance, covariance, variance_y], axis=-1)
    return mean, entries.reshape(*mean.shape, 2)

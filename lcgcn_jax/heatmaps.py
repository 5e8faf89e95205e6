"""Landmarks to heatmaps and back.

Heatmaps are `[b hh hw k]`; points here are (x, y) in heatmap cells, the center of cell (0, 0) at (0, 0).
`geometry.input_to_heatmap` and `heatmap_to_input` change between cells and input pixels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

Heatmaps = Float[Array, "b hh hw k"]
Cells = Float[Array, "b k 2"]
PerLandmark = Float[Array, "b k"]

DECODERS = ("argmax", "quarter", "dark", "soft")

ACTIVATIONS = ("sigmoid", "linear")
"""What makes a model's outputs heat, 0..1: a sigmoid, or nothing, as where HRNet regresses it by MSE."""

_NEAR = 1 / 8  # of a map's side, each way: what counts as near the peak
_WINDOW = 2  # cells on each side of the peak that sub-pixel decoding looks at
_DARK_SIGMA = 1.0  # smoothing before DARK's Taylor step, in cells; cf. the targets' sigma


def encode(
    landmarks: Cells, shape: tuple[int, int], *, sigma: float, subpixel: bool = False
) -> Heatmaps:
    """Gaussian target heatmaps.

    Args:
      landmarks: points in heatmap cells.
      shape: (hh, hw).
      sigma: standard deviation in cells.
      subpixel: center the Gaussian on the point itself. Otherwise it is centered on the nearest cell, so
        that its peak is exactly 1: what the focal loss takes as its positive.

    Returns:
      Targets in 0..1. A landmark outside the map leaves at most the tail of its Gaussian in it.
    """
    center = landmarks if subpixel else jnp.round(landmarks)
    y, x = (jnp.arange(n, dtype=landmarks.dtype)[None, None] for n in shape)
    gauss_x = jnp.exp(-((x - center[..., :1]) ** 2) / (2 * sigma**2))
    gauss_y = jnp.exp(-((y - center[..., 1:]) ** 2) / (2 * sigma**2))
    return jnp.einsum("bky,bkx->byxk", gauss_y, gauss_x)


def activate(logits: Heatmaps, activation: str) -> Heatmaps:
    """Heat, which the targets are of, from a model's outputs; a `linear` one's may leave 0..1."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; use one of {', '.join(ACTIVATIONS)}")
    return jax.nn.sigmoid(logits) if activation == "sigmoid" else logits


def decode(
    logits: Heatmaps, method: str, *, activation: str = "sigmoid"
) -> tuple[Cells, PerLandmark]:
    """Position and confidence of each heatmap's peak.

    Args:
      logits: heatmaps before the activation.
      method: `argmax` (the paper): center of the highest cell. `quarter`: moved a quarter cell towards
        the higher neighbor on each axis. `dark`: a Newton step on the smoothed log-heatmap (Zhang et
        al. 2020, eq. 7). `soft`: mean of the 5 x 5 cells around the peak weighted by their
        probabilities; gradients flow through it.
      activation: one of `ACTIVATIONS`; linear heat counts as a probability, cut to 0..1.

    Returns:
      Points in cells and confidences, the highest probability of each map.
    """
    if method not in DECODERS:
        raise ValueError(f"unknown decode {method!r}; use one of {DECODERS}")
    logits = logits.astype(jnp.float32)
    _, hh, hw, _ = logits.shape
    cell = _highest_cell(logits)
    center = cell.astype(jnp.float32)
    heat = activate(logits, activation)
    if activation == "linear":
        heat = jnp.maximum(heat, 0.0)  # above 1 the peak keeps its shape
    confidence = jnp.minimum(_cells_at(heat, cell)[..., 0], 1.0)
    if method == "argmax":
        return center, confidence
    if method == "dark":
        # Smoothing once more takes the noise out of the second derivatives.
        heat = jnp.log(jnp.maximum(_smooth(heat), 1e-10))
    window = _window_at(heat, cell)
    if method == "soft":
        return center + _mean_offset(window, cell, (hh, hw)), confidence
    gradient, hessian = _derivatives(window)
    offset = jnp.sign(gradient) * 0.25 if method == "quarter" else _newton_step(gradient, hessian)
    # Next to the border the window is not all on the map.
    limit = jnp.array([[[hw, hh]]]) - 1 - _WINDOW
    inside = ((cell >= _WINDOW) & (cell <= limit)).all(axis=-1, keepdims=True)
    return center + jnp.where(inside, offset, 0.0), confidence


def heatmap_std(logits: Heatmaps, *, activation: str = "sigmoid") -> PerLandmark:
    """How wide the heat about each peak is: its standard deviation, in parts of the map's side.

    That of the squared heat within an eighth of the side around the highest cell, both of which leave out
    the low heat everywhere else; of x and y together, `sqrt((var x + var y) / 2)`.

    Args:
      logits: heatmaps before the activation.
      activation: one of `ACTIVATIONS`; of linear heat what is below 0 counts as 0.
    """
    logits = logits.astype(jnp.float32)
    _, hh, hw, _ = logits.shape
    cell = _highest_cell(logits)
    x, y = (jnp.arange(n, dtype=jnp.int32) for n in (hw, hh))
    dx = (x[None, None, :, None] - cell[:, None, None, :, 0]) / hw
    dy = (y[None, :, None, None] - cell[:, None, None, :, 1]) / hh
    near = (jnp.abs(dx) <= _NEAR) & (jnp.abs(dy) <= _NEAR)
    weights = jnp.square(jnp.maximum(activate(logits, activation), 0.0))
    weights = jnp.where(near, weights, 0.0)
    weights = weights / (weights.sum(axis=(1, 2), keepdims=True) + 1e-20)
    mean_x, mean_y = ((weights * d).sum(axis=(1, 2)) for d in (dx, dy))
    square = (weights * (jnp.square(dx) + jnp.square(dy))).sum(axis=(1, 2))
    variance = square - jnp.square(mean_x) - jnp.square(mean_y)
    return jnp.sqrt(jnp.maximum(variance, 0.0) / 2)


def cells_at(positions: Cells, shape: tuple[int, int]) -> Cells:
    """Cells of maps that cover the crop evenly, from positions as parts of its side, 0..1.

    Args:
      positions: (x, y).
      shape: (hh, hw).
    """
    return positions * jnp.array([[shape[::-1]]], positions.dtype) - 0.5


def sample(
    maps: Float[Array, "b hh hw c"], points: Cells, *, bilinear: bool
) -> Float[Array, "b k c"]:
    """Reads maps at points (cells), at the nearest cell or bilinearly; points are clipped to the map."""
    _, hh, hw, _ = maps.shape
    last = jnp.array([[[hw - 1, hh - 1]]], points.dtype)
    points = jnp.clip(points, 0, last)
    if not bilinear:
        return _cells_at(maps, jnp.round(points).astype(jnp.int32), channels=True)
    low = jnp.clip(jnp.floor(points), 0, last - 1)
    part = (points - low).astype(maps.dtype)
    low = low.astype(jnp.int32)
    result = jnp.zeros((), maps.dtype)
    for dx in (0, 1):
        for dy in (0, 1):
            weight_x = part[..., :1] if dx else 1 - part[..., :1]
            weight_y = part[..., 1:] if dy else 1 - part[..., 1:]
            corner = _cells_at(maps, low + jnp.array([[[dx, dy]]]), channels=True)
            result = result + weight_x * weight_y * corner
    return result


def windows(
    maps: Float[Array, "b hh hw c"], points: Cells, side: int
) -> Float[Array, "b k {side} {side} c"]:
    """Reads a square of `side` x `side` cells (odd) around points (cells), rows first, bilinearly.

    The maps are continued beyond their border by the cells there; the points are clipped to the map.
    """
    b, hh, hw, c = maps.shape
    k = points.shape[1]
    points = jnp.clip(points, 0, jnp.array([[[hw - 1, hh - 1]]], points.dtype))
    low = jnp.floor(points)
    part = (points - low).astype(maps.dtype)[:, :, None, None]
    # One more row and column than asked for: all of a window's cells share the same part of a cell.
    steps = jnp.arange(side + 1)[None, None] - side // 2
    columns, rows = (low[..., axis, None].astype(jnp.int32) + steps for axis in (0, 1))
    index = (
        jnp.clip(rows, 0, hh - 1)[..., :, None] * hw + jnp.clip(columns, 0, hw - 1)[..., None, :]
    )
    cells = jnp.take_along_axis(
        maps.reshape(b, hh * hw, c), index.reshape(b, k * (side + 1) ** 2, 1), axis=1
    ).reshape(b, k, side + 1, side + 1, c)
    along_x = cells[..., :-1, :] + part[..., :1] * (cells[..., 1:, :] - cells[..., :-1, :])
    above, below = along_x[:, :, :-1], along_x[:, :, 1:]
    return above + part[..., 1:] * (below - above)


def _highest_cell(logits: Heatmaps) -> Int[Array, "b k 2"]:
    b, hh, hw, k = logits.shape
    index = jnp.argmax(logits.reshape(b, hh * hw, k), axis=1).astype(jnp.int32)
    # Not `//` and `%`: their care for negative numbers is of no use here, and ONNX exporters trip on it.
    row = lax.div(index, jnp.full_like(index, hw))
    return jnp.stack([index - row * hw, row], axis=-1)


def _cells_at(maps: Array, cell: Int[Array, "b k 2"], *, channels: bool = False) -> Array:
    """Values at integer cells: all channels `[b k c]`, or each landmark's own map `[b k 1]`."""
    b, hh, hw, c = maps.shape
    index = cell[..., 1] * hw + cell[..., 0]
    flat = maps.reshape(b, hh * hw, c)
    if channels:
        return jnp.take_along_axis(flat, index[..., None], axis=1)
    return jnp.take_along_axis(flat, index[:, None, :], axis=1).transpose(0, 2, 1)


def _window_at(maps: Heatmaps, cell: Int[Array, "b k 2"]) -> Float[Array, "b k 5 5"]:
    """The 5 x 5 cells around each landmark's cell, rows first; cells off the map repeat the border."""
    b, hh, hw, k = maps.shape
    steps = jnp.arange(-_WINDOW, _WINDOW + 1)[None, None]
    rows = jnp.clip(cell[..., 1:] + steps, 0, hh - 1)
    columns = jnp.clip(cell[..., :1] + steps, 0, hw - 1)
    index = rows[..., :, None] * hw + columns[..., None, :]
    flat = maps.reshape(b, hh * hw, k).transpose(0, 2, 1)
    side = 2 * _WINDOW + 1
    values = jnp.take_along_axis(flat, index.reshape(b, k, side * side), axis=2)
    return values.reshape(b, k, side, side)


def _mean_offset(
    window: Float[Array, "b k 5 5"], cell: Int[Array, "b k 2"], shape: tuple[int, int]
) -> Cells:
    steps = jnp.arange(-_WINDOW, _WINDOW + 1)
    rows, columns = (cell[..., axis, None] + steps[None, None] for axis in (1, 0))
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
) -> tuple[Cells, tuple[PerLandmark, PerLandmark, PerLandmark]]:
    """Central differences at the window's middle: gradient (x, y) and Hessian (xx, xy, yy)."""
    m = _WINDOW
    middle = window[..., m, m]
    dx = (window[..., m, m + 1] - window[..., m, m - 1]) / 2
    dy = (window[..., m + 1, m] - window[..., m - 1, m]) / 2
    dxx = (window[..., m, m + 2] - 2 * middle + window[..., m, m - 2]) / 4
    dyy = (window[..., m + 2, m] - 2 * middle + window[..., m - 2, m]) / 4
    falling = window[..., m + 1, m + 1] + window[..., m - 1, m - 1]
    rising = window[..., m + 1, m - 1] + window[..., m - 1, m + 1]
    return jnp.stack([dx, dy], axis=-1), (dxx, (falling - rising) / 4, dyy)


def _newton_step(gradient: Cells, hessian: tuple[PerLandmark, PerLandmark, PerLandmark]) -> Cells:
    dxx, dxy, dyy = hessian
    determinant = dxx * dyy - dxy**2
    is_peak = (determinant > 1e-12) & (dxx < 0)
    safe = jnp.where(is_peak, determinant, 1.0)
    dx, dy = gradient[..., 0], gradient[..., 1]
    step = -jnp.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], axis=-1) / safe[..., None]
    # A true peak lies within a cell of the highest one; a longer step comes from a flat map.
    return jnp.where(is_peak[..., None], jnp.clip(step, -1.0, 1.0), 0.0)


def _smooth(maps: Heatmaps) -> Heatmaps:
    rows, columns = (jnp.asarray(_gaussian_matrix(n), maps.dtype) for n in maps.shape[1:3])
    return jnp.einsum("Yy,byxk,Xx->bYXk", rows, maps, columns)


@functools.lru_cache
def _gaussian_matrix(n: int) -> np.ndarray:
    """`[n n]` matrix that smooths a line of n cells with a Gaussian, zero beyond its ends."""
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    kernel = np.exp(-(distance**2) / (2 * _DARK_SIGMA**2))
    full = np.exp(-(np.arange(-n, n + 1) ** 2) / (2 * _DARK_SIGMA**2)).sum()
    return kernel / full


NORMALIZATIONS = ("softmax", "sigmoid")


def moments(
    logits: Heatmaps, *, normalization: str = "softmax", temperature: float = 1.0
) -> tuple[Float[Array, "b k 2"], Float[Array, "b k 2 2"]]:
    """Mean and covariance of each heatmap as a probability distribution over its pixels.

    Args:
      logits: heatmaps before the activation.
      normalization: one of `NORMALIZATIONS`: the softmax of the logits times `temperature`, or their sigmoid
        divided by its sum.
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
    return mean, jnp.stack(
        [
            jnp.stack([variance_x, covariance], axis=-1),
            jnp.stack([covariance, variance_y], axis=-1),
        ],
        axis=-2,
    )

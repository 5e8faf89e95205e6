"""Pictures: landmarks on faces, the stages side by side, training curves."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib.figure
import matplotlib.ticker
import numpy as np
from jaxtyping import Float, UInt8

from lcgcn_jax.geometry import Points
from lcgcn_jax.landmarks import LandmarkScheme

Image = UInt8[np.ndarray, "h w 3"]

TRUTH = (235, 60, 60)
PREDICTION = (60, 220, 90)
LOSSES = {
    "loss": "total",
    "focal": "focal",
    "mse": "MSE",
    "adaptive_wing": "Adaptive Wing",
    "l1": "L1 (part of the crop)",
    "smooth_l1": "smooth L1",
    "wing": "Wing",
}
"""Training losses in the metric log -> what `plot_curves` calls them."""

PARTS = (
    (86, 180, 233), (230, 159, 0), (240, 228, 66), (204, 121, 167), (213, 94, 0),
    (0, 200, 150), (90, 110, 255), (255, 130, 130), (200, 255, 200), (220, 220, 220),
)  # fmt: skip
"""RGB of the contours, in their order; the first of them are Okabe and Ito's, told apart by all eyes."""

EDGES = (255, 255, 255)
EDGES_A_LANDMARK = 1.0
"""Edges of the graph that are drawn, the strongest, over the number of landmarks."""

_SHIFT = 4  # OpenCV draws at 1/16 pixel
_LEGEND_LINE = 18  # pixels


def draw_landmarks(
    image: Image,
    landmarks: Float[np.ndarray, "k 2"],
    scheme: LandmarkScheme,
    *,
    color: tuple[int, int, int] = PREDICTION,
    radius: float = 1.5,
    contours: bool = True,
) -> Image:
    """A copy of a picture with landmarks drawn on it, and the scheme's contours.

    Args:
      image: RGB.
      landmarks: in pixels of the picture; drawn to a sixteenth of a pixel.
      scheme: what they mean.
      color: RGB.
      radius: of the points, in pixels.
      contours: whether to draw the lines.
    """
    canvas = image.copy()
    if contours:
        overlay = canvas.copy()
        _draw_contours(overlay, landmarks, scheme, [color] * len(scheme.contours), radius)
        canvas = cv2.addWeighted(overlay, 0.5, canvas, 0.5, 0)
    for point in landmarks:
        _draw_point(canvas, point, color, radius)
    return canvas


def draw_faces(
    image: Image,
    landmarks: Sequence[Float[np.ndarray, "k 2"]],
    confidence: Sequence[Float[np.ndarray, "k"]],
    scheme: LandmarkScheme,
    *,
    sides: Sequence[float],
    edges: Sequence[Float[np.ndarray, "k k"]] | None = None,
) -> UInt8[np.ndarray, "_rows w 3"]:
    """A copy of a picture with faces drawn on it, and a legend below it.

    Contours have the colours `PARTS`, points the colour of their confidence (viridis: 0 is dark blue, 1
    is yellow).

    Args:
      image: RGB.
      landmarks: of each face, in pixels of the picture.
      confidence: of each face's landmarks, in 0..1.
      scheme: what the landmarks mean.
      sides: of the faces' boxes, in pixels: points and lines are drawn to this size.
      edges: the graph of each face; its strongest edges between two landmarks are drawn.
    """
    canvas = image.copy()
    colors = [PARTS[i % len(PARTS)] for i in range(len(scheme.contours))]
    radii = [max(1.0, side / 90) for side in sides]
    for points, radius in zip(landmarks, radii, strict=True):
        _draw_contours(canvas, points, scheme, colors, radius)
    for points, weights in zip(landmarks, edges or (), strict=edges is not None):
        _draw_edges(canvas, points, weights)
    for points, values, radius in zip(landmarks, confidence, radii, strict=True):
        for point, color in zip(points, _viridis(values), strict=True):
            _draw_point(canvas, point, (0, 0, 0), 1.3 * radius)
            _draw_point(canvas, point, color, radius)
    return np.vstack([canvas, _legend(scheme, colors, canvas.shape[1])])


def _draw_contours(
    canvas: Image,
    landmarks: Float[np.ndarray, "k 2"],
    scheme: LandmarkScheme,
    colors: Sequence[tuple[int, int, int]],
    radius: float,
) -> None:
    fixed = _fixed_point(landmarks)
    thickness = max(1, round(radius * 0.6))
    for contour, color in zip(scheme.contours, colors, strict=True):
        line = fixed[list(contour.indices)]
        cv2.polylines(canvas, [line], contour.closed, color, thickness, cv2.LINE_AA, shift=_SHIFT)


def _draw_point(
    canvas: Image, point: Float[np.ndarray, "2"], color: tuple[int, int, int], radius: float
) -> None:
    x, y = _fixed_point(point).tolist()
    size = round(radius * (1 << _SHIFT))
    cv2.circle(canvas, (x, y), size, color, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _draw_edges(
    canvas: Image, landmarks: Float[np.ndarray, "k 2"], weights: Float[np.ndarray, "k k"]
) -> None:
    between = weights * (1 - np.eye(len(weights), dtype=weights.dtype))
    count = round(EDGES_A_LANDMARK * len(weights))
    fixed = _fixed_point(landmarks).tolist()
    for position in np.argsort(between, axis=None)[-count:]:
        i, j = np.unravel_index(position, between.shape)
        cv2.line(canvas, fixed[i], fixed[j], EDGES, 1, cv2.LINE_AA, _SHIFT)


def _fixed_point(points: Points) -> np.ndarray:
    # OpenCV takes 32-bit integers: what lies far outside has to stay within them.
    limit = np.iinfo(np.int32).max / 4
    return np.round(points * (1 << _SHIFT)).clip(-limit, limit).astype(np.int32)


def _viridis(values: Float[np.ndarray, "n"]) -> list[tuple[int, int, int]]:
    """RGB of numbers in 0..1."""
    levels = np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
    bgr = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_VIRIDIS)[:, 0]
    return [tuple(color) for color in bgr[:, ::-1].tolist()]


def _legend(
    scheme: LandmarkScheme, colors: Sequence[tuple[int, int, int]], width: int
) -> UInt8[np.ndarray, "_rows _columns 3"]:
    """What the colours mean, on as many lines as it takes; none where the width is too small."""
    ramp = _viridis(np.linspace(0, 1, 3 * _LEGEND_LINE))
    items = [np.hstack([_text("0"), _swatch(ramp), _text("1 confidence")])]
    for contour, color in zip(scheme.contours, colors, strict=True):
        text = _text(contour.name.replace("_", " "))
        items.append(np.hstack([_swatch([color] * _LEGEND_LINE), text]))
    if max(item.shape[1] for item in items) > width:
        return np.zeros((0, width, 3), np.uint8)
    lines: list[np.ndarray] = []
    for item in items:
        if lines and lines[-1].shape[1] + item.shape[1] <= width:
            lines[-1] = np.hstack([lines[-1], item])
        else:
            lines.append(item)
    return np.vstack([np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0))) for line in lines])


def _text(text: str) -> Image:
    """White on black, a line of the legend high."""
    font, scale, pad = cv2.FONT_HERSHEY_SIMPLEX, 0.4, _LEGEND_LINE // 3
    width = cv2.getTextSize(text, font, scale, 1)[0][0]
    image = np.zeros((_LEGEND_LINE, width + 2 * pad, 3), np.uint8)
    place = (pad, _LEGEND_LINE - pad)
    return cv2.putText(image, text, place, font, scale, (255, 255, 255), 1, cv2.LINE_AA)


def _swatch(colors: Sequence[tuple[int, int, int]]) -> Image:
    """Colours side by side, a line of the legend high."""
    pad = _LEGEND_LINE // 3
    image = np.zeros((_LEGEND_LINE, len(colors) + pad, 3), np.uint8)
    image[pad:-pad, pad:] = colors
    return image


def enlarge(
    image: Image, points: Points, factor: int
) -> tuple[UInt8[np.ndarray, "hh ww 3"], Points]:
    """Enlarges a picture and moves points along, in the pixel-centre convention."""
    size = (image.shape[1] * factor, image.shape[0] * factor)
    larger = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    return larger, (points + 0.5) * factor - 0.5


def label(image: Image, text: str) -> Image:
    """A copy of a picture with a line of text in its upper left corner."""
    canvas = image.copy()
    scale = max(0.4, image.shape[1] / 640)
    for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(
            canvas, text, (6, int(28 * scale) + 4), cv2.FONT_HERSHEY_SIMPLEX, scale, color,
            thickness, cv2.LINE_AA,
        )  # fmt: skip
    return canvas


def stage_comparison(
    crops: UInt8[np.ndarray, "n s s 3"],
    truth: Float[np.ndarray, "n k 2"],
    stages: dict[str, Float[np.ndarray, "n k 2"]],
    scheme: LandmarkScheme,
    *,
    width: int = 256,
) -> Image:
    """For each face the truth, then each stage in green over the truth in red (figure 3).

    Two faces stand side by side; after the last of an odd number the row is white.

    Args:
      crops: face crops.
      truth: their true landmarks, in crop pixels.
      stages: predicted landmarks by the stage's name.
      scheme: what the landmarks mean.
      width: of a cell, in pixels; rounded to a multiple of the crop's side.
    """
    factor = max(1, round(width / crops.shape[1]))
    radius = 0.0045 * crops.shape[1] * factor
    strips = []
    for i, crop in enumerate(crops):
        large, true = enlarge(crop, truth[i], factor)
        marked = draw_landmarks(large, true, scheme, color=TRUTH, radius=radius)
        cells = [label(marked, "truth") if i < 2 else marked]
        for name, landmarks in stages.items():
            _, predicted = enlarge(crop, landmarks[i], factor)
            cell = draw_landmarks(large, true, scheme, color=TRUTH, radius=radius, contours=False)
            cell = draw_landmarks(cell, predicted, scheme, radius=radius)
            cells.append(label(cell, name) if i < 2 else cell)
        strips.append(np.concatenate(cells, axis=1))
    if len(strips) % 2:
        strips.append(np.full_like(strips[0], 255))
    pairs = zip(strips[::2], strips[1::2], strict=True)
    return np.concatenate([np.concatenate(pair, axis=1) for pair in pairs])


def plot_curves(rows: Sequence[dict[str, int | float]]) -> matplotlib.figure.Figure:
    """Training loss, and validation NME of both stages, over the steps of a run (figure 4).

    Args:
      rows: the run's metric log, as `training.metric_writer.read_metrics` gives it.
    """
    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    loss_axes, nme_axes = figure.subplots(1, 2)
    for name, text in LOSSES.items():
        points = [(r["step"], r[f"train/{name}"]) for r in rows if f"train/{name}" in r]
        if points:
            loss_axes.plot(*zip(*points, strict=True), label=text, linewidth=1)
    loss_axes.set(xlabel="step", ylabel="training loss", yscale="log")
    for stage, style in (("heatmap", "o-"), ("graph", "s-")):
        key = f"validation/{stage}_nme"
        points = [(r["step"], r[key]) for r in rows if key in r]
        if points:
            nme_axes.plot(*zip(*points, strict=True), style, label=f"{stage} stage", markersize=4)
    nme_axes.set(xlabel="step", ylabel="validation NME (%)", yscale="log")
    nme_axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    nme_axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    for axes in (loss_axes, nme_axes):
        axes.grid(alpha=0.3, which="both")
        if axes.lines:
            axes.legend()
    return figure


def save_image(path: Path, image: Image) -> None:
    """Writes RGB as an image file of the path's suffix, making its folder.

    Raises:
      OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written, data = cv2.imencode(path.suffix, np.ascontiguousarray(image[..., ::-1]))
    if not written:
        raise OSError(f"{path}: the image could not be encoded")
    path.write_bytes(data.tobytes())

"""Landmarks drawn on faces, and the stages side by side (figure 3)."""

import errno
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from lcgcn_jax.atomic_io import write_all
from lcgcn_jax.geometry import Points
from lcgcn_jax.landmarks import LandmarkScheme

Image = UInt8[np.ndarray, "h w 3"]

TRUTH = (235, 60, 60)
PREDICTION = (60, 220, 90)

_FIGURE_WIDTH = 10.0  # inches

SHIFT = 4  # OpenCV draws at 1/16 pixel


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
      landmarks: in pixels of the picture; drawn to a sixteenth of a pixel. NaN: not drawn.
      scheme: what they mean.
      color: RGB.
      radius: of the points, in pixels.
      contours: whether to draw the lines.
    """
    canvas = image.copy()
    if contours:
        overlay = canvas.copy()
        draw_contours(overlay, landmarks, scheme, [color] * len(scheme.contours), radius)
        canvas = cv2.addWeighted(overlay, 0.5, canvas, 0.5, 0)
    for point in landmarks[np.isfinite(landmarks).all(axis=1)]:
        draw_point(canvas, point, color, radius)
    return canvas


def draw_contours(
    canvas: Image,
    landmarks: Float[np.ndarray, "k 2"],
    scheme: LandmarkScheme,
    colors: Sequence[tuple[int, int, int]],
    radius: float,
) -> None:
    """Draws each contour of a scheme in its color, on the picture itself."""
    drawn = np.isfinite(landmarks).all(axis=1)
    fixed = fixed_point(np.where(drawn[:, None], landmarks, 0.0))
    thickness = max(1, round(radius * 0.6))
    for contour, color in zip(scheme.contours, colors, strict=True):
        line = list(contour.indices)
        ends = line[1:] + line[: 1 if contour.closed else 0]
        pieces = [fixed[[i, j]] for i, j in zip(line, ends, strict=False) if drawn[i] and drawn[j]]
        cv2.polylines(canvas, pieces, False, color, thickness, cv2.LINE_AA, shift=SHIFT)


def draw_point(
    canvas: Image, point: Float[np.ndarray, "2"], color: tuple[int, int, int], radius: float
) -> None:
    """Draws a filled circle, on the picture itself."""
    x, y = fixed_point(point).tolist()
    size = round(radius * (1 << SHIFT))
    cv2.circle(canvas, (x, y), size, color, cv2.FILLED, cv2.LINE_AA, SHIFT)


def draw_ring(
    canvas: Image, point: Float[np.ndarray, "2"], color: tuple[int, int, int], radius: float
) -> None:
    """Draws a circle with a dark rim, on the picture itself; what is inside stays to be seen."""
    radius = max(2.0, radius)  # a smaller one has no inside
    x, y = fixed_point(point).tolist()
    size = round(radius * (1 << SHIFT))
    thickness = max(1, round(radius * 0.4))
    cv2.circle(canvas, (x, y), size, (0, 0, 0), thickness + 2, cv2.LINE_AA, SHIFT)
    cv2.circle(canvas, (x, y), size, color, thickness, cv2.LINE_AA, SHIFT)


def fixed_point(points: Points) -> np.ndarray:
    """Points in sixteenths of a pixel, as OpenCV's `shift` wants them."""
    # OpenCV takes 32-bit integers: what lies far outside has to stay within them.
    limit = np.iinfo(np.int32).max / 4
    return np.round(points * (1 << SHIFT)).clip(-limit, limit).astype(np.int32)


def enlarge(
    image: Image, points: Points, factor: int
) -> tuple[UInt8[np.ndarray, "hh ww 3"], Points]:
    """Enlarges a picture and moves points along, in the pixel-center convention."""
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


def plot_image(image: Image, title: str) -> Figure:
    """An image as a figure of its own shape, for a notebook."""
    height, width = image.shape[:2]
    figure = Figure(figsize=(_FIGURE_WIDTH, _FIGURE_WIDTH * height / width), layout="constrained")
    axes = figure.subplots()
    axes.imshow(image)
    axes.set_title(title)
    axes.set_axis_off()
    return figure


def save_image(path: Path, image: Image) -> None:
    """Writes RGB as an image file of the path's suffix, making its folder.

    Raises:
      OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_all({path: encode_image(path, image)})


def encode_image(path: Path, image: Image) -> bytes:
    """Encodes RGB in the format of the path's suffix.

    Raises:
      OSError: it cannot be encoded.
    """
    encoded, data = cv2.imencode(path.suffix, np.ascontiguousarray(image[..., ::-1]))
    if not encoded:
        raise OSError(errno.EIO, "the image could not be encoded", str(path))
    return data.tobytes()

"""Faces drawn on images: contours by part, points by confidence, the graph's strongest edges."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from lcgcn_jax.errors import InputError
from lcgcn_jax.image_arrays import ImageInput, is_path, rgb_image
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference.face import Face
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.visualize.faces import (
    SHIFT,
    Image,
    draw_contours,
    draw_point,
    draw_ring,
    fixed_point,
)

PARTS = (
    (86, 180, 233), (230, 159, 0), (240, 228, 66), (204, 121, 167), (213, 94, 0),
    (0, 200, 150), (90, 110, 255), (255, 130, 130), (200, 255, 200), (220, 220, 220),
)  # fmt: skip
"""RGB of the contours, in their order; the first of them are Okabe and Ito's, told apart by all eyes."""

EDGES = (255, 255, 255)
EDGES_A_LANDMARK = 1.0
"""Edges of the graph that are drawn, the strongest, over the number of landmarks."""

_VISIBLE = 0.5  # points of a lower visibility are hollow
_LEGEND_LINE = 18  # pixels


def draw_faces(
    image: Image,
    landmarks: Sequence[Float[np.ndarray, "k 2"]],
    confidence: Sequence[Float[np.ndarray, "k"]],
    scheme: LandmarkScheme,
    *,
    sides: Sequence[float],
    edges: Sequence[Float[np.ndarray, "k k"]] | None = None,
    visibility: Sequence[Float[np.ndarray, "k"] | None] | None = None,
) -> UInt8[np.ndarray, "_rows w 3"]:
    """A copy of a picture with faces drawn on it, and a legend below it.

    Contours have the colors `PARTS`, points the color of their confidence (viridis: 0 is dark blue, 1
    is yellow). Points of a visibility below 0.5 are hollow.

    Args:
      image: RGB.
      landmarks: of each face, in pixels of the picture.
      confidence: of each face's landmarks, in 0..1.
      scheme: what the landmarks mean.
      sides: of the faces' boxes, in pixels: points and lines are drawn to this size.
      edges: the graph of each face; its strongest edges between two landmarks are drawn.
      visibility: of each face's landmarks, in 0..1; None for a face without it.
    """
    canvas = image.copy()
    colors = [PARTS[i % len(PARTS)] for i in range(len(scheme.contours))]
    radii = [max(1.0, side / 90) for side in sides]
    for points, radius in zip(landmarks, radii, strict=True):
        draw_contours(canvas, points, scheme, colors, radius)
    for points, weights in zip(landmarks, edges or (), strict=edges is not None):
        _draw_edges(canvas, points, weights)
    if visibility is None:
        visibility = [None] * len(landmarks)
    for points, values, seen, radius in zip(landmarks, confidence, visibility, radii, strict=True):
        is_hollow = np.zeros(len(points), bool) if seen is None else seen < _VISIBLE
        for point, color, hollow in zip(points, _viridis(values), is_hollow, strict=True):
            if hollow:
                draw_ring(canvas, point, color, 1.4 * radius)
            else:
                draw_point(canvas, point, (0, 0, 0), 1.3 * radius)
                draw_point(canvas, point, color, radius)
    has_visibility = any(seen is not None for seen in visibility)
    legend = _legend(scheme, colors, canvas.shape[1], has_visibility=has_visibility)
    return np.vstack([canvas, legend])


def draw(
    image: ImageInput,
    faces: Sequence[Face],
    *,
    edges: bool = False,
    legend: bool = False,
) -> UInt8[np.ndarray, "_rows w 3"]:
    """Draws predicted faces on an image.

    Args:
      image: the image that was given to `LandmarkModel.predict`: a path, an RGB array or a PIL image.
      faces: its faces, in its pixels.
      edges: draw the strongest edges of the graph.
      legend: add a legend below the image.

    Returns:
      RGB `uint8` `[h w 3]`, with more rows if there is a legend. Contours have one color per part of the
      face, points the color of their confidence (viridis: 0 is dark blue, 1 is yellow). Points that are
      probably not visible are hollow.

    Raises:
      InputError: the image cannot be read, or `edges` is set and a face has none.
    """
    pixels = read_image(image) if is_path(image) else rgb_image(image)
    if not faces:
        return pixels.copy()
    weights = [face.edges for face in faces if face.edges is not None]
    if edges and len(weights) < len(faces):
        raise InputError("draw: these faces have no edges; leave out edges=True")
    scheme = faces[0].scheme
    if scheme is None or any(face.scheme != scheme for face in faces):
        raise InputError("draw: faces of one landmark scheme are needed; set Face.scheme")
    drawn = draw_faces(
        pixels,
        [face.landmarks for face in faces],
        [face.confidence for face in faces],
        scheme,
        sides=[float((face.box[2:] - face.box[:2]).max()) for face in faces],
        edges=weights if edges else None,
        visibility=[face.visibility for face in faces],
    )
    return drawn if legend else drawn[: len(pixels)]


def _draw_edges(
    canvas: Image, landmarks: Float[np.ndarray, "k 2"], weights: Float[np.ndarray, "k k"]
) -> None:
    between = weights * (1 - np.eye(len(weights), dtype=weights.dtype))
    count = round(EDGES_A_LANDMARK * len(weights))
    fixed = fixed_point(landmarks).tolist()
    for position in np.argsort(between, axis=None)[-count:]:
        i, j = np.unravel_index(position, between.shape)
        cv2.line(canvas, fixed[i], fixed[j], EDGES, 1, cv2.LINE_AA, SHIFT)


def _viridis(values: Float[np.ndarray, "n"]) -> list[tuple[int, int, int]]:
    """RGB of numbers in 0..1."""
    levels = np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
    bgr = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_VIRIDIS)[:, 0]
    return [tuple(color) for color in bgr[:, ::-1].tolist()]


def _legend(
    scheme: LandmarkScheme,
    colors: Sequence[tuple[int, int, int]],
    width: int,
    *,
    has_visibility: bool,
) -> UInt8[np.ndarray, "_rows _columns 3"]:
    """What the colors mean, on as many lines as it takes; none where the width is too small."""
    ramp = _viridis(np.linspace(0, 1, 3 * _LEGEND_LINE))
    items = [np.hstack([_text("0"), _swatch(ramp), _text("1 confidence")])]
    if has_visibility:
        ring = np.zeros((_LEGEND_LINE, _LEGEND_LINE, 3), np.uint8)
        middle = np.array([_LEGEND_LINE - 1.0, _LEGEND_LINE - 1.0]) / 2
        draw_ring(ring, middle, EDGES, _LEGEND_LINE / 4)
        items.append(np.hstack([ring, _text("not visible")]))
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
    """Colors side by side, a line of the legend high."""
    pad = _LEGEND_LINE // 3
    image = np.zeros((_LEGEND_LINE, len(colors) + pad, 3), np.uint8)
    image[pad:-pad, pad:] = colors
    return image

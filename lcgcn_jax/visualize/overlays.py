"""Overlays of predicted faces on images: contours, landmarks, and the strongest edges of the graph."""

import functools
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from lcgcn_jax.errors import InputError
from lcgcn_jax.geometry import box_of_landmarks
from lcgcn_jax.image_arrays import ImageInput, describe_value, is_path, rgb_image
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.image_inputs import as_list
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.visualize.faces import (
    SHIFT,
    WHITE,
    Color,
    Image,
    draw_contours,
    draw_number,
    draw_points,
    fixed_point,
)

CONTOUR_COLORS = (
    (86, 180, 233), (230, 159, 0), (240, 228, 66), (204, 121, 167), (213, 94, 0),
    (0, 200, 150), (90, 110, 255), (255, 130, 130), (200, 255, 200), (220, 220, 220),
)  # fmt: skip
"""RGB colors of the contours, in their order; the first five are colorblind-safe (Okabe and Ito)."""

_DASH = 4.0  # length of a dash and of a gap, in radii of a landmark
_MAX_DASHES = 10_000  # a longer line has landmarks far outside the image, and is not drawn
_VISIBLE = 0.5  # landmarks with a lower visibility are drawn as rings
_LEGEND_LINE = 18  # height in pixels


def draw_faces(
    image: Image,
    landmarks: Sequence[Float[np.ndarray, "k 2"]],
    confidence: Sequence[Float[np.ndarray, "k"]],
    scheme: LandmarkScheme,
    *,
    sides: Sequence[float],
    edges: Sequence[Float[np.ndarray, "k k"]] | None = None,
    visibility: Sequence[Float[np.ndarray, "k"] | None] | None = None,
    reliable: Sequence[bool | None] | None = None,
    tracks: Sequence[int | None] | None = None,
) -> UInt8[np.ndarray, "_rows w 3"]:
    """Draw faces on a copy of an image, and add a legend below it.

    Contours have the colors `CONTOUR_COLORS`. Landmarks have the color of their confidence (viridis: 0 is
    dark blue, 1 is yellow); those with a visibility below 0.5 are rings. A face that is not reliable has
    dashed contours, and a dashed box around its landmarks.

    Args:
      image: RGB image.
      landmarks: landmarks of each face in image pixels.
      confidence: confidence of the landmarks of each face, in 0..1.
      sides: side of each face box in pixels; it scales points and lines.
      edges: edges of each face; the k strongest between different landmarks are drawn.
      visibility: visibility of the landmarks of each face, in 0..1; None for a face without it.
      reliable: whether each face is reliable (`Face.reliable`); None counts as reliable.
      tracks: track of each face (`Face.track`), which is drawn if there are several faces.
    """
    canvas = image.copy()
    colors = [CONTOUR_COLORS[i % len(CONTOUR_COLORS)] for i in range(len(scheme.contours))]
    radii = [max(1.0, side / 90) for side in sides]
    if reliable is None:
        reliable = [None] * len(landmarks)
    for points, radius, is_reliable in zip(landmarks, radii, reliable, strict=True):
        if is_reliable is False:
            _draw_dashed(canvas, points, scheme, colors, radius)
        else:
            draw_contours(canvas, points, scheme, colors, radius)
    for points, weights in zip(landmarks, edges or (), strict=edges is not None):
        _draw_edges(canvas, points, weights)
    if visibility is None:
        visibility = [None] * len(landmarks)
    for points, values, visible, radius in zip(
        landmarks, confidence, visibility, radii, strict=True
    ):
        is_hollow = None if visible is None else visible < _VISIBLE
        draw_points(canvas, points, _viridis(values), radius, has_rim=True, is_hollow=is_hollow)
    for points, track in zip(landmarks, tracks or (), strict=tracks is not None):
        if track is not None and len(landmarks) > 1:
            draw_number(canvas, box_of_landmarks(points), track)
    has_visibility = any(visible is not None for visible in visibility)
    legend = _legend(
        scheme,
        tuple(colors),
        canvas.shape[1],
        has_visibility=has_visibility,
        has_unreliable=False in reliable,
    )
    return np.vstack([canvas, legend])


def draw(
    image: ImageInput, faces: Face | Iterable[Face], *, edges: bool = False, legend: bool = False
) -> UInt8[np.ndarray, "_rows w 3"]:
    """Draw predicted faces on an image.

    Args:
      image: input of `LandmarkModel.predict`: a path, an RGB array or a PIL image.
      faces: output of `LandmarkModel.predict`, or one of its faces.
      edges: draw the strongest edges of the graph.
      legend: add a legend below the image.

    Returns:
      RGB `uint8` image `[h w 3]`, with more rows if there is a legend. Contours have one color per part of
      the face. Landmarks have the color of their confidence (viridis: 0 is dark blue, 1 is yellow); those
      that are probably not visible are rings. The lines of a face that is not reliable are dashed. Of
      several faces with a track, each has its number.

    Raises:
      InputError: the image cannot be read, `faces` are not those of one image, `edges` is set and a face has
        none, or the faces have no common landmark scheme.
    """
    pixels = read_image(image) if is_path(image) else rgb_image(image)
    faces = [faces] if isinstance(faces, Face) else as_list("draw: faces", faces)
    if others := [face for face in faces if not isinstance(face, Face)]:
        raise InputError(
            f"draw: {describe_value(others[0])} is not a face; give the faces of one image, such as one of "
            "the lists of predict_batch"
        )
    if not faces:
        return pixels.copy()
    weights = [face.edges for face in faces if face.edges is not None]
    if edges and len(weights) < len(faces):
        raise InputError("draw: a face has no edges (the model has no graph); leave out edges=True")
    scheme = faces[0].scheme
    if scheme is None or any(face.scheme != scheme for face in faces):
        raise InputError(
            "draw: the faces have no common landmark scheme; set Face.scheme, and draw each scheme separately"
        )
    if any(len(face.landmarks) != scheme.num_landmarks for face in faces):
        raise InputError(f"draw: a face does not have the landmarks of its scheme {scheme.name}")
    overlay = draw_faces(
        pixels,
        [face.landmarks for face in faces],
        [face.confidence for face in faces],
        scheme,
        sides=[float((face.box[2:] - face.box[:2]).max()) for face in faces],
        edges=weights if edges else None,
        visibility=[face.visibility for face in faces],
        reliable=[face.reliable for face in faces],
        tracks=[face.track for face in faces],
    )
    return overlay if legend else overlay[: len(pixels)]


def _draw_dashed(
    canvas: Image,
    landmarks: Float[np.ndarray, "k 2"],
    scheme: LandmarkScheme,
    colors: Sequence[Color],
    radius: float,
) -> None:
    """Draw the contours of a scheme and the box of the landmarks as dashed lines in place."""
    finite = landmarks[np.isfinite(landmarks).all(axis=1)]
    lines = [
        (landmarks[[*contour.indices, *contour.indices[: contour.closed]]], color)
        for contour, color in zip(scheme.contours, colors, strict=True)
    ]
    if len(finite):
        (x0, y0), (x1, y1) = finite.min(axis=0), finite.max(axis=0)
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]])
        lines.append((corners, WHITE))
    thickness = max(1, round(radius * 0.6))
    for points, color in lines:
        for dash in _dashes(points, max(3.0, _DASH * radius)):
            cv2.polylines(
                canvas, [fixed_point(dash)], False, color, thickness, cv2.LINE_AA, shift=SHIFT
            )


def _dashes(points: Float[np.ndarray, "n 2"], length: float) -> list[Float[np.ndarray, "_m 2"]]:
    """Dashes of a length in pixels along a line, with gaps of that length."""
    points = points[np.isfinite(points).all(axis=1)]
    distance = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)))
    if len(points) < 2 or distance[-1] > _MAX_DASHES * length:
        return []
    dashes = []
    for start in np.arange(0.0, distance[-1], 2 * length):
        end = min(start + length, distance[-1])
        corners = distance[(distance > start) & (distance < end)]
        at = np.concatenate([[start], corners, [end]])
        dashes.append(np.stack([np.interp(at, distance, points[:, i]) for i in (0, 1)], axis=1))
    return dashes


def _draw_edges(
    canvas: Image, landmarks: Float[np.ndarray, "k 2"], weights: Float[np.ndarray, "k k"]
) -> None:
    """Draw the k strongest edges between different landmarks in place."""
    weights = weights * (1 - np.eye(len(weights), dtype=weights.dtype))
    strongest = np.argsort(weights, axis=None)[-len(weights) :]
    located = np.all(np.isfinite(landmarks), axis=1)
    fixed = fixed_point(np.where(located[:, None], landmarks, 0.0)).tolist()
    for i, j in zip(*np.unravel_index(strongest, weights.shape), strict=True):
        if located[i] and located[j]:
            cv2.line(canvas, fixed[i], fixed[j], WHITE, 1, cv2.LINE_AA, SHIFT)


def _viridis(values: Float[np.ndarray, "n"]) -> list[Color]:
    """Map values in 0..1 to RGB colors."""
    levels = np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
    bgr = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_VIRIDIS)[:, 0]
    return [tuple(color) for color in bgr[:, ::-1].tolist()]


@functools.lru_cache(maxsize=4)  # all frames of a video have the same legend
def _legend(
    scheme: LandmarkScheme,
    colors: tuple[Color, ...],
    width: int,
    *,
    has_visibility: bool,
    has_unreliable: bool,
) -> UInt8[np.ndarray, "_rows _columns 3"]:
    """Legend of the colors, on as many lines as needed; empty if the image is too narrow."""
    ramp = _viridis(np.linspace(0, 1, 3 * _LEGEND_LINE))
    items = [np.hstack([_text("0"), _swatch(ramp), _text("1 confidence")])]
    if has_visibility:
        ring = np.zeros((_LEGEND_LINE, _LEGEND_LINE, 3), np.uint8)
        middle = np.full((1, 2), (_LEGEND_LINE - 1) / 2)
        draw_points(ring, middle, [WHITE], _LEGEND_LINE / 5.6, is_hollow=np.ones(1, bool))
        items.append(np.hstack([ring, _text("not visible")]))
    if has_unreliable:
        items.append(_text("- - not reliable"))
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
    """White text on black with the height of a legend line."""
    font, scale, pad = cv2.FONT_HERSHEY_SIMPLEX, 0.4, _LEGEND_LINE // 3
    width = cv2.getTextSize(text, font, scale, 1)[0][0]
    image = np.zeros((_LEGEND_LINE, width + 2 * pad, 3), np.uint8)
    origin = (pad, _LEGEND_LINE - pad)
    return cv2.putText(image, text, origin, font, scale, WHITE, 1, cv2.LINE_AA)


def _swatch(colors: Sequence[Color]) -> Image:
    """Columns of colors with the height of a legend line."""
    pad = _LEGEND_LINE // 3
    image = np.zeros((_LEGEND_LINE, len(colors) + pad, 3), np.uint8)
    image[pad:-pad, pad:] = colors
    return image

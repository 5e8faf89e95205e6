"""Details of landmarks on an image: predicted errors, and the strongest edges into a landmark."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float

from lcgcn_jax.inference.face import Face
from lcgcn_jax.visualize.faces import BLACK, SHIFT, Color, Image, draw_text, fixed_point

ERROR_COLOR: Color = (255, 64, 160)
EDGE_COLOR: Color = (255, 170, 0)

_MIN_EDGE = 0.05  # smallest weight that is drawn, relative to the strongest edge
_MAX_THICKNESS = 5  # of the strongest edge, in pixels
_TEXT_SCALE = 0.45


def draw_predicted_errors(image: Image, faces: Sequence[Face]) -> Image:
    """Draw the predicted error of each landmark on a copy of an image, as a translucent circle.

    The radius is `Face.predicted_error`. The model predicts one distance per landmark, so that the ellipse
    of its error is a circle. Faces without predicted errors are skipped.
    """
    canvas = image.copy()
    circles = [
        (fixed_point(point).tolist(), round(float(radius) * (1 << SHIFT)))
        for face in faces
        if face.predicted_error is not None
        for point, radius in zip(face.landmarks, face.predicted_error, strict=True)
        if np.isfinite(radius) and np.isfinite(point).all()
    ]
    for center, radius in circles:
        cv2.circle(canvas, center, radius, ERROR_COLOR, cv2.FILLED, cv2.LINE_AA, SHIFT)
    canvas = cv2.addWeighted(canvas, 0.4, image, 0.6, 0)
    for center, radius in circles:
        cv2.circle(canvas, center, radius, ERROR_COLOR, 1, cv2.LINE_AA, SHIFT)
    return canvas


def strongest_edges(
    edges: Float[np.ndarray, "k k"], landmark: int, count: int
) -> list[tuple[int, float]]:
    """Strongest edges into a landmark from others: pairs of a source and a weight, strongest first."""
    weights = edges[landmark]
    order = np.argsort(-np.abs(weights), kind="stable")
    return [(int(j), float(weights[j])) for j in order if j != landmark][:count]


def draw_incoming_edges(
    image: Image, points: Float[np.ndarray, "k 2"], landmark: int, edges: list[tuple[int, float]]
) -> Image:
    """Draw edges into a landmark on a copy of an image, each with its weight at the source.

    Args:
      image: RGB image.
      points: landmarks in pixels of the image; not finite where they have no position.
      edges: as `strongest_edges` returns them; the thickness of a line is proportional to the weight, and
        weights below 5 % of the strongest are left out.
    """
    canvas = image.copy()
    located = np.all(np.isfinite(points), axis=1)
    if not located[landmark]:
        return canvas
    fixed = fixed_point(np.where(located[:, None], points, 0.0)).tolist()
    largest = max((abs(weight) for _, weight in edges), default=0.0) or 1.0
    edges = [edge for edge in edges if abs(edge[1]) >= _MIN_EDGE * largest and located[edge[0]]]
    for source, weight in reversed(edges):
        thickness = max(1, round(_MAX_THICKNESS * abs(weight) / largest))
        for color, width in ((BLACK, thickness + 2), (EDGE_COLOR, thickness)):
            cv2.line(canvas, fixed[source], fixed[landmark], color, width, cv2.LINE_AA, SHIFT)
    for color, radius in ((BLACK, 9), (EDGE_COLOR, 7)):
        cv2.circle(canvas, fixed[landmark], radius << SHIFT, color, 2, cv2.LINE_AA, SHIFT)
    for source, weight in reversed(edges):
        _draw_text(canvas, points[source], points[landmark], f"{weight:.3f}")
    return canvas


def _draw_text(
    canvas: Image, point: Float[np.ndarray, "2"], away_from: Float[np.ndarray, "2"], text: str
) -> None:
    """Draw a text next to a point, on the side that is away from another point."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, _TEXT_SCALE, 1)
    direction = point - away_from
    direction = direction / max(float(np.linalg.norm(direction)), 1e-6)
    middle = point + direction * (np.abs(direction) @ [width / 2, height / 2] + 8)
    corner = np.round(middle - (width / 2, -height / 2)).clip(-1e6, 1e6).astype(int).tolist()
    draw_text(canvas, text, corner, _TEXT_SCALE)

"""Faces of an uploaded image, and the views of them that the page shows."""

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import cv2
import numpy as np

from lcgcn_jax import geometry
from lcgcn_jax.app.uploads import display_name, read_upload
from lcgcn_jax.errors import count_of
from lcgcn_jax.inference import results
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.visualize.faces import BLACK, WHITE, Image, draw_number
from lcgcn_jax.visualize.landmark_details import (
    draw_incoming_edges,
    draw_predicted_errors,
    strongest_edges,
)
from lcgcn_jax.visualize.overlays import draw

ERRORS, EDGES = "predicted error", "strongest edges of all landmarks"
LAYERS = (ERRORS, EDGES)
"""Layers that can be shown on top of the landmarks and contours."""

NUM_EDGES = 10
"""Number of edges into a landmark that are listed."""

_MAX_SIDE = 1600  # of the image that is shown, in pixels
_VIEW_SIDE = 720  # of the view of one face, in pixels
_VIEW_SCALE = 1.5  # side of the view relative to the box of the face
_MAX_DISTANCE = 0.15  # from a click to a landmark, relative to the side of the face


@dataclasses.dataclass(frozen=True)
class Selection:
    """Face in the view, and its landmark whose edges are shown, if any."""

    face: int = 0
    landmark: int | None = None


@dataclasses.dataclass(frozen=True)
class Analysis:
    """An image that fits on a screen, and its faces.

    Attributes:
      name: file name.
      width: width of the uploaded image.
      height: height of the uploaded image.
      pixels: the image, downsampled if it is larger than a screen.
      faces: faces in pixels of the uploaded image; the files for download contain them.
      shown: the same faces in `pixels`.
      scheme: landmark scheme of the model.
    """

    name: str
    width: int
    height: int
    pixels: Image
    faces: Sequence[Face]
    shown: Sequence[Face]
    scheme: LandmarkScheme

    def describe(self) -> str:
        """Describe the result in a sentence."""
        size = f"{self.name}: {self.width} x {self.height} pixels"
        if not self.faces:
            return (
                f"{size}. No face found. Use a sharper image, or one in which the face is larger."
            )
        return f"{size}, {count_of(len(self.faces), 'face')}"

    def to_json(self) -> str:
        """The JSON file of `lcgcn predict`."""
        content = results.describe_image(
            Path(self.name), self.width, self.height, self.faces, self.scheme
        )
        return json.dumps(content) + "\n"

    def to_csv(self) -> str:
        """The CSV file of `lcgcn predict --format csv`."""
        return results.format_csv(self.faces, self.scheme)


def analyze(path: Path, model: LandmarkModel) -> Analysis:
    """Predict the faces of an uploaded image.

    Raises:
      InputError: the file is too large or not a complete image.
    """
    pixels = read_upload(path)
    height, width = pixels.shape[:2]
    faces = model.predict(pixels)
    # The factor maps the centers of the corner pixels as `cv2.resize` does.
    factor = min(1.0, _MAX_SIDE / max(width, height))
    if factor < 1.0:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    offset = (factor - 1) / 2
    affine = np.array([[factor, 0.0, offset], [0.0, factor, offset]])
    shown = [move_face(face, affine) for face in faces]
    return Analysis(display_name(path), width, height, pixels, faces, shown, model.scheme)


def move_face(face: Face, affine: geometry.Affine) -> Face:
    """Map the coordinates of a face by a scale and a shift."""
    scale = float(affine[0, 0])
    error, crop = face.predicted_error, face.crop
    return dataclasses.replace(
        face,
        crop=None if crop is None else geometry.compose(crop, geometry.invert(affine)),
        box=geometry.transform_box(affine, face.box),
        landmarks=geometry.transform_points(affine, face.landmarks),
        heatmap_landmarks=geometry.transform_points(affine, face.heatmap_landmarks),
        predicted_error=None if error is None else error * scale,
    )


def overview(analysis: Analysis, selection: Selection, layers: Collection[str]) -> Image:
    """Draw all faces on the image; with several faces, numbers and a frame around the selected one."""
    canvas = _draw(analysis.pixels, analysis.shown, layers)
    if len(analysis.shown) < 2:
        return canvas
    for number, face in enumerate(analysis.shown):
        x0, y0, x1, y1 = np.round(face.box).astype(int).tolist()
        if number == selection.face:
            for color, thickness in ((BLACK, 3), (WHITE, 1)):
                cv2.rectangle(canvas, (x0, y0), (x1, y1), color, thickness, cv2.LINE_AA)
        draw_number(canvas, face.box, number)
    return canvas


def face_view(analysis: Analysis, selection: Selection, layers: Collection[str]) -> Image | None:
    """Draw the selected face enlarged, with the edges into the selected landmark."""
    if not analysis.shown:
        return None
    face, crop = _view(analysis, selection.face)
    # Points are as large as those of a face of half this size, so that they hide less of it.
    center = face.box.reshape(2, 2).mean(axis=0)
    box = ((face.box.reshape(2, 2) - center) / 2 + center).reshape(4)
    canvas = _draw(crop, [dataclasses.replace(face, box=box)], layers)
    if selection.landmark is None or face.edges is None:
        return canvas
    edges = strongest_edges(face.edges, selection.landmark, NUM_EDGES)
    return draw_incoming_edges(canvas, face.landmarks, selection.landmark, edges)


def select_in_overview(analysis: Analysis, x: float, y: float) -> Selection | None:
    """Face and landmark next to a point of the overview; None if all are far from it."""
    candidates = [_nearest(face, x, y) for face in analysis.shown]
    if not candidates:
        return None
    number = min(range(len(candidates)), key=lambda i: candidates[i][1])
    landmark, distance = candidates[number]
    return Selection(number, landmark) if distance <= _MAX_DISTANCE else None


def select_in_view(analysis: Analysis, selection: Selection, x: float, y: float) -> Selection:
    """Landmark next to a point of the view of a face; without one if all are far from it."""
    face, _ = _view(analysis, selection.face)
    landmark, distance = _nearest(face, x, y)
    return Selection(selection.face, landmark if distance <= _MAX_DISTANCE else None)


def describe_landmark(analysis: Analysis, selection: Selection) -> str:
    """Describe the selected landmark in Markdown."""
    if not analysis.faces:
        return ""
    if selection.landmark is None:
        return "Click on a landmark to see its edges."
    face, i = analysis.faces[selection.face], selection.landmark
    x, y = face.landmarks[i]
    parts = [f"at ({x:.1f}, {y:.1f})", f"confidence {face.confidence[i]:.2f}"]
    if face.predicted_error is not None:
        parts.append(f"predicted error {face.predicted_error[i]:.1f} pixels")
    if face.visibility is not None:
        parts.append(f"visible with a probability of {face.visibility[i]:.2f}")
    if face.edges is None:
        parts.append("this model has no graph, and so no edges")
    else:
        parts.append(f"edge to itself {face.edges[i, i]:.3f}")
    return f"**{_landmark_name(analysis, i)}** of face {selection.face}: " + ", ".join(parts)


def edge_table(analysis: Analysis, selection: Selection) -> list[list[str]]:
    """Rows of the strongest edges into the selected landmark: source, weight, multiple of uniform."""
    if selection.landmark is None or not analysis.faces:
        return []
    edges = analysis.faces[selection.face].edges
    if edges is None:
        return []
    return [
        [_landmark_name(analysis, source), f"{weight:.3f}", f"{weight * len(edges):.1f}"]
        for source, weight in strongest_edges(edges, selection.landmark, NUM_EDGES)
    ]


def _landmark_name(analysis: Analysis, landmark: int) -> str:
    return f"{analysis.scheme.names[landmark].replace('_', ' ')} ({landmark})"


def _draw(image: Image, faces: Sequence[Face], layers: Collection[str]) -> Image:
    if ERRORS in layers:
        image = draw_predicted_errors(image, faces)
    return draw(image, faces, edges=EDGES in layers and all(f.edges is not None for f in faces))


def _view(analysis: Analysis, number: int) -> tuple[Face, Image]:
    """Enlarged crop of a face, and the face in it."""
    face = analysis.shown[number]
    corners = np.vstack([face.box.reshape(2, 2), face.landmarks])
    corners = corners[np.isfinite(corners).all(axis=1)]
    box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    affine = geometry.crop_transform(box, _VIEW_SIDE, scale=_VIEW_SCALE)
    return move_face(face, affine), geometry.warp(analysis.pixels, affine, _VIEW_SIDE)


def _nearest(face: Face, x: float, y: float) -> tuple[int, float]:
    """Landmark next to a point, and its distance relative to the side of the face."""
    distances = np.linalg.norm(face.landmarks - [x, y], axis=1)
    landmark = int(np.nanargmin(distances))
    return landmark, float(distances[landmark] / max(geometry.crop_side(face.box, 1.0), 1e-6))

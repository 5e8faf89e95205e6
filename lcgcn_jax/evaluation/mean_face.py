"""Mean face of a split: initial shape of the graph models, and baseline that a model must beat."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.evaluation.metrics import face_errors


class _Faces(NamedTuple):
    """Annotations of the n faces of a split, in pixels of their images.

    `corner` and `extent` are those of the ground-truth boxes, and `distance` is the normalizing distance that
    the dataset provides, or NaN.
    """

    landmarks: Float[np.ndarray, "n k 2"]
    visible: Bool[np.ndarray, "n k"]
    corner: Float[np.ndarray, "n 1 2"]
    extent: Float[np.ndarray, "n 1 2"]
    distance: Float[np.ndarray, "n"]


def mean_face(dataset: FaceDataset, split: str) -> Float[np.ndarray, "k 2"]:
    """Mean of the landmarks of a split, each face scaled to the unit square by its ground-truth box.

    A landmark that is annotated in no face is at (0.5, 0.5).
    """
    return _mean_in_box(_read_faces(dataset, split))


def mean_shape(dataset: FaceDataset, split: str) -> Float[np.ndarray, "k 2"]:
    """Mean face with the mean aspect ratio of a split, centered, with a mean squared radius of 1."""
    faces = _read_faces(dataset, split)
    shape = _mean_in_box(faces) * (faces.extent / faces.extent[..., :1]).mean(axis=0)
    shape = shape - shape.mean(axis=0, keepdims=True)
    return shape / np.sqrt((shape**2).sum(axis=1).mean())


def mean_face_errors(dataset: FaceDataset, train_split: str, split: str) -> Float[np.ndarray, "n"]:
    """Errors of the mean face of the training split, placed in the ground-truth box of each face.

    Faces without a normalizing distance are left out.
    """
    faces = _read_faces(dataset, split)
    predicted = mean_face(dataset, train_split)[None] * faces.extent + faces.corner
    distance = dataset.scheme.normalizing_distance(faces.landmarks, faces.visible, faces.distance)
    measured = np.isfinite(distance)
    columns = (predicted, faces.landmarks, faces.visible, distance)
    return face_errors(*(values[measured] for values in columns))


def _mean_in_box(faces: _Faces) -> Float[np.ndarray, "k 2"]:
    weights = faces.visible[..., None]
    in_box = np.where(weights, (faces.landmarks - faces.corner) / faces.extent, 0.0)
    count = weights.sum(axis=0)
    return np.where(count > 0, in_box.sum(axis=0) / np.maximum(count, 1), 0.5)


def _read_faces(dataset: FaceDataset, split: str) -> _Faces:
    records = list(dataset.source(split, with_images=False))
    boxes = np.stack([record["box"] for record in records]).astype(np.float64)[:, None]
    return _Faces(
        landmarks=np.stack([record["landmarks"] for record in records]).astype(np.float64),
        visible=np.stack([record["visible"] for record in records]),
        corner=boxes[..., :2],
        extent=boxes[..., 2:] - boxes[..., :2],
        distance=np.stack([record["normalizer"] for record in records]),
    )

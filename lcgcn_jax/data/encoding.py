"""Encoding of annotated faces as records, and decoding of their images."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int8, UInt8

from lcgcn_jax import geometry, image_io
from lcgcn_jax.data.annotations import FaceAnnotation, Visibility
from lcgcn_jax.data.source_images import read_source_image

MIN_SPAN = 2.0
"""Smallest extent of the landmarks of a face, in pixels; no annotated face is smaller."""
CONTEXT_SCALE = 2.0
"""Side of the context crop, relative to the longer side of the face box."""

_MIN_WHOLE_AREA = 0.95
"""Fraction of the image area from which the context crop is the whole image."""


def encode_face(face: FaceAnnotation) -> dict[str, Any]:
    """Encode a face as a record: the context crop as a JPEG or PNG file, and labels in crop pixels.

    Args:
      face: the face, in pixels of the upright image.

    Raises:
      ValueError: the image cannot be read, or the landmarks or the box do not lie on it.
    """
    if not face.visible.any():
        raise ValueError("not one landmark is annotated")
    image = read_source_image(face.image_path)
    height, width = image.pixels.shape[:2]
    box = geometry.box_of_landmarks(face.landmarks, face.visible)
    _check_on_image(face.landmarks[face.visible], width, height)
    if face.provided_box is not None:
        try:
            geometry.check_box(face.provided_box, width, height)
        except ValueError as error:
            raise ValueError(f"the box {face.provided_box.tolist()}: {error}") from error
    x0, y0, x1, y1 = _context(box, width, height)
    to_source = np.array([[1.0, 0.0, x0], [0.0, 1.0, y0]])
    to_context = geometry.invert(to_source)
    provided = np.full(4, np.nan) if face.provided_box is None else face.provided_box
    labels = face.visibility
    return {
        "image": image.encode_crop(x0, y0, x1, y1),
        "landmarks": geometry.transform_points(to_context, face.landmarks).astype(np.float32),
        "visible": face.visible,
        "visibility": unknown_visibility(len(face.visible)) if labels is None else labels,
        "box": geometry.transform_box(to_context, box).astype(np.float32),
        "provided_box": geometry.transform_box(to_context, provided).astype(np.float32),
        "attributes": np.array(face.attributes, bool),
        "subset": face.subset,
        "name": face.name,
        "group": face.group,
        # The context crop is not scaled, so that its pixels are those of the image.
        "normalizer": np.float32(face.normalizer),
        "to_source": to_source.astype(np.float32),
    }


def unknown_visibility(num_landmarks: int) -> Int8[np.ndarray, "k"]:
    """Visibility labels of a face without any."""
    return np.full(num_landmarks, Visibility.UNKNOWN, np.int8)


def decode_image(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decode the image of a record to 8-bit RGB.

    Records contain upright pixels. An EXIF orientation is ignored: datasets written by earlier versions
    may have one, and their landmarks refer to the pixels as stored.

    Raises:
      ValueError: the bytes are not an image.
    """
    return image_io.decode_image(encoded, upright=False)


def _check_on_image(points: Float[np.ndarray, "k 2"], width: int, height: int) -> None:
    """Check that the landmarks of a face lie on the image or near it."""
    outside = geometry.distance_outside(points, width, height)
    message = f"a landmark lies {outside:.4g} px outside the {width} x {height} image"
    # Checked first, because huge coordinates overflow below.
    if outside > max(width, height):
        raise ValueError(message)
    center = np.median(points, axis=0)
    # About the side of the face box, and robust to stray landmarks.
    face_side = 3 * np.median(np.linalg.norm(points - center, axis=1))
    if face_side == 0 or not np.ptp(points, axis=0).all():
        raise ValueError("the landmarks have no extent")
    if (span := float(np.ptp(points, axis=0).max())) < MIN_SPAN:
        raise ValueError(
            f"the landmarks span only {span:.2g} px; are their coordinates fractions of the image?"
        )
    if outside > face_side:
        raise ValueError(message)
    inside = (points >= 0) & (points <= [width - 1, height - 1])
    if not inside.all(axis=1).any():
        raise ValueError(f"no landmark lies on the {width} x {height} image")


def _context(box: geometry.Box, width: int, height: int) -> tuple[int, int, int, int]:
    """First and past-the-end pixel (x0, y0, x1, y1) of the context crop, within the image.

    A crop that covers nearly the whole image becomes the whole image, whose file is copied without
    recompression.
    """
    side = CONTEXT_SCALE * (box[2:] - box[:2]).max()
    center = (box[:2] + box[2:]) / 2
    size = np.array([width, height])
    start = np.clip(np.floor(center - side / 2 + 0.5), 0, size).astype(int)
    stop = np.clip(np.ceil(center + side / 2 + 0.5), 0, size).astype(int)
    if np.prod(stop - start) >= _MIN_WHOLE_AREA * width * height:
        return 0, 0, width, height
    return int(start[0]), int(start[1]), int(stop[0]), int(stop[1])

"""Face crops for evaluation, and visibility labels of occluded landmarks."""

import zlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Int8

from lcgcn_jax import compat, geometry
from lcgcn_jax.data.annotations import Visibility
from lcgcn_jax.data.corruptions import CORRUPTIONS, Mask, corrupt
from lcgcn_jax.data.encoding import decode_image
from lcgcn_jax.errors import InputError, choose

Record = dict[str, Any]
Labels = Int8[np.ndarray, "k"]

BOXES = {"gt": "box", "rect": "provided_box"}
"""Name of a face box -> field of the record."""


def crop_face(
    record: Record, size: int, box: str | geometry.Box = "gt", corruption: str = "none"
) -> dict[str, Any]:
    """Crop a face for evaluation, and map its landmarks into the crop.

    Args:
      box: face box: `gt` (box of the true landmarks), `rect` (box provided by the dataset), or four numbers
        in pixels of the record's image.
      corruption: one of `CORRUPTIONS`; its randomness depends only on the name of the face.

    Returns:
      `image` uint8 [size size 3] RGB; `landmarks` float32 [k 2] in crop pixels; `visible` bool [k];
      `visibility` int8 [k], values of `annotations.Visibility`; `crop_to_source` float64 [2 3], from crop
      pixels to pixels of the source image; `source_landmarks` float64 [k 2] in pixels of the source image;
      `normalizer` float32, the normalizing distance provided by the dataset in the same pixels, or NaN;
      `attributes` bool [num_attributes]; `name` and `subset`, text.

    Raises:
      InputError: the dataset has no such box, or the corruption is unknown.
    """
    corruption = compat.upgrade_corruption(corruption)
    choose("corruption", corruption, CORRUPTIONS)
    to_crop = geometry.crop_transform(_face_box(record, box), size)
    to_source = record["to_source"].astype(np.float64)
    landmarks = record["landmarks"].astype(np.float64)
    image = geometry.warp(decode_image(record["image"]), to_crop, size)
    rng = np.random.default_rng(zlib.crc32(record["name"].encode()))
    in_crop = geometry.transform_points(to_crop, landmarks)
    image, covered = corrupt(image, CORRUPTIONS[corruption], rng)
    return {
        "image": image,
        "landmarks": in_crop.astype(np.float32),
        "visible": record["visible"],
        "visibility": cover_labels(record["visibility"], in_crop, covered),
        "crop_to_source": geometry.compose(to_source, geometry.invert(to_crop)),
        "source_landmarks": geometry.transform_points(to_source, landmarks),
        "normalizer": record["normalizer"],
        "attributes": record["attributes"],
        "name": record["name"],
        "subset": record["subset"],
    }


def _face_box(record: Record, box: str | geometry.Box) -> geometry.Box:
    if not isinstance(box, str):
        return box
    choose("box", box, BOXES)
    face_box = record[BOXES[box]].astype(np.float64)
    if not np.isfinite(face_box).all():
        raise InputError(f"{record['name']}: the data provides no face box; use the box 'gt'")
    return face_box


def cover_labels(labels: Labels, landmarks: geometry.Points, covered: Mask) -> Labels:
    """Update visibility labels after occluders were drawn over a crop.

    Args:
      labels: values of `annotations.Visibility`; only visible landmarks change.
      landmarks: crop pixels; any value for landmarks without a location.
      covered: pixels under an occluder.
    """
    inside = is_inside(landmarks, len(covered))
    x, y = np.where(inside[:, None], np.round(landmarks), 0.0).astype(int).T
    is_hidden = (labels == Visibility.VISIBLE) & inside & covered[y, x]
    return np.where(is_hidden, np.int8(Visibility.EXTERNALLY_OCCLUDED), labels)


def is_inside(landmarks: geometry.Points, size: int) -> Bool[np.ndarray, "k"]:
    """Which landmarks lie on a pixel of a square crop; False if a coordinate is NaN."""
    return np.all((landmarks >= -0.5) & (landmarks < size - 0.5), axis=1)

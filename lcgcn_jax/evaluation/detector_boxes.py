"""What the face detector finds on the faces of a prepared dataset."""

import numpy as np
from jaxtyping import Bool, Float

from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.data.encoding import decode_image
from lcgcn_jax.geometry import box_overlaps
from lcgcn_jax.inference.face_detector import BOX_MAP, Detections, FaceDetector

MATCH_OVERLAP = 0.3
"""IoU of the detector's box and the landmarks' box from which a face counts as found."""


def detect_split(
    detector: FaceDetector, dataset: FaceDataset, split: str
) -> tuple[Detections, Float[np.ndarray, "n 4"], Bool[np.ndarray, "n"]]:
    """Runs the detector on every record of a split.

    Where there are several faces, the one that overlaps most with the landmarks' box is taken.

    Returns:
      The detections of the m faces that were found; the landmarks' boxes of all n faces, in the
      records' pixels; and which of the n were found.
    """
    source = dataset.source(split)
    rows, boxes, found = [], [], []
    for i in range(len(source)):
        record = source[i]
        box = record["box"].astype(np.float64)
        detections = detector.detect(decode_image(record["image"]))
        overlaps = box_overlaps(box, detections.boxes)
        boxes.append(box)
        found.append(bool((overlaps >= MATCH_OVERLAP).any()))
        if found[-1]:
            rows.append(detections.take([int(overlaps.argmax())]))
    return Detections.concatenate(rows), np.stack(boxes), np.array(found)


def detector_boxes(
    detector: FaceDetector, dataset: FaceDataset, split: str
) -> tuple[Float[np.ndarray, "n 4"], int]:
    """The detector's face boxes of a split, in the records' pixels, and how many faces it missed.

    A missed face has the box of its landmarks.
    """
    detections, boxes, found = detect_split(detector, dataset, split)
    boxes[found] = BOX_MAP(detections)
    return boxes, int((~found).sum())

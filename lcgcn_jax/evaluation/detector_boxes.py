"""Face boxes of the face detector for the faces of a prepared dataset."""

import numpy as np
from jaxtyping import Bool, Float

from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.data.encoding import decode_image
from lcgcn_jax.geometry import box_overlaps
from lcgcn_jax.inference.box_map import BOX_MAP, Detections
from lcgcn_jax.inference.face_detector import FaceDetector

MATCH_OVERLAP = 0.3
"""Minimum IoU of the detection and the box of the landmarks for a detected face."""


def detect_split(
    detector: FaceDetector, dataset: FaceDataset, split: str
) -> tuple[Detections, Float[np.ndarray, "n 4"], Bool[np.ndarray, "n"]]:
    """Run the face detector on each record of a split.

    If it detects several faces, the one with the largest overlap with the box of the landmarks is used.

    Returns:
      - the detections of the m faces that were detected;
      - the landmark boxes of all n faces, in pixels of the records;
      - which of the n faces were detected.
    """
    source = dataset.source(split)
    matches, boxes, is_detected = [], [], []
    for i in range(len(source)):
        record = source[i]
        box = record["box"].astype(np.float64)
        detections = detector.detect(decode_image(record["image"]))
        overlaps = box_overlaps(box, detections.boxes)
        boxes.append(box)
        is_detected.append(bool((overlaps >= MATCH_OVERLAP).any()))
        if is_detected[-1]:
            matches.append(detections.take([int(overlaps.argmax())]))
    return Detections.concatenate(matches), np.stack(boxes), np.array(is_detected)


def detector_boxes(
    detector: FaceDetector, dataset: FaceDataset, split: str
) -> tuple[Float[np.ndarray, "n 4"], int]:
    """Face boxes of the detector for a split, in pixels of the records, and the number of missed faces.

    A missed face has the box of its landmarks.
    """
    detections, boxes, is_detected = detect_split(detector, dataset, split)
    boxes[is_detected] = BOX_MAP(detections)
    return boxes, int((~is_detected).sum())

"""Fit of the map from boxes of the face detector to boxes of landmarks."""

import numpy as np

from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.detector_boxes import detect_split
from lcgcn_jax.inference.box_map import BOX_MAP, crop_errors, fit_box_map
from lcgcn_jax.inference.face_detector import FaceDetector
from lcgcn_jax.tables import format_table


def compare_box_maps(
    detector: FaceDetector, dataset: FaceDataset, split: str, test_split: str
) -> str:
    """Fit box maps on one split, and compare them with `BOX_MAP` on another.

    Returns:
      A report as text: detected faces, errors of the crops, and the fitted coefficients.

    Raises:
      InputError: there is no such split, or no face of it is detected.
    """
    lines, results = [], []
    for name in (split, test_split):
        detections, boxes, mask = detect_split(detector, dataset, name)
        if not mask.any():
            raise InputError(f"{dataset.path}: the face detector detects no face of split {name!r}")
        rate = f"{mask.sum():,} of {len(mask):,} faces detected ({100 * mask.mean():.2f} %)"
        lines.append(f"{name}: {rate}")
        results.append((detections, boxes[mask]))
    (detections, boxes), (test_detections, test_boxes) = results
    with_points = fit_box_map(detections, boxes)
    predictions = {
        "as detected": test_detections.boxes,
        "constants": fit_box_map(detections, boxes, points=False)(test_detections),
        "with points": with_points(test_detections),
        "BOX_MAP": BOX_MAP(test_detections),
    }
    rows = [["", "offset x", "offset y", "mean distance", "scale", "mean absolute"]]
    for name, predicted in predictions.items():
        offset, scale = crop_errors(predicted, test_boxes)
        distance = np.linalg.norm(offset, axis=1).mean()
        errors = (*offset.mean(axis=0), distance, scale.mean(), np.abs(scale).mean())
        rows.append([name, *(f"{100 * error:.2f}" for error in errors)])
    coefficients = np.array2string(
        with_points.coefficients, precision=4, suppress_small=True, separator=", "
    )
    lines += [f"{test_split}, in % of the longer side of the box:", format_table(rows)]
    return "\n".join([*lines, "coefficients, with points:", coefficients])

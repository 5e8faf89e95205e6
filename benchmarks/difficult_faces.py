"""NME of inaccurate boxes, rotated faces, and rotated faces that the face detector has to find.

    python benchmarks/difficult_faces.py boxes --data data/w300
    python benchmarks/difficult_faces.py angles --data data/w300
    python benchmarks/difficult_faces.py detector --data data/w300 --faces 20

Prints a Markdown table for faces of the validation split. NME is in percent of the distance between the outer
eye corners. Boxes are scaled around their center, or shifted in a random direction by a fraction of their
longer side. Rotated faces are rotated with their images, and their boxes enclose the rotated landmarks.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

import lcgcn_jax as lc
from lcgcn_jax import geometry
from lcgcn_jax.data.crops import crop_face
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.encoding import decode_image
from lcgcn_jax.geometry import Box

SCALES, SHIFTS, STEP = (0.5, 0.7, 0.85, 1.25, 1.5, 2.0), (0.15, 0.3), 15
CORRUPTIONS = ("occlude", "blur", "low_light", "noise")
MAX_NME = 10.0  # of a face that counts as found by the detector

Condition = tuple[str, np.ndarray, np.ndarray, Box]
"""Name, image, true landmarks, box."""


class Counter:
    """Model that counts its crops."""

    def __init__(self, model: lc.LandmarkModel):
        self.count, self._predict = 0, model.predict_crops
        model.predict_crops = self.predict

    def predict(self, crops):
        """Predict crops."""
        self.count += len(crops)
        return self._predict(crops)


def box_conditions(record: dict, model: lc.LandmarkModel) -> Iterator[Condition]:
    """Yield the boxes of a face, and the true boxes of the corrupted face."""
    image, truth, box = read_face(record)
    center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    yield "true box", image, truth, box
    boxes, _ = model.detector.scored_boxes(image)
    overlaps = geometry.box_overlaps(box, boxes)
    if overlaps.max(initial=0.0) > 0.3:
        yield "detected box", image, truth, boxes[overlaps.argmax()]
    for scale in SCALES:
        yield (
            f"x {scale}",
            image,
            truth,
            np.concatenate([center - scale * half, center + scale * half]),
        )
    rng = np.random.default_rng(len(record["image"]))
    for shift in SHIFTS:
        angle = rng.uniform(0, 2 * np.pi)
        offset = 2 * half.max() * shift * np.array([np.cos(angle), np.sin(angle)])
        yield f"shifted by {shift:.0%}", image, truth, box + np.tile(offset, 2)
    for name in CORRUPTIONS:
        size = model.image_size
        crop = crop_face(record, size, "gt", name)
        yield name, crop["image"], crop["landmarks"], geometry.box_of_crop(size, size)


def angle_conditions(record: dict) -> Iterator[Condition]:
    """Yield a face rotated in steps of 15 degrees."""
    image, truth, _ = read_face(record)
    height, width = image.shape[:2]
    side = int(np.hypot(height, width)) + 1
    for angle in range(0, 360, STEP):
        affine = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -angle, 1.0)
        affine[:, 2] += ((side - width) / 2, (side - height) / 2)
        points = geometry.transform_points(affine, truth)
        mirrored = min(angle, 360 - angle)
        name = str(angle) if angle in (0, 180) else f"{mirrored}, {360 - mirrored}"
        box = geometry.box_of_landmarks(points, np.ones(len(points), bool))
        yield name, cv2.warpAffine(image, affine, (side, side)), points, box


def read_face(record: dict) -> tuple[np.ndarray, np.ndarray, Box]:
    """Image of a record, its landmarks and their box."""
    truth = record["landmarks"].astype(np.float64)
    return decode_image(record["image"]), truth, record["box"].astype(np.float64)


def nme(landmarks: np.ndarray, truth: np.ndarray) -> float:
    """Error in percent of the distance between the outer eye corners (68 points)."""
    unit = np.linalg.norm(truth[36] - truth[45])
    return float(100 * np.linalg.norm(landmarks - truth, axis=1).mean() / unit)


def one_crop_errors(model: lc.LandmarkModel, conditions: Sequence[Condition]) -> list[float]:
    """NME of the predictions from the crop of each box only."""
    size, results = model.image_size, []
    affines = [geometry.crop_transform(box, size) for *_, box in conditions]
    crops = [geometry.warp(c[1], a, size) for c, a in zip(conditions, affines, strict=True)]
    output = model.predict_crops(np.stack(crops))
    for landmarks, affine, (_, _, truth, _) in zip(
        output.landmarks, affines, conditions, strict=True
    ):
        points = geometry.transform_points(geometry.invert(affine), landmarks.astype(np.float64))
        results.append(nme(points, truth))
    return results


def measure_boxes(model: lc.LandmarkModel, faces: Iterable[list[Condition]]) -> None:
    """Print the table of predictions in given boxes."""
    counter, rows = Counter(model), {}
    for conditions in faces:
        first = one_crop_errors(model, conditions)
        for error, (name, image, truth, box) in zip(first, conditions, strict=True):
            counter.count = 0
            (face,) = model.predict(image, [box])
            row = error, nme(face.landmarks, truth), counter.count, face.reliable is False
            rows.setdefault(name, []).append(row)
    print("| condition | faces | NME, one crop | NME | worst face | crops per face | unreliable |")
    print("|---|---|---|---|---|---|---|")
    for name, values in rows.items():
        one, error, count, unreliable = np.array(values).T
        print(
            f"| {name} | {len(one)} | {one.mean():.2f} | {error.mean():.2f} | {error.max():.1f} "
            f"| {count.mean():.2f} | {unreliable.sum():.0f} |"
        )


def measure_detector(model: lc.LandmarkModel, faces: Iterable[list[Condition]]) -> None:
    """Print the table of predictions in boxes of the face detector."""
    rows: dict[str, list[float]] = {}
    for conditions in faces:
        for name, image, truth, _ in conditions:
            center = truth.mean(axis=0)
            errors = [
                nme(face.landmarks, truth)
                for face in model.predict(image)
                if (face.box[:2] < center).all() and (center < face.box[2:]).all()
            ]
            rows.setdefault(name, []).append(min(errors, default=np.nan))
    print("| rotation | face found | NME below 10 | mean NME of these |\n|---|---|---|---|")
    for name, values in rows.items():
        errors = np.array(values)
        good = errors[errors < MAX_NME]
        num_detected, number = np.isfinite(errors).sum(), len(errors)
        print(
            f"| {name} | {num_detected} of {number} | {len(good)} of {number} | {good.mean():.2f} |"
        )


def main() -> None:
    """Parse the flags, measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["boxes", "angles", "detector"])
    parser.add_argument("--data", type=Path, required=True, help="300W, as prepared")
    parser.add_argument("--faces", type=int, default=40, help="evenly spaced faces (%(default)s)")
    parser.add_argument("--model", default="w300-lcgcn-small", help="(%(default)s)")
    parser.add_argument("--detector-model", help="ONNX file of YuNet (default: downloaded once)")
    args = parser.parse_args()
    model = lc.load_model(args.model, detector_model=args.detector_model)
    source = open_dataset(args.data).source("validation")
    numbers = np.linspace(0, len(source) - 1, min(args.faces, len(source))).round().astype(int)
    records = [source[int(number)] for number in numbers]
    if args.part == "boxes":
        measure_boxes(model, (list(box_conditions(record, model)) for record in records))
        return
    measure = measure_boxes if args.part == "angles" else measure_detector
    measure(model, (list(angle_conditions(record)) for record in records))


if __name__ == "__main__":
    main()

"""NME of inaccurate boxes, rotated faces, and rotated faces that the face detector has to find.

    python benchmarks/difficult_faces.py boxes --data data/w300
    python benchmarks/difficult_faces.py angles --data data/w300
    python benchmarks/difficult_faces.py detector --data data/w300 --faces 20
    python benchmarks/difficult_faces.py no-face --data data/w300 --faces 210

Prints a Markdown table for faces of the validation split. NME is in percent of the distance between the outer
eye corners. Boxes are scaled around their center, or shifted in a random direction by a fraction of their
longer side. Rotated faces are rotated with their images, and their boxes enclose the rotated landmarks.
`no-face` counts the faces that are marked as reliable, and images without a human face in boxes of 50 % and
78 % of their side.
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

SIDE = 256  # of images without a face
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
    boxes = model.detector.find_faces(image).boxes
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


def images_without_a_face() -> dict[str, list[np.ndarray]]:
    """Images by kind, with a fixed seed."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(8)]
    smooth = [
        cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE, 3)), (0, 0), s) for s in (2, 4, 8, 16) * 2
    ]
    smooth = [(128 + 50 * x / x.std()).clip(0, 255).astype(np.uint8) for x in smooth]
    flat = [np.full((SIDE, SIDE, 3), rng.integers(0, 256, 3), np.uint8) for _ in range(8)]
    ramp = np.linspace(0, 255, SIDE)
    ramps = [np.add.outer(ramp * a, ramp * b) / (a + b) for a, b in rng.uniform(0.1, 1, (8, 2))]
    gradients = [np.repeat(x[..., None], 3, axis=2).astype(np.uint8) for x in ramps]
    return {
        "noise, smooth noise, flat colors, gradients": noise + smooth + flat + gradients,
        "text": [draw_text(rng) for _ in range(8)],
        "drawn backs of heads, drawn hands": [
            draw(rng) for draw in (draw_back_of_head, draw_hand) for _ in range(8)
        ],
        "schematic faces: a disk with two eyes and a mouth": [draw_cartoon(rng) for _ in range(24)],
    }


def draw_text(rng: np.random.Generator) -> np.ndarray:
    """Lines of random letters."""
    image = np.full((SIDE, SIDE, 3), 255, np.uint8)
    for y in range(12, SIDE, int(rng.integers(10, 24))):
        text = "".join(map(chr, rng.integers(65, 122, 30)))
        cv2.putText(image, text, (2, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return image


def draw_back_of_head(rng: np.random.Generator) -> np.ndarray:
    """Hair above a neck and shoulders."""
    image = np.full((SIDE, SIDE, 3), rng.integers(60, 220, 3), np.uint8)
    skin, hair = rng.integers(120, 230, 3).tolist(), rng.integers(10, 120, 3)
    cv2.ellipse(image, (128, 270), (120, 60), 0, 0, 360, rng.integers(0, 256, 3).tolist(), -1)
    cv2.rectangle(image, (100, 180), (156, 240), skin, -1)
    for side in (-1, 1):
        cv2.ellipse(image, (128 + side * 72, 128), (12, 22), 0, 0, 360, skin, -1, cv2.LINE_AA)
    cv2.ellipse(image, (128, 115), (72, 92), 0, 0, 360, hair.tolist(), -1, cv2.LINE_AA)
    for x in rng.integers(64, 192, 60).tolist():
        color = (hair + rng.integers(-10, 40)).clip(0, 255).tolist()
        cv2.line(image, (128, 40), (x, int(rng.integers(110, 195))), color, 1, cv2.LINE_AA)
    return image


def draw_hand(rng: np.random.Generator) -> np.ndarray:
    """A palm with five fingers."""
    image = np.full((SIDE, SIDE, 3), rng.integers(0, 256, 3), np.uint8)
    skin = rng.integers(130, 235, 3)
    dark = (skin * 0.7).astype(int).tolist()
    for angle, length in zip((-70, -25, -5, 15, 35), (70, 95, 105, 95, 75), strict=True):
        radians = np.radians(angle + rng.normal(0, 5))
        tip = (int(128 + length * np.sin(radians)), int(150 - length * np.cos(radians)))
        for color, width in ((dark, 30), (skin.tolist(), 26)):
            cv2.line(image, (128, 150), tip, color, width, cv2.LINE_AA)
    cv2.ellipse(image, (128, 165), (48, 55), 0, 0, 360, skin.tolist(), -1, cv2.LINE_AA)
    cv2.ellipse(image, (128, 170), (35, 28), 20, 0, 150, dark, 2, cv2.LINE_AA)
    return image


def draw_cartoon(rng: np.random.Generator) -> np.ndarray:
    """A schematic face."""
    image = np.full((SIDE, SIDE, 3), rng.integers(120, 256, 3), np.uint8)
    radius, middle = int(rng.integers(70, 110)), SIDE // 2
    axes = (radius, int(radius * rng.uniform(1, 1.3)))
    cv2.ellipse(image, (middle, middle), axes, 0, 0, 360, rng.integers(140, 255, 3).tolist(), -1)
    for side in (-1, 1):
        eye = (middle + side * radius // 3, middle - 16)
        cv2.circle(image, eye, int(rng.integers(8, 18)), (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(image, eye, int(rng.integers(3, 8)), (0, 0, 0), -1, cv2.LINE_AA)
    mouth, width = (middle, middle + 22), int(rng.integers(2, 7))
    cv2.ellipse(image, mouth, (radius // 3, radius // 6), 0, 0, 180, (200, 30, 60), width)
    return image


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


def measure_reliability(model: lc.LandmarkModel, records: Sequence[dict]) -> None:
    """Print how many faces, and images without a face, are marked as reliable."""
    crops = {
        f"faces, {name}": [crop_face(record, SIDE, "gt", name)["image"] for record in records]
        for name in ("none", *CORRUPTIONS)
    }
    whole = geometry.box_of_crop(SIDE, SIDE)
    boxes = {name: [whole] for name in crops}
    for name, images in images_without_a_face().items():
        crops[name] = images
        margins = [SIDE * (1 - part) / 2 for part in (0.5, 0.78)]
        boxes[name] = [np.array([margin] * 2 + [SIDE - margin] * 2) for margin in margins]
    print("| images | number | reliable |\n|---|---|---|")
    for name, images in crops.items():
        faces = [model.predict(image, [box])[0] for image in images for box in boxes[name]]
        print(f"| {name} | {len(faces)} | {sum(face.reliable is True for face in faces)} |")


def main() -> None:
    """Parse the flags, measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["boxes", "angles", "detector", "no-face"])
    parser.add_argument("--data", type=Path, required=True, help="300W, as prepared")
    parser.add_argument("--faces", type=int, default=40, help="evenly spaced faces (%(default)s)")
    parser.add_argument("--model", default="w300-lcgcn-small", help="(%(default)s)")
    parser.add_argument("--detector-model", help="ONNX file of YuNet (default: downloaded once)")
    args = parser.parse_args()
    model = lc.load_model(args.model, detector_model=args.detector_model)
    source = open_dataset(args.data).source("validation")
    numbers = np.linspace(0, len(source) - 1, min(args.faces, len(source))).round().astype(int)
    records = [source[int(number)] for number in numbers]
    if args.part == "no-face":
        measure_reliability(model, records)
        return
    if args.part == "boxes":
        measure_boxes(model, (list(box_conditions(record, model)) for record in records))
        return
    measure = measure_boxes if args.part == "angles" else measure_detector
    measure(model, (list(angle_conditions(record)) for record in records))


if __name__ == "__main__":
    main()

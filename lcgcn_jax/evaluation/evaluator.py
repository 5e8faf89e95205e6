"""Errors of both stages over a split, and the report that `lcgcn eval` writes."""

import csv
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.data.pipeline import Batch, eval_batches, record_names
from lcgcn_jax.distributed import gather_rows
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation import metrics
from lcgcn_jax.geometry import transform_points
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.lcgcn import LCGCNOutput
from lcgcn_jax.uncertainty import UncertaintyModel, assess

Predict = Callable[[np.ndarray], LCGCNOutput]
"""uint8 crops `[b s s 3]`, this process's part of a batch, to an output for the same crops."""


@dataclasses.dataclass(frozen=True)
class SplitErrors:
    """One error a face and stage, as a fraction of the face's normalizing distance.

    Attributes:
      heatmap: of the heatmap stage; NaN for a face that is not measured.
      graph: of the graph stage; None for a model without a graph.
      measured: which faces have a normalizing distance (`LandmarkScheme.normalizing_distance`).
      landmarks: of each landmark of the last stage; NaN where it is not annotated or not measured.
      confidence: the heatmaps' peaks.
      heatmap_std: the heatmaps' spreads (`heatmaps.heatmap_std`); None where the heatmaps were not at hand.
    """

    heatmap: Float[np.ndarray, "n"]
    graph: Float[np.ndarray, "n"] | None
    measured: Bool[np.ndarray, "n"]
    landmarks: Float[np.ndarray, "n k"]
    confidence: Float[np.ndarray, "n k"]
    heatmap_std: Float[np.ndarray, "n k"] | None

    def mean(self) -> dict[str, float]:
        """The mean error of each stage that there is, over the measured faces."""
        stages = {"heatmap": self.heatmap, "graph": self.graph}
        return {
            stage: float(errors[self.measured].mean())
            for stage, errors in stages.items()
            if errors is not None
        }

    def summary(self, faces: Bool[np.ndarray, "n"] | slice = slice(None)) -> dict[str, Any]:
        """The number of measured ones among some faces, and the metrics of both stages over them."""
        chosen = np.zeros_like(self.measured)
        chosen[faces] = True
        chosen &= self.measured
        return {
            "num_faces": int(chosen.sum()),
            "heatmap": stage_summary(self.heatmap[chosen]),
            "graph": None if self.graph is None else stage_summary(self.graph[chosen]),
        }


def stage_summary(errors: Float[np.ndarray, "n"]) -> dict[str, Any]:
    """`nme`, `nme_ci95` and `fr10` in percent, `auc10` in 0..1."""
    values = metrics.MetricState.from_errors(errors).compute()
    low, high = metrics.bootstrap_interval(errors)
    return {
        "nme": values["nme"],
        "nme_ci95": [100 * low, 100 * high],
        "fr10": values["fr10"],
        "auc10": values["auc10"],
    }


def split_errors(
    predict: Predict,
    dataset: FaceDataset,
    split: str,
    *,
    image_size: int,
    batch_size: int,
    box: str | Float[np.ndarray, "n 4"] = "gt",
    corruption: str = "none",
    num_threads: int = 4,
) -> SplitErrors:
    """Predicts every face of a split once, and measures it in the image's pixels.

    Args:
      predict: the model.
      dataset: the data.
      split: as in `FaceDataset.source`.
      image_size: side of the crops.
      batch_size: faces in a batch over all processes.
      box: `gt` (box of the true landmarks), `rect` (the box that came with the data), or a box for
        each face, as `evaluation.detector_boxes.detector_boxes` gives them.
      corruption: what to damage every crop with: one of `data.augment.CORRUPTIONS`.
      num_threads: threads that make batches.

    Raises:
      InputError: there is no such split, no such box in it, or no such corruption; or not one face
        can be measured.
    """
    batches = eval_batches(
        dataset,
        split,
        image_size=image_size,
        batch_size=batch_size,
        box=box,
        corruption=corruption,
        num_threads=num_threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return errors_of(((predict(batch["image"]), batch) for batch in batches), dataset.scheme)


def errors_of(outputs: Iterable[tuple[LCGCNOutput, Batch]], scheme: LandmarkScheme) -> SplitErrors:
    """Errors of outputs for the batches of `data.pipeline.eval_batches`, in the order of the split.

    Raises:
      InputError: not one face can be measured.
    """
    rows, has_graph, has_heatmap_std = [], False, False
    for output, batch in outputs:
        has_graph, has_heatmap_std = output.edges is not None, output.heatmap_std is not None
        rows.append(_batch_errors(output, batch, scheme))
    columns = tuple(np.concatenate(column) for column in zip(*rows, strict=True))
    if jax.process_count() > 1:
        columns = tuple(gather_rows(column) for column in columns)
    *columns, record, mask = columns
    order = np.argsort(record[mask])
    heatmap, graph, measured, landmarks, confidence, heatmap_std = (c[mask][order] for c in columns)
    if not measured.any():
        raise InputError(
            f"no face can be measured: NME is in percent of {scheme.normalizer_text}, which not one "
            "has; give the scheme another normalizer, and prepare the data again"
        )
    return SplitErrors(
        heatmap,
        graph if has_graph else None,
        measured,
        landmarks,
        confidence,
        heatmap_std if has_heatmap_std else None,
    )


def _batch_errors(
    output: LCGCNOutput, batch: Batch, scheme: LandmarkScheme
) -> tuple[np.ndarray, ...]:
    true, visible = batch["source_landmarks"], batch["visible"]
    distance = scheme.normalizing_distance(true, visible, batch["normalizer"])
    measured = np.isfinite(distance)

    def in_image(landmarks):
        in_crop = np.asarray(landmarks, np.float64)
        return np.stack(
            [
                transform_points(affine, points)
                for affine, points in zip(batch["crop_to_source"], in_crop, strict=True)
            ]
        )

    def errors(found):
        of_faces = np.full(len(true), np.nan)
        of_faces[measured] = metrics.face_errors(
            *(values[measured] for values in (found, true, visible, distance))
        )
        return of_faces

    last_stage = in_image(output.landmarks)
    distances = np.linalg.norm(last_stage - true, axis=-1) / distance[:, None]
    confidence = np.asarray(output.confidence)
    return (
        errors(in_image(output.heatmap_landmarks)),
        errors(last_stage),
        measured,
        np.where(visible, distances, np.nan),
        confidence,
        np.full_like(confidence, np.nan)
        if output.heatmap_std is None
        else np.asarray(output.heatmap_std),
        batch["record"],
        batch["mask"],
    )


def mean_face(dataset: FaceDataset, split: str) -> Float[np.ndarray, "k 2"]:
    """The mean face of a split, each face in its ground-truth box scaled to the unit square.

    A landmark that is not annotated in any of them lies in the middle.
    """
    points, visible, corner, extent, _ = _boxed_faces(dataset, split)
    weights = visible[..., None]
    total = np.where(weights, (points - corner) / extent, 0.0).sum(axis=0)
    count = weights.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), 0.5)


def mean_shape(dataset: FaceDataset, split: str) -> Float[np.ndarray, "k 2"]:
    """The mean face in a split's mean proportions, centerd, with a mean squared radius of 1."""
    *_, extent, _ = _boxed_faces(dataset, split)
    shape = mean_face(dataset, split) * (extent / extent[..., :1]).mean(axis=0)
    shape = shape - shape.mean(axis=0, keepdims=True)
    return shape / np.sqrt((shape**2).sum(axis=1).mean())


def mean_face_errors(dataset: FaceDataset, train_split: str, split: str) -> Float[np.ndarray, "n"]:
    """Errors of the least that a model must beat: the mean face, placed in the ground-truth box.

    Faces that cannot be measured are left out.
    """
    points, visible, corner, extent, given = _boxed_faces(dataset, split)
    predicted = mean_face(dataset, train_split)[None] * extent + corner
    distance = dataset.scheme.normalizing_distance(points, visible, given)
    measured = np.isfinite(distance)
    return metrics.face_errors(
        *(values[measured] for values in (predicted, points, visible, distance))
    )


def _boxed_faces(dataset: FaceDataset, split: str) -> tuple[np.ndarray, ...]:
    """What the mean face is made of, for every face.

    Returns:
      Landmarks `[n k 2]` and their visibility `[n k]`, corner and extent `[n 1 2]` of the true boxes, and
      the normalizing distances that came with the faces `[n]`.
    """
    source = dataset.source(split)
    records = [source[i] for i in range(len(source))]
    points = np.stack([r["landmarks"] for r in records]).astype(np.float64)
    boxes = np.stack([r["box"] for r in records]).astype(np.float64)[:, None]
    visible = np.stack([r["visible"] for r in records])
    given = np.stack([r["normalizer"] for r in records])
    return points, visible, boxes[..., :2], boxes[..., 2:] - boxes[..., :2], given


def with_flip_test(predict: Predict, scheme: LandmarkScheme, flip_bias: float = 0.0) -> Predict:
    """Predicts the mirrored crops too, and averages landmarks, confidences and spreads of both views.

    Args:
      predict: the model.
      scheme: what its landmarks mean.
      flip_bias: how far to the right it puts all points (`models.bundles.Bundle`).
    """
    mirror = np.array(scheme.mirror)

    def both(images: np.ndarray) -> LCGCNOutput:
        plain = predict(images)
        flipped = predict(np.ascontiguousarray(images[:, :, ::-1]))
        right_most = images.shape[2] - 1

        def average(a, b):
            b = np.asarray(b)[:, mirror]
            right_again = 2 * flip_bias * images.shape[2]
            back = np.stack([right_most - b[..., 0] + right_again, b[..., 1]], axis=-1)
            return (np.asarray(a) + back) / 2

        def mean(a, b):
            return (np.asarray(a) + np.asarray(b)[:, mirror]) / 2

        return dataclasses.replace(
            plain,
            heatmap_landmarks=average(plain.heatmap_landmarks, flipped.heatmap_landmarks),
            landmarks=average(plain.landmarks, flipped.landmarks),
            confidence=mean(plain.confidence, flipped.confidence),
            heatmap_std=None
            if plain.heatmap_std is None
            else mean(plain.heatmap_std, flipped.heatmap_std),
        )

    return both


def write_face_errors(path: Path, dataset: FaceDataset, split: str, errors: SplitErrors) -> None:
    """Writes a CSV with a row a face, in the order of the split: name, NME of both stages in percent.

    The graph's column is empty for a model without one, and both for a face that is not measured. Two
    systems' files on the same faces are compared in pairs by `metrics.bootstrap_interval` of the differences.
    """
    names = record_names(dataset.source(split), range(len(errors.heatmap)))

    def cells(stage):
        return [
            "" if stage is None or not measured else f"{100 * stage[i]:.6f}"
            for i, measured in enumerate(errors.measured)
        ]

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "heatmap", "graph"))
        writer.writerows(zip(names, cells(errors.heatmap), cells(errors.graph), strict=True))


def report(
    dataset: FaceDataset,
    split: str,
    errors: SplitErrors,
    *,
    boxes: str,
    missed: int | None = None,
    corruption: str = "none",
    calibration: UncertaintyModel | None = None,
) -> dict[str, Any]:
    """What `lcgcn eval --json` writes; the design's section 6 fixes its form.

    On corrupted faces there is one key more, `corruption`; with detected boxes there is `missed`, the number
    of faces that the detector did not find; and where some faces have no normalizing distance there is
    `unmeasured`, how many, which are not among `num_faces`. A calibrated model's report has `calibration`:
    what `calibration.assess` says of its predicted errors, and `fitted_here`, whether faces of the split were
    among those that the map was fitted on, where it looks better than it is.

    The subsets are the parts of a union of splits, the sources that the faces come from, and the
    attributes that some of them have.
    """
    subsets = {
        name: summary
        for name, faces in subset_masks(dataset, split).items()
        if (summary := errors.summary(faces))["num_faces"]
    }
    unmeasured = int((~errors.measured).sum())
    stages = errors.summary()
    return {
        "dataset": dataset.name,
        "split": split,
        "num_faces": stages.pop("num_faces"),
        "boxes": boxes,
        **({"unmeasured": unmeasured} if unmeasured else {}),
        **({} if missed is None else {"missed": missed}),
        **({} if corruption == "none" else {"corruption": corruption}),
        "stages": stages,
        "subsets": subsets,
        **(
            {}
            if calibration is None
            else {"calibration": _assess(errors, calibration, dataset, split)}
        ),
    }


def _assess(
    errors: SplitErrors, calibration: UncertaintyModel, dataset: FaceDataset, split: str
) -> dict[str, Any]:
    expected = calibration.expected_error(errors.confidence, errors.heatmap_std)
    fitted_on = calibration.fitted_on
    same_data = fitted_on.get("fingerprint") == dataset.fingerprint
    both = set(dataset.parts(fitted_on.get("split", ""))) & set(dataset.parts(split))
    return {
        "fitted_here": same_data and bool(both),
        **assess(100 * errors.landmarks, expected, errors.confidence),
    }


def subset_masks(dataset: FaceDataset, split: str) -> dict[str, Bool[np.ndarray, "n"]]:
    """Which faces of a split belong to each of its subsets, in the order of the split."""
    source = dataset.source(split)
    records = [source[i] for i in range(len(source))]
    masks = {}
    parts = dataset.parts(split)
    if len(parts) > 1:
        sizes = [dataset.num_faces[part] for part in parts]
        owner = np.repeat(np.arange(len(parts)), sizes)
        masks |= {part: owner == i for i, part in enumerate(parts)}
    origins = np.array([record["subset"] for record in records])
    if len(set(origins)) > 1:
        masks |= {str(origin): origins == origin for origin in sorted(set(origins))}
    attributes = np.array([record["attributes"] for record in records], bool)
    for column, name in enumerate(dataset.attribute_names):
        if attributes[:, column].any():
            masks[name] = attributes[:, column]
    return masks

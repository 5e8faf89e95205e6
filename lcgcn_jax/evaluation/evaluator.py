"""Evaluation of a model on a split: errors of each face, and their metrics."""

import csv
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from lcgcn_jax.data.annotations import Visibility
from lcgcn_jax.data.dataset import FaceDataset, open_dataset, require_scheme
from lcgcn_jax.data.pipeline import Batch, eval_batches, record_names
from lcgcn_jax.distributed import gather_rows
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation import metrics
from lcgcn_jax.evaluation.detector_boxes import detector_boxes
from lcgcn_jax.geometry import transform_points
from lcgcn_jax.inference.face_detector import FaceDetector
from lcgcn_jax.inference.model import LandmarkModel, load
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.lcgcn import LCGCNOutput
from lcgcn_jax.uncertainty import UncertaintyModel, assess

Predict = Callable[[np.ndarray], LCGCNOutput]
"""uint8 crops `[b s s 3]`, this process's part of a batch, to an output for the same crops."""

BOXES = ("gt", "rect", "detector")
"""Sources of face boxes: true landmarks, the data's own boxes, the face detector."""


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
      box_landmarks: as `landmarks`, as a fraction of the size of the true landmarks' box, also for faces
        that are not measured; NaN where not annotated.
      visibility: predicted probability that each landmark is visible; None without a visibility head.
      visibility_labels: the truth, values of `data.annotations.Visibility`; None with `visibility`.
    """

    heatmap: Float[np.ndarray, "n"]
    graph: Float[np.ndarray, "n"] | None
    measured: Bool[np.ndarray, "n"]
    landmarks: Float[np.ndarray, "n k"]
    confidence: Float[np.ndarray, "n k"]
    heatmap_std: Float[np.ndarray, "n k"] | None
    box_landmarks: Float[np.ndarray, "n k"]
    visibility: Float[np.ndarray, "n k"] | None = None
    visibility_labels: Int[np.ndarray, "n k"] | None = None

    def percent_errors(self) -> Float[np.ndarray, "n k"]:
        """Errors of the landmarks in percent, also of faces without a normalizing distance.

        For these the distance is taken to be the box size times its median ratio to the box size over the
        measured faces: profiles, for example, show only one outer eye corner. NaN where not annotated.
        """
        ratios = np.full(self.landmarks.shape, np.nan)
        np.divide(self.box_landmarks, self.landmarks, out=ratios, where=self.landmarks > 0)
        ratios = ratios[np.isfinite(ratios).any(axis=1)]
        if not len(ratios):
            return 100 * self.landmarks
        ratio = np.median(np.nanmedian(ratios, axis=1))
        return 100 * np.where(self.measured[:, None], self.landmarks, self.box_landmarks / ratio)

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

    def visibility_summary(
        self, faces: Bool[np.ndarray, "n"] | slice = slice(None)
    ) -> dict[str, Any] | None:
        """How well `not visible` is predicted on some faces; None without a head or labels.

        Returns:
          `num_faces` and `num_landmarks`, those with a label, and `not_visible`, the part of these that is
          occluded. `auroc` and `average_precision` are of finding them by the predicted probability,
          `auroc_confidence` is by the heatmaps' peaks instead. `auroc_externally_occluded` and
          `auroc_self_occluded` are of one kind of occlusion against the visible landmarks. A figure is
          None where a class is missing.
        """
        if self.visibility is None:
            return None
        labels = self.visibility_labels[faces]
        known = labels >= 0
        if not known.any():
            return None
        truth, scores = labels[known], 1.0 - self.visibility[faces][known].astype(np.float64)
        hidden = truth > 0

        def auroc_of(kind):
            chosen = (truth == 0) | (truth == kind)
            return metrics.roc_auc(scores[chosen], hidden[chosen])

        return {
            "num_faces": int(known.any(axis=1).sum()),
            "num_landmarks": int(known.sum()),
            "not_visible": float(hidden.mean()),
            "auroc": metrics.roc_auc(scores, hidden),
            "average_precision": metrics.average_precision(scores, hidden),
            "auroc_confidence": metrics.roc_auc(-self.confidence[faces][known], hidden),
            "auroc_externally_occluded": auroc_of(Visibility.EXTERNALLY_OCCLUDED),
            "auroc_self_occluded": auroc_of(Visibility.SELF_OCCLUDED),
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
      corruption: what to damage every crop with: one of `data.corruptions.CORRUPTIONS`.
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
    rows, has_graph, has_heatmap_std, has_visibility = [], False, False, False
    for output, batch in outputs:
        has_graph, has_heatmap_std = output.edges is not None, output.heatmap_std is not None
        has_visibility = output.visibility is not None
        rows.append(_batch_errors(output, batch, scheme))
    columns = tuple(np.concatenate(column) for column in zip(*rows, strict=True))
    if jax.process_count() > 1:
        columns = tuple(gather_rows(column) for column in columns)
    *columns, record, mask = columns
    order = np.argsort(record[mask])
    columns = [column[mask][order] for column in columns]
    heatmap, graph, measured, landmarks, confidence, heatmap_std, box_landmarks, *rest = columns
    visibility, labels = rest
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
        box_landmarks,
        visibility if has_visibility else None,
        labels if has_visibility else None,
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
    pixels = np.where(visible, np.linalg.norm(last_stage - true, axis=-1), np.nan)
    by_box = dataclasses.replace(scheme, normalizer="box")
    box_size = by_box.normalizing_distance(true, visible, batch["normalizer"])
    confidence = np.asarray(output.confidence)
    nothing = np.full_like(confidence, np.nan)
    has_visibility = output.visibility is not None
    return (
        errors(in_image(output.heatmap_landmarks)),
        errors(last_stage),
        measured,
        pixels / distance[:, None],
        confidence,
        nothing if output.heatmap_std is None else np.asarray(output.heatmap_std),
        pixels / box_size[:, None],
        np.asarray(output.visibility) if has_visibility else nothing,
        batch["visibility"]
        if has_visibility
        else np.full_like(visible, Visibility.UNKNOWN, dtype=np.int8),
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
    """The mean face in a split's mean proportions, centered, with a mean squared radius of 1."""
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
    records = list(dataset.source(split, with_images=False))
    points = np.stack([r["landmarks"] for r in records]).astype(np.float64)
    boxes = np.stack([r["box"] for r in records]).astype(np.float64)[:, None]
    visible = np.stack([r["visible"] for r in records])
    given = np.stack([r["normalizer"] for r in records])
    return points, visible, boxes[..., :2], boxes[..., 2:] - boxes[..., :2], given


def with_flip_test(predict: Predict, scheme: LandmarkScheme, flip_bias: float = 0.0) -> Predict:
    """Predicts the mirrored crops too, and averages the landmarks and their figures over both views.

    The figures are confidences, spreads and visibilities; edges and the rest are those of the plain view.

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
            visibility=(
                None if plain.visibility is None else mean(plain.visibility, flipped.visibility)
            ),
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


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """Metrics of both stages over a split and its subsets.

    Each value of `stages`, and of a subset under `heatmap` and `graph`, is a mapping with `nme` (percent),
    `nme_ci95` (bootstrap interval of the mean, percent), `fr10` (percent of faces above an NME of 10 %)
    and `auc10` (area under the cumulative error curve up to 10 %, in 0..1); None for a model without a
    graph.

    Attributes:
      dataset: name of the dataset.
      split: name of the split.
      num_faces: number of faces that were measured.
      boxes: source of the face boxes: `gt`, `rect` or `detector`.
      stages: metrics of the stages `heatmap` and `graph` over all measured faces.
      subsets: `num_faces` and the metrics of both stages for each subset: the parts of a union of splits,
        the sources of the faces, and their attributes.
      unmeasured: number of faces without a normalizing distance; they are not part of `num_faces`.
      missed: number of faces that the face detector did not find; None with other boxes.
      corruption: corruption that was applied to each crop; `none` for clean crops.
      flip_test: whether the predictions for the crop and its mirror image were averaged.
      normalizer: normalizer that was chosen in place of the scheme's own; None for the scheme's own.
      offsets: SHA-256 of the annotation offsets that were removed from the ground truth; None without any.
      visibility: metrics of the predicted visibility (`SplitErrors.visibility_summary`), with `subsets`;
        None without a visibility head or labels.
      calibration: quality of the predicted errors (`calibration.assess`); its `fitted_here` says whether
        they were fitted on faces of this split, which makes them look better than they are. None for a
        model without predicted errors.
      errors: errors of each face and landmark, in the order of the split.
    """

    dataset: str
    split: str
    num_faces: int
    boxes: str
    stages: dict[str, Any]
    subsets: dict[str, dict[str, Any]]
    unmeasured: int
    missed: int | None
    corruption: str
    flip_test: bool
    normalizer: str | None
    offsets: str | None
    visibility: dict[str, Any] | None
    calibration: dict[str, Any] | None
    errors: SplitErrors = dataclasses.field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The content of `lcgcn eval --json`, in plain types.

        Keys of conditions and metrics that do not apply are left out: `unmeasured`, `missed`, `corruption`,
        `normalizer`, `offsets`, `visibility` and `calibration`.
        """
        return {
            "dataset": self.dataset,
            "split": self.split,
            "num_faces": self.num_faces,
            "boxes": self.boxes,
            **({"unmeasured": self.unmeasured} if self.unmeasured else {}),
            **({} if self.missed is None else {"missed": self.missed}),
            **({} if self.corruption == "none" else {"corruption": self.corruption}),
            **({} if self.normalizer is None else {"normalizer": self.normalizer}),
            **({} if self.offsets is None else {"offsets": self.offsets}),
            "stages": self.stages,
            "subsets": self.subsets,
            **({} if self.visibility is None else {"visibility": self.visibility}),
            **({} if self.calibration is None else {"calibration": self.calibration}),
        }

    @property
    def conditions(self) -> str:
        """Dataset, split, boxes and other conditions of the evaluation, in one line."""
        return (
            f"{self.dataset} {self.split}, boxes: {self.boxes}"
            + ("" if self.missed is None else f" ({self.missed} faces missed)")
            + f", flip test: {'yes' if self.flip_test else 'no'}"
            + ("" if self.corruption == "none" else f", corrupted: {self.corruption}")
            + ("" if self.normalizer is None else f", normalizer: {self.normalizer}")
            + ("" if self.offsets is None else ", annotation offsets removed")
            + (f", {self.unmeasured} faces not measured" if self.unmeasured else "")
        )

    def __str__(self) -> str:
        tables = [self.conditions, self._table()]
        if self.visibility is not None:
            tables.append(format_visibility(self.visibility))
        if self.calibration is not None:
            tables.append(format_uncertainty(self.calibration))
        return "\n".join(tables)

    def _table(self) -> str:
        rows = {"all": {"num_faces": self.num_faces, **self.stages}} | self.subsets
        width = max(len(name) for name in rows)
        lines = [f"{'':{width}}  faces  stage      NME %  (95 % interval)  FR@0.1 %  AUC@0.1"]
        for name, row in rows.items():
            count = f"{row['num_faces']:5d}"
            for stage in ("heatmap", "graph"):
                values = row[stage]
                if values is None:
                    continue
                low, high = values["nme_ci95"]
                lines.append(
                    f"{name:{width}}  {count}  {stage:8} {values['nme']:7.3f}  "
                    f"({low:6.3f} - {high:6.3f})  {values['fr10']:8.2f}  {values['auc10']:7.4f}"
                )
                name, count = "", " " * 5
        return "\n".join(lines)


def format_visibility(figures: dict[str, Any]) -> str:
    """The figures of `SplitErrors.visibility_summary` as a table for the screen."""
    rows = {"all": figures} | figures["subsets"]
    width = max(map(len, rows))
    columns = {
        "auroc": "AUROC",
        "average_precision": "avg. precision",
        "auroc_externally_occluded": "external",
        "auroc_self_occluded": "self",
        "auroc_confidence": "by confidence",
    }
    header = "  ".join(f"{title:>{max(6, len(title))}}" for title in columns.values())
    lines = ["", "landmarks that are not visible", f"{'':{width}}  faces  % of landmarks  {header}"]
    for name, row in rows.items():
        cells = [
            f"{'-' if row[key] is None else format(row[key], '.4f'):>{max(6, len(title))}}"
            for key, title in columns.items()
        ]
        part = f"{100 * row['not_visible']:14.2f}"
        lines.append(f"{name:{width}}  {row['num_faces']:5d}  {part}  {'  '.join(cells)}")
    return "\n".join(lines)


def evaluate(
    model: LandmarkModel | str | Path,
    data: FaceDataset | str | Path,
    *,
    split: str,
    boxes: str = "gt",
    flip_test: bool = False,
    corruption: str = "none",
    normalizer: str | None = None,
    offsets: str | Path | None = None,
    batch_size: int = 32,
    detector_model: str | Path | None = None,
) -> EvaluationResult:
    """Evaluates a model on a split of a prepared dataset.

    Args:
      model: a model, or what `load_model` takes.
      data: a folder that `lcgcn prepare` wrote.
      split: name of a split, or of a union of splits: `validation`, `test`, `common`, `full`, ...
      boxes: face boxes to crop by: `gt` (bounding box of the true landmarks), `rect` (the box that came
        with the data) or `detector` (of the face detector; a missed face gets the `gt` box).
      flip_test: average the predictions for each crop and its mirror image.
      corruption: corruption to apply to each crop: `none`, `occlude`, `blur`, `dark` or `noise`.
      normalizer: what errors are divided by, one of `landmarks.EVALUATION_NORMALIZERS`; by default the
        scheme's own.
      offsets: file of `lcgcn fit-offsets`, whose offsets are removed from the ground truth.
      batch_size: number of faces per batch.
      detector_model: YuNet's ONNX file, for `boxes="detector"`; by default the detector of the model.

    Raises:
      InputError: model or data cannot be used or have different landmark schemes; there is no such
        split, box or corruption.
    """
    if boxes not in BOXES:
        raise InputError(f"boxes: unknown value {boxes!r}; use one of {', '.join(BOXES)}")
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size} is not positive; use 1 or more")
    if not isinstance(model, LandmarkModel):
        model = load(model)
    dataset = data if isinstance(data, FaceDataset) else open_dataset(Path(data))
    require_scheme(dataset, model.scheme)
    calibration = model.calibration
    if normalizer is not None:
        scheme = dataset.scheme.normalized_by(normalizer)
        if scheme.normalizer != model.scheme.normalizer:
            calibration = None  # its errors are in percent of another distance
        dataset = dataclasses.replace(dataset, scheme=scheme)
    if offsets is not None:
        dataset = dataset.without_offsets(Path(offsets))
    predict = model.predict_crops
    if flip_test:
        predict = with_flip_test(predict, model.scheme, model.flip_bias)
    box, missed = boxes, None
    if boxes == "detector":
        detector = model.detector if detector_model is None else FaceDetector(detector_model)
        box, missed = detector_boxes(detector, dataset, split)
    errors = split_errors(
        predict,
        dataset,
        split,
        image_size=model.image_size,
        batch_size=batch_size,
        box=box,
        corruption=corruption,
    )
    return summarize(
        dataset,
        split,
        errors,
        boxes=boxes,
        missed=missed,
        corruption=corruption,
        flip_test=flip_test,
        normalizer=normalizer,
        calibration=calibration,
    )


def summarize(
    dataset: FaceDataset,
    split: str,
    errors: SplitErrors,
    *,
    boxes: str,
    missed: int | None = None,
    corruption: str = "none",
    flip_test: bool = False,
    normalizer: str | None = None,
    calibration: UncertaintyModel | None = None,
) -> EvaluationResult:
    """Metrics from the errors of each face.

    Args:
      dataset: the data.
      split: name of the split.
      errors: errors of the split's faces, as `split_errors` returns them.
      boxes: source of the face boxes.
      missed: number of faces that the face detector did not find.
      corruption: corruption that was applied to the crops.
      flip_test: whether predictions for the crop and its mirror image were averaged.
      normalizer: normalizer that was chosen in place of the scheme's own, or None.
      calibration: map from heatmaps to predicted errors, to be assessed.
    """
    masks = subset_masks(dataset, split)
    subsets = {
        name: summary
        for name, faces in masks.items()
        if (summary := errors.summary(faces))["num_faces"]
    }
    visibility = errors.visibility_summary()
    if visibility is not None:
        # Not among `subsets`, since profiles have labels and no normalizing distance.
        visibility["subsets"] = {
            name: summary
            for name, faces in masks.items()
            if (summary := errors.visibility_summary(faces)) is not None
        }
    stages = errors.summary()
    return EvaluationResult(
        dataset=dataset.name,
        split=split,
        num_faces=stages.pop("num_faces"),
        boxes=boxes,
        stages=stages,
        subsets=subsets,
        unmeasured=int((~errors.measured).sum()),
        missed=missed,
        corruption=corruption,
        flip_test=flip_test,
        normalizer=normalizer,
        offsets=None if dataset.offsets is None else dataset.offsets.digest,
        visibility=visibility,
        calibration=(None if calibration is None else _assess(errors, calibration, dataset, split)),
        errors=errors,
    )


def _assess(
    errors: SplitErrors, calibration: UncertaintyModel, dataset: FaceDataset, split: str
) -> dict[str, Any]:
    expected = calibration.expected_error(errors.confidence, errors.heatmap_std)
    fitted_on = calibration.fitted_on
    # Several datasets are joined by `+`.
    same_data = dataset.fingerprint in fitted_on.get("fingerprint", "").split("+")
    both = set(dataset.parts(fitted_on.get("split", ""))) & set(dataset.parts(split))
    return {
        "fitted_here": same_data and bool(both),
        **assess(errors.percent_errors(), expected, errors.confidence),
    }


def subset_masks(dataset: FaceDataset, split: str) -> dict[str, Bool[np.ndarray, "n"]]:
    """Which faces of a split belong to each of its subsets, in the order of the split."""
    records = list(dataset.source(split, with_images=False))
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


def format_uncertainty(figures: dict[str, Any]) -> str:
    """Table of the quality of predicted errors (`calibration.assess`)."""
    here = figures.get("fitted_here")
    lines = [
        "",
        "predicted error of each landmark, in %"
        + (" (optimiztic: fitted on faces of this split)" if here else ""),
        "  landmarks  expected  measured",
    ]
    lines += [
        f"{row['num_landmarks']:11,}  {row['expected_error']:8.2f}  {row['measured_error']:8.2f}"
        for row in [*figures["reliability"], figures]
    ]
    lines[-1] += f"  all; mean difference in a row {figures['calibration_error']:.2f}"
    lines.append(
        f"AUSE {figures['ause']:.3f}; by confidence alone {figures['ause_confidence']:.3f}, "
        f"at random {figures['ause_random']:.3f}, oracle 0"
    )
    return "\n".join(lines)

"""Errors of a model on each face of a split, and their metrics over sets of faces."""

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from lcgcn_jax.atomic_io import replacing, writing
from lcgcn_jax.data.annotations import Visibility
from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.data.pipeline import Batch, eval_batches, record_names
from lcgcn_jax.distributed import gather_rows
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation import metrics
from lcgcn_jax.evaluation.predictions import Predict
from lcgcn_jax.geometry import transform_points
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.lcgcn import LCGCNOutput

FaceSet = Bool[np.ndarray, "n"] | slice
"""Mask of a subset of the faces of a split; a slice selects all of them."""


@dataclasses.dataclass(frozen=True)
class SplitErrors:
    """Errors and heatmap statistics of the n faces of a split, in its order.

    Errors are fractions of the normalizing distance of the face (`LandmarkScheme.normalizing_distance`).

    Attributes:
      heatmap: mean error of each face in the heatmap stage; NaN for a face without a normalizing distance.
      graph: mean error of each face in the graph stage; None for a model without a graph.
      measured: whether each face has a normalizing distance.
      landmarks: error of each landmark in the last stage; NaN where it is not annotated or the face is not
        measured.
      confidence: peak of each heatmap.
      heatmap_std: standard deviation of each heatmap (`heatmaps.heatmap_std`); None for outputs without it.
      box_landmarks: as `landmarks`, but as a fraction of the size of the box of the true landmarks, and
        also for faces that are not measured.
      visibility: predicted probability that each landmark is visible; None without a visibility head.
      visibility_labels: values of `data.annotations.Visibility`; None without a visibility head.
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
        """Errors of the landmarks in percent, also for faces without a normalizing distance.

        The normalizing distance of such a face is estimated from its box size by the median ratio of the
        two over the measured faces. Profiles, for example, have only one outer eye corner. NaN where a
        landmark is not annotated.
        """
        ratios = np.full(self.landmarks.shape, np.nan)
        np.divide(self.box_landmarks, self.landmarks, out=ratios, where=self.landmarks > 0)
        ratios = ratios[np.isfinite(ratios).any(axis=1)]
        if not len(ratios):
            return 100 * self.landmarks
        ratio = np.median(np.nanmedian(ratios, axis=1))
        return 100 * np.where(self.measured[:, None], self.landmarks, self.box_landmarks / ratio)

    def mean(self) -> dict[str, float]:
        """Mean error of each stage of the model over the measured faces."""
        stages = {"heatmap": self.heatmap, "graph": self.graph}
        return {
            stage: float(errors[self.measured].mean())
            for stage, errors in stages.items()
            if errors is not None
        }

    def summary(self, faces: FaceSet = slice(None)) -> dict[str, Any]:
        """Number of measured faces in a set, and `metrics.error_metrics` of both stages."""
        selected = np.zeros_like(self.measured)
        selected[faces] = True
        selected &= self.measured
        return {
            "num_faces": int(selected.sum()),
            "heatmap": metrics.error_metrics(self.heatmap[selected]),
            "graph": None if self.graph is None else metrics.error_metrics(self.graph[selected]),
        }

    def visibility_summary(self, faces: FaceSet = slice(None)) -> dict[str, Any] | None:
        """Metrics of the prediction that a landmark is not visible, over a set of faces.

        Returns:
          - `num_faces` and `num_landmarks`: those with a label;
          - `not_visible`: the fraction of these landmarks that is occluded;
          - `auroc` and `average_precision`: of the predicted probability;
          - `auroc_confidence`: of the heatmap peak instead of the predicted probability;
          - `auroc_externally_occluded` and `auroc_self_occluded`: of one kind of occlusion against the
            visible landmarks.

          A metric is None if it has only one class. The result is None without a visibility head or labels.
        """
        if self.visibility is None or self.visibility_labels is None:
            return None
        labels = self.visibility_labels[faces]
        known = labels >= 0
        if not known.any():
            return None
        truth, scores = labels[known], 1.0 - self.visibility[faces][known].astype(np.float64)
        occluded = truth > 0
        auroc, average_precision = metrics.roc_auc_and_average_precision(scores, occluded)

        def auroc_of_kind(kind: Visibility) -> float | None:
            rows = (truth == Visibility.VISIBLE) | (truth == kind)
            return metrics.roc_auc_and_average_precision(scores[rows], occluded[rows])[0]

        peaks = self.confidence[faces][known]
        return {
            "num_faces": int(known.any(axis=1).sum()),
            "num_landmarks": int(known.sum()),
            "not_visible": float(occluded.mean()),
            "auroc": auroc,
            "average_precision": average_precision,
            "auroc_confidence": metrics.roc_auc_and_average_precision(-peaks, occluded)[0],
            "auroc_externally_occluded": auroc_of_kind(Visibility.EXTERNALLY_OCCLUDED),
            "auroc_self_occluded": auroc_of_kind(Visibility.SELF_OCCLUDED),
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
) -> SplitErrors:
    """Predict each face of a split once, and measure the errors in pixels of its image.

    Args:
      batch_size: number of faces in a batch, over all processes.
      box: `gt` (box of the true landmarks), `rect` (the box that came with the data), or a box for each
        face, such as those of `evaluation.detector_boxes.detector_boxes`.
      corruption: corruption to apply to each crop, one of `data.corruptions.CORRUPTIONS`.

    Raises:
      InputError: the data has no such split or box, there is no such corruption, or no face can be
        measured.
    """
    batches = eval_batches(
        dataset,
        split,
        image_size=image_size,
        batch_size=batch_size,
        box=box,
        corruption=corruption,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return errors_of(((predict(batch["image"]), batch) for batch in batches), dataset.scheme)


def errors_of(outputs: Iterable[tuple[LCGCNOutput, Batch]], scheme: LandmarkScheme) -> SplitErrors:
    """Errors of model outputs for the batches of `data.pipeline.eval_batches`, in the order of the split.

    Raises:
      InputError: no face can be measured.
    """
    batches = [
        _batch_errors(output, batch, scheme) | {"record": batch["record"], "is_face": batch["mask"]}
        for output, batch in outputs
    ]
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    if jax.process_count() > 1:
        columns = {name: gather_rows(values) for name, values in columns.items()}
    is_face = columns.pop("is_face")
    order = np.argsort(columns.pop("record")[is_face])
    fields: dict[str, Any] = {"graph": None, "heatmap_std": None}
    fields |= {name: values[is_face][order] for name, values in columns.items()}
    errors = SplitErrors(**fields)
    if not errors.measured.any():
        raise InputError(
            f"no face can be measured: NME is in percent of {scheme.normalizer_text}, and no face has it; "
            "prepare the data with another normalizer of the scheme"
        )
    return errors


def _batch_errors(
    output: LCGCNOutput, batch: Batch, scheme: LandmarkScheme
) -> dict[str, np.ndarray]:
    """The fields of `SplitErrors` for a batch, without those that the model does not have."""
    true, visible = batch["source_landmarks"], batch["visible"]
    distance = scheme.normalizing_distance(true, visible, batch["normalizer"])
    measured = np.isfinite(distance)
    by_box = dataclasses.replace(scheme, normalizer="box")
    box_size = by_box.normalizing_distance(true, visible, batch["normalizer"])

    def in_image(landmarks):
        pairs = zip(batch["crop_to_source"], np.asarray(landmarks, np.float64), strict=True)
        return np.stack([transform_points(affine, points) for affine, points in pairs])

    def face_errors(landmarks):
        errors = np.full(len(true), np.nan)
        columns = (landmarks, true, visible, distance)
        errors[measured] = metrics.face_errors(*(values[measured] for values in columns))
        return errors

    landmarks = in_image(output.landmarks)
    pixels = np.where(visible, np.linalg.norm(landmarks - true, axis=-1), np.nan)
    columns = {
        "heatmap": face_errors(in_image(output.heatmap_landmarks)),
        "measured": measured,
        "landmarks": pixels / distance[:, None],
        "confidence": np.asarray(output.confidence),
        "box_landmarks": pixels / box_size[:, None],
    }
    if output.edges is not None:
        columns["graph"] = face_errors(landmarks)
    if output.heatmap_std is not None:
        columns["heatmap_std"] = np.asarray(output.heatmap_std)
    if output.visibility is not None:
        columns["visibility"] = np.asarray(output.visibility)
        columns["visibility_labels"] = batch["visibility"]
    return columns


def write_face_errors(path: Path, dataset: FaceDataset, split: str, errors: SplitErrors) -> None:
    """Write a CSV with the name and the NME of both stages, in percent, of each face of a split.

    The graph column is empty for a model without a graph, and both columns for a face that is not measured.
    To compare two systems on the same faces, use `metrics.bootstrap_interval` of the differences.

    Raises:
      InputError: the file cannot be written.
    """
    names = record_names(dataset.source(split, with_images=False), range(len(errors.heatmap)))

    def column(stage):
        return [
            "" if stage is None or not measured else f"{100 * stage[i]:.6f}"
            for i, measured in enumerate(errors.measured)
        ]

    with (
        writing(path),
        replacing(path) as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "heatmap", "graph"))
        writer.writerows(zip(names, column(errors.heatmap), column(errors.graph), strict=True))


def subset_masks(dataset: FaceDataset, split: str) -> dict[str, Bool[np.ndarray, "n"]]:
    """Masks of the subsets of a split: the parts of a union of splits, the sources and the attributes."""
    records = list(dataset.source(split, with_images=False))
    masks = {}
    parts = dataset.parts(split)
    if len(parts) > 1:
        sizes = [dataset.num_faces[part] for part in parts]
        part_of_face = np.repeat(np.arange(len(parts)), sizes)
        masks |= {part: part_of_face == i for i, part in enumerate(parts)}
    origins = np.array([record["subset"] for record in records])
    if len(set(origins)) > 1:
        masks |= {str(origin): origins == origin for origin in sorted(set(origins))}
    attributes = np.array([record["attributes"] for record in records], bool)
    for column, name in enumerate(dataset.attribute_names):
        if attributes[:, column].any():
            masks[name] = attributes[:, column]
    return masks

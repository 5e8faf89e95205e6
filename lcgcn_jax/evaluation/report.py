"""Result of an evaluation: metrics of both stages over a split and its subsets, as JSON and as text."""

import dataclasses
from typing import Any

from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.errors import count_of
from lcgcn_jax.evaluation.face_errors import SplitErrors, subset_masks
from lcgcn_jax.evaluation.metrics import uncertainty_metrics
from lcgcn_jax.tables import format_table
from lcgcn_jax.uncertainty import UncertaintyModel


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
      unmeasured: number of faces without a normalizing distance; they are not part of `num_faces`.
      missed: number of faces that the face detector did not find; None with other boxes.
      corruption: corruption that was applied to each crop; `none` for clean crops.
      flip_test: whether the predictions for the crop and its mirror image were averaged.
      normalizer: normalizer that was chosen in place of that of the scheme; None for that of the scheme.
      offsets: SHA-256 of the annotation offsets that were removed from the ground truth; None without any.
      stages: metrics of the stages `heatmap` and `graph` over all measured faces.
      subsets: `num_faces` and the metrics of both stages for each subset: the parts of a union of splits,
        the sources of the faces, and their attributes.
      visibility: metrics of the predicted visibility (`SplitErrors.visibility_summary`), with `subsets`;
        None without a visibility head or labels.
      calibration: quality of the predicted errors (`metrics.uncertainty_metrics`). Its `fitted_here` is
        True if they were fitted on faces of this split, which makes them look better than they are. None
        for a model without predicted errors.
      errors: errors of each face and landmark, in the order of the split.
    """

    dataset: str
    split: str
    num_faces: int
    boxes: str
    unmeasured: int
    missed: int | None
    corruption: str
    flip_test: bool
    normalizer: str | None
    offsets: str | None
    stages: dict[str, Any]
    subsets: dict[str, dict[str, Any]]
    visibility: dict[str, Any] | None
    calibration: dict[str, Any] | None
    errors: SplitErrors = dataclasses.field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The content of `lcgcn eval --json`, in plain types.

        Keys of conditions and metrics that do not apply are left out: `unmeasured`, `missed`, `corruption`,
        `normalizer`, `offsets`, `visibility` and `calibration`.
        """
        fields = vars(self) | {
            "unmeasured": self.unmeasured or None,
            "corruption": None if self.corruption == "none" else self.corruption,
        }
        del fields["flip_test"], fields["errors"]
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def conditions(self) -> str:
        """Dataset, split, boxes and other conditions of the evaluation, in one line."""
        conditions = [f"{self.dataset} {self.split}", f"boxes: {self.boxes}"]
        if self.missed is not None:
            conditions[-1] += f" ({count_of(self.missed, 'face')} missed)"
        conditions.append(f"flip test: {'yes' if self.flip_test else 'no'}")
        if self.corruption != "none":
            conditions.append(f"corrupted: {self.corruption}")
        if self.normalizer is not None:
            conditions.append(f"normalizer: {self.normalizer}")
        if self.offsets is not None:
            conditions.append("annotation offsets removed")
        if self.unmeasured:
            conditions.append(f"{count_of(self.unmeasured, 'face')} not measured")
        return ", ".join(conditions)

    def __str__(self) -> str:
        rows = {"all": {"num_faces": self.num_faces, **self.stages}} | self.subsets
        tables = [self.conditions, format_stages(rows)]
        if self.visibility is not None:
            tables.append(format_visibility(self.visibility))
        if self.calibration is not None:
            tables.append(format_uncertainty(self.calibration))
        return "\n".join(tables)


def format_stages(rows: dict[str, dict[str, Any]]) -> str:
    """Table of the metrics of both stages for each set of faces (`SplitErrors.summary`)."""
    table = [["", "faces", "stage", "NME %", "(95 % interval)", "FR@0.1 %", "AUC@0.1"]]
    for name, row in rows.items():
        prefix = [name, str(row["num_faces"])]
        for stage in ("heatmap", "graph"):
            if (metrics := row[stage]) is not None:
                low, high = metrics["nme_ci95"]
                interval = f"({low:.3f} - {high:.3f})"
                values = [f"{metrics['fr10']:.2f}", f"{metrics['auc10']:.4f}"]
                table.append([*prefix, stage, f"{metrics['nme']:.3f}", interval, *values])
                prefix = ["", ""]
    return format_table(table)


def format_visibility(figures: dict[str, Any]) -> str:
    """Table of the metrics of the predicted visibility (`SplitErrors.visibility_summary`)."""
    columns = {
        "auroc": "AUROC",
        "average_precision": "avg. precision",
        "auroc_externally_occluded": "external",
        "auroc_self_occluded": "self",
        "auroc_confidence": "by confidence",
    }
    table = [["", "faces", "% of landmarks", *columns.values()]]
    for name, row in ({"all": figures} | figures["subsets"]).items():
        values = ["-" if row[key] is None else f"{row[key]:.4f}" for key in columns]
        table.append([name, str(row["num_faces"]), f"{100 * row['not_visible']:.2f}", *values])
    return f"\nlandmarks that are not visible\n{format_table(table)}"


def format_uncertainty(figures: dict[str, Any]) -> str:
    """Table of the quality of predicted errors (`metrics.uncertainty_metrics`)."""
    note = " (optimistic: fitted on faces of this split)" if figures.get("fitted_here") else ""
    lines = ["", f"predicted error of each landmark, in %{note}", "  landmarks  expected  measured"]
    lines += [
        f"{row['num_landmarks']:11,}  {row['expected_error']:8.2f}  {row['measured_error']:8.2f}"
        for row in [*figures["reliability"], figures]
    ]
    lines[-1] += f"  all; mean difference in a row {figures['calibration_error']:.2f}"
    lines.append(
        f"AUSE {figures['ause']:.3f}; by confidence only {figures['ause_confidence']:.3f}, "
        f"at random {figures['ause_random']:.3f}, oracle 0"
    )
    return "\n".join(lines)


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
    """Compute the metrics of an evaluation from the errors of each face.

    Args:
      boxes: face boxes that the faces were cropped by, as in `evaluator.evaluate`.
      missed: number of faces that the detector did not find; None for other boxes.
      calibration: uncertainty model whose predicted errors are compared with the measured ones.
    """
    masks = subset_masks(dataset, split)
    subsets = {name: errors.summary(faces) for name, faces in masks.items()}
    visibility = errors.visibility_summary()
    if visibility is not None:
        # Not part of `subsets`: profiles have visibility labels but no normalizing distance.
        summaries = {name: errors.visibility_summary(faces) for name, faces in masks.items()}
        visibility["subsets"] = {
            name: summary for name, summary in summaries.items() if summary is not None
        }
    stages = errors.summary()
    return EvaluationResult(
        dataset=dataset.name,
        split=split,
        num_faces=stages.pop("num_faces"),
        boxes=boxes,
        stages=stages,
        subsets={name: summary for name, summary in subsets.items() if summary["num_faces"]},
        unmeasured=int((~errors.measured).sum()),
        missed=missed,
        corruption=corruption,
        flip_test=flip_test,
        normalizer=normalizer,
        offsets=None if dataset.offsets is None else dataset.offsets.digest,
        visibility=visibility,
        calibration=(
            None
            if calibration is None
            else _summarize_uncertainty(errors, calibration, dataset, split)
        ),
        errors=errors,
    )


def _summarize_uncertainty(
    errors: SplitErrors, calibration: UncertaintyModel, dataset: FaceDataset, split: str
) -> dict[str, Any]:
    assert errors.heatmap_std is not None, "models with predicted errors output it"
    predicted = calibration.predict(errors.confidence, errors.heatmap_std)
    fitted_on = calibration.fitted_on
    is_same_data = dataset.fingerprint in fitted_on.get("fingerprint", "").split("+")
    shared_parts = set(dataset.parts(fitted_on.get("split", ""))) & set(dataset.parts(split))
    return {
        "fitted_here": is_same_data and bool(shared_parts),
        **uncertainty_metrics(errors.percent_errors(), predicted, errors.confidence),
    }

"""Text tables of evaluation results."""

from collections.abc import Sequence
from typing import Any

from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.evaluation.fit_uncertainty import CalibrationFit
from lcgcn_jax.evaluation.report import EvaluationResult, format_uncertainty
from lcgcn_jax.evaluation.reported_results import METRICS, ReportedTable, reported_table
from lcgcn_jax.tables import format_table

_HEADINGS = {"nme": "NME %", "fr10": "FR@0.1 %", "auc10": "AUC@0.1"}
_DIGITS = {"nme": 2, "fr10": 2, "auc10": 3}


def compare_reported(dataset: FaceDataset, split: str, result: EvaluationResult) -> str:
    """Table of the results of an evaluation and reported ones (`reported_table`)."""
    table = reported_table(dataset)
    sets = table.measured_sets(dataset, split, result.to_dict())
    return format_comparison(table, sets, split, result.conditions)


def format_comparison(
    table: ReportedTable, measured: dict[str, dict[str, Any]], split: str, conditions: str
) -> str:
    """Table of measured results (`ReportedTable.measured_sets`) and reported ones, with sources."""
    if not measured:
        return (
            f"\nNo reported results for {split}: those for {table.dataset} are for its test sets "
            f"({', '.join(table.num_faces)}), which were not evaluated here."
        )
    columns = [
        (name, metric)
        for name in measured
        for metric in METRICS
        if metric == "nme" or any(metric in row.figures.get(name, ()) for row in table.rows)
    ]
    rows = [
        ["", "", *(name if metric == "nme" else "" for name, metric in columns)],
        ["", "year", *(_HEADINGS[metric] for _, metric in columns)],
    ]
    for stage in ("heatmap", "graph"):
        figures = {name: faces[stage] for name, faces in measured.items()}
        if None not in figures.values():
            rows.append([f"measured here: {stage} stage", "", *_format_row(columns, figures)])
    reported = [row for row in table.rows if measured.keys() & row.figures.keys()]
    sources = []
    for number, row in enumerate(reported, start=1):
        values = _format_row(columns, row.figures)
        rows.append([f"reported: {row.method} [{number}]", str(row.year), *values])
        sources.append(f"[{number}] {row.source}" + (f"; {row.note}" if row.note else ""))
    partial = [
        f"{name} {faces['num_faces']:,} of {table.num_faces[name]:,}"
        for name, faces in measured.items()
        if faces["num_faces"] != table.num_faces[name]
    ]
    return "\n".join(
        [
            "",
            "Comparison with results reported by others under other conditions (face boxes,",
            "training data, ImageNet weights, flip test): small differences mean little.",
            f"Measured here: {conditions}",
            *([f"Incomplete sets: {', '.join(partial)} faces"] if partial else []),
            "",
            format_table(rows),
            "",
            *sources,
        ]
    )


def _format_row(columns: list[tuple[str, str]], figures: dict[str, dict[str, Any]]) -> list[str]:
    """Format metrics with the digits that papers report, and `-` for unknown ones."""
    values = [figures.get(name, {}).get(metric) for name, metric in columns]
    return [
        "-" if value is None else f"{value:.{_DIGITS[metric]}f}"
        for value, (_, metric) in zip(values, columns, strict=True)
    ]


def format_calibration(datasets: Sequence[FaceDataset], split: str, fit: CalibrationFit) -> str:
    """Tables of the cross-validated quality of predicted errors."""
    tables, rows = [], [["", "landmarks", "predicted", "measured", "predicted / measured"]]
    for dataset, figures, subsets in zip(datasets, fit.figures, fit.subsets, strict=True):
        name = dataset.name if len(datasets) == 1 else dataset.path
        for corruption, quality in figures.items():
            condition = "clean" if corruption == "none" else f"corrupted: {corruption}"
            title = f"{name} {split}, {condition}; cross-validated"
            tables.append(f"{title}{format_uncertainty(quality)}\n")
        for subset, quality in {"all": figures["none"], **subsets}.items():
            predicted, measured = quality["expected_error"], quality["measured_error"]
            ratio = predicted / measured if measured else float("nan")
            values = [f"{value:.2f}" for value in (predicted, measured, ratio)]
            rows.append([f"{dataset.path}, {subset}", f"{quality['num_landmarks']:,}", *values])
    title = "mean predicted and measured error in %, clean faces, cross-validated"
    return "\n".join([*tables, title, format_table(rows)])

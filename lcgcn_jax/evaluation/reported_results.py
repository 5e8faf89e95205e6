"""Results that publications report for the test sets of WFLW and 300W."""

import dataclasses
import functools
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.errors import InputError

METRICS = ("nme", "fr10", "auc10")
"""As in the report of `lcgcn eval`: NME and FR at 0.1 in percent, AUC up to 0.1 in 0..1."""


@dataclasses.dataclass(frozen=True)
class ReportedResult:
    """Results that one publication reports for one method.

    Attributes:
      source: the paper with its venue, or the model zoo.
      figures: known values by set, then by metric (one of `METRICS`).
      note: known conditions, or how a figure was read; may be empty.
    """

    method: str
    year: int
    source: str
    figures: dict[str, dict[str, float]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ReportedTable:
    """Reported results for one dataset.

    Attributes:
      dataset: name of the dataset, as `FaceDataset.name`.
      num_faces: size of each set with reported results: splits, and attributes of `test`.
      rows: results, oldest first.
    """

    dataset: str
    num_faces: dict[str, int]
    rows: tuple[ReportedResult, ...]

    def measured_sets(
        self, dataset: FaceDataset, split: str, result: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Metrics that an evaluation measured for the sets of the table.

        Args:
          split: the split, or union of splits, that was evaluated.
          result: `EvaluationResult.to_dict()` of an evaluation.

        Returns:
          `num_faces` and the metrics of both stages by set, in the order of the table; empty if the split
          contains no set of the table.
        """
        parts = dataset.parts(split)
        whole = {"num_faces": result["num_faces"], **result["stages"]}
        if len(parts) > 1:
            measured = {part: result["subsets"][part] for part in parts}
            if set(parts) == set(dataset.parts("full")):
                measured["full"] = whole
        else:
            # Results by attribute are reported for the test faces only.
            measured = {split: whole} | (result["subsets"] if split == "test" else {})
        return {name: measured[name] for name in self.num_faces if name in measured}


def require_comparable(
    dataset: FaceDataset, *, normalizer: str | None, offsets: Path | None
) -> None:
    """Check before an evaluation that its results can be compared with reported ones.

    Raises:
      InputError: there are none for this kind of dataset, or for other normalizers or annotations.
    """
    if (normalizer, offsets) != (None, None):
        raise InputError(
            "--compare-reported: reported errors are for the normalizer and the annotations of the "
            "dataset; leave out --normalizer and --offsets"
        )
    reported_table(dataset)


def reported_table(dataset: FaceDataset) -> ReportedTable:
    """Reported results for a dataset.

    Raises:
      InputError: there are none for this kind of dataset.
    """
    tables = _tables()
    if dataset.name not in tables:
        raise InputError(
            f"{dataset.path}: {dataset.name} data, and there are reported results for "
            f"{' and '.join(tables)}; leave out --compare-reported"
        )
    return tables[dataset.name]


@functools.cache
def _tables() -> dict[str, ReportedTable]:
    text = (
        resources.files("lcgcn_jax.evaluation")
        .joinpath("reported_results.toml")
        .read_text(encoding="utf-8")
    )
    return {
        name: ReportedTable(
            name,
            table["faces"],
            tuple(_parse_result(fields, table["faces"]) for fields in table["reported"]),
        )
        for name, table in tomllib.loads(text).items()
    }


def _parse_result(fields: dict[str, Any], sets: dict[str, int]) -> ReportedResult:
    figures = {name: fields[name] for name in sets if name in fields}
    return ReportedResult(figures=figures, **{k: v for k, v in fields.items() if k not in figures})

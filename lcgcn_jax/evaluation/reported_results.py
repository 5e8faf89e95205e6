"""Figures that others published for the test sets of WFLW and 300W; none was measured here."""

import dataclasses
import functools
import tomllib
from importlib import resources
from typing import Any

from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.errors import InputError

METRICS = ("nme", "fr10", "auc10")
"""As in the report of `lcgcn eval`: NME and FR at 0.1 in percent, AUC up to 0.1 in 0..1."""


@dataclasses.dataclass(frozen=True)
class ReportedResult:
    """What one publication says of one method.

    Attributes:
      method: its name.
      year: of the publication.
      source: the paper, with its venue, or the model zoo.
      figures: by set, then by metric (of `METRICS`), where they are known.
      note: conditions that are known, or how a figure is read; or empty.
    """

    method: str
    year: int
    source: str
    figures: dict[str, dict[str, float]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ReportedTable:
    """The published rows of a dataset.

    Attributes:
      dataset: its name, as `FaceDataset.name`.
      num_faces: size of each set that rows have figures of: splits, and attributes of `test`.
      rows: oldest first.
    """

    dataset: str
    num_faces: dict[str, int]
    rows: tuple[ReportedResult, ...]

    def measured_sets(
        self, dataset: FaceDataset, split: str, result: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """What an evaluation measured of the table's sets.

        Args:
          dataset: the data that was evaluated.
          split: the split, or union of splits, that was evaluated.
          result: `EvaluationResult.to_dict()` of an evaluation.

        Returns:
          By set, in the table's order, `num_faces` and the metrics of both stages; empty where the
          split holds no set of the table.
        """
        parts = dataset.parts(split)
        whole = {"num_faces": result["num_faces"], **result["stages"]}
        if len(parts) > 1:
            measured = {part: result["subsets"][part] for part in parts}
            if set(parts) == set(dataset.parts("full")):
                measured["full"] = whole
        else:
            # The attributes' rows are of the test faces, so no other split may stand beside them.
            measured = {split: whole} | (result["subsets"] if split == "test" else {})
        return {name: measured[name] for name in self.num_faces if name in measured}


def reported_table(dataset: FaceDataset) -> ReportedTable:
    """The published rows for a dataset.

    Raises:
      InputError: there are none for this kind of dataset.
    """
    tables = _tables()
    if dataset.name not in tables:
        raise InputError(
            f"{dataset.path}: {dataset.name} data, and published figures are for "
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
            tuple(_row(fields, table["faces"]) for fields in table["published"]),
        )
        for name, table in tomllib.loads(text).items()
    }


def _row(fields: dict[str, Any], sets: dict[str, int]) -> ReportedResult:
    figures = {name: fields[name] for name in sets if name in fields}
    return ReportedResult(figures=figures, **{k: v for k, v in fields.items() if k not in figures})

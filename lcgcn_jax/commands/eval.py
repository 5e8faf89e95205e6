"""`lcgcn eval`: NME, failure rate and AUC of both stages, by split and subset."""

import argparse
import json
from pathlib import Path
from typing import Any

from lcgcn_jax import compat
from lcgcn_jax.atomic_io import require_writable, write_whole, writing
from lcgcn_jax.commands.main import DETECTOR_MODEL_OPTION, use_compilation_cache
from lcgcn_jax.data.corruptions import CORRUPTIONS
from lcgcn_jax.data.dataset import open_dataset, require_scheme
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.evaluator import BOXES, evaluate
from lcgcn_jax.evaluation.face_errors import write_face_errors
from lcgcn_jax.evaluation.reported_results import METRICS, ReportedTable, reported_table
from lcgcn_jax.inference.model import load
from lcgcn_jax.landmarks import EVALUATION_NORMALIZERS

_HEADINGS = {"nme": "NME %", "fr10": "FR@0.1 %", "auc10": "AUC@0.1"}
_DIGITS = {"nme": 2, "fr10": 2, "auc10": 3}


def add_parser(subparsers) -> None:
    """Adds `eval` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "eval",
        help="measure a model on a split: NME, failure rate, AUC",
        description="Measures a model on faces prepared with `lcgcn prepare`. NME and the failure "
        "rate at 0.1 are in percent, the area under the error curve up to 0.1 is in 0..1. Of a model "
        "that `lcgcn calibrate` fitted a map for, it also says how good the predicted errors are: expected "
        "beside measured for ten bins, and the area between the sparsification curve and the oracle's "
        "(AUSE). For a model with a visibility head, on data with visibility labels, it also prints how well "
        "landmarks that are not visible are found (AUROC, average precision).",
        epilog="example: lcgcn eval --model runs/small --data data/w300 --split full --flip-test",
    )
    parser.add_argument("--model", required=True, help="bundle or training workdir")
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare wrote")
    parser.add_argument("--split", required=True, help="e.g. test, common, challenge, full")
    parser.add_argument(
        "--boxes",
        choices=BOXES,
        default="gt",
        help="face boxes: of the true landmarks, those that came with the data, or those of the face "
        "detector (on the undamaged picture; a face that it misses has the true box, and how many "
        "is said) (%(default)s)",
    )
    parser.add_argument("--detector-model", **DETECTOR_MODEL_OPTION)
    parser.add_argument(
        "--flip-test", action="store_true", help="average over the crop and its mirror image"
    )
    parser.add_argument(
        "--corruption",
        type=lambda name: compat.CORRUPTIONS.get(name, name),
        choices=CORRUPTIONS,
        default="none",
        help="corrupt every crop, seeded by its name: occlude (one or two rectangles with sides of "
        "23-47 %% of the crop, one random color with noise of sigma 15), blur (Gaussian, sigma "
        "1.6-3.9 %% of the crop's side), low_light (gray levels times 0.15-0.5), noise (Gaussian, sigma "
        "5-25 gray levels); %(default)s",
    )
    parser.add_argument(
        "--normalizer",
        choices=EVALUATION_NORMALIZERS,
        help="what errors are in percent of: the distance between the outer eye corners or between the "
        "pupils, or the square root of the area of the true landmarks' box, which every face has; "
        "default: the data's own",
    )
    parser.add_argument(
        "--offsets",
        type=Path,
        metavar="FILE",
        help="remove the annotation offsets that 'lcgcn fit-offsets' wrote from the true landmarks",
    )
    parser.add_argument(
        "--compare-reported",
        action="store_true",
        help="print the result beside the figures that others published for WFLW's or 300W's test sets",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="faces at a time (%(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument(
        "--per-face",
        type=Path,
        help="CSV to write every face's NME to: name, heatmap, graph; in %%",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace these files")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints a table.

    Raises:
      InputError: model or data cannot be used, or do not fit each other.
    """
    outputs = [path for path in (args.json, args.per_face) if path is not None]
    for path in outputs:
        require_writable(path, overwrite=args.overwrite)
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: has to be at least 1")
    use_compilation_cache()
    model = load(args.model)
    dataset = open_dataset(args.data)
    require_scheme(dataset, model.scheme)
    if args.compare_reported and (args.normalizer, args.offsets) != (None, None):
        raise InputError(
            "--compare-reported: published errors are in percent of the data's own normalizer, for its own "
            "annotations; leave out --normalizer and --offsets"
        )
    published = reported_table(dataset) if args.compare_reported else None
    result = evaluate(
        model,
        dataset,
        split=args.split,
        boxes=args.boxes,
        flip_test=args.flip_test,
        corruption=args.corruption,
        normalizer=args.normalizer,
        offsets=args.offsets,
        batch_size=args.batch_size,
        detector_model=args.detector_model,
    )
    print(result)
    if published is not None:
        sets = published.measured_sets(dataset, args.split, result.to_dict())
        print(format_comparison(published, sets, args.split, result.conditions))
    if args.per_face is not None:
        with writing(args.per_face):
            write_whole(
                args.per_face,
                lambda tmp: write_face_errors(tmp, dataset, args.split, result.errors),
            )
    if args.json is not None:
        text = json.dumps(result.to_dict(), indent=1) + "\n"
        with writing(args.json):
            write_whole(args.json, lambda tmp: tmp.write_text(text, encoding="utf-8"))
    return 0


def format_comparison(
    table: ReportedTable, measured: dict[str, dict[str, Any]], split: str, conditions: str
) -> str:
    """The measured figures beside the published ones, as a table for the screen.

    Args:
      table: the published rows.
      measured: what was measured of the table's sets, by set (`ReportedTable.measured_sets`).
      split: what was evaluated.
      conditions: how it was evaluated, in words.
    """
    if not measured:
        return (
            f"\nNo published figures beside {split}: those for {table.dataset} are for its test sets "
            f"({', '.join(table.num_faces)}), which were not evaluated here."
        )
    columns = [
        (name, metric)
        for name in measured
        for metric in METRICS
        if metric == "nme" or any(metric in row.figures.get(name, ()) for row in table.rows)
    ]
    header = [["", "", *(name if metric == "nme" else "" for name, metric in columns)]]
    header.append(["", "year", *(_HEADINGS[metric] for _, metric in columns)])
    lines = []
    for stage in ("heatmap", "graph"):
        figures = {name: faces[stage] for name, faces in measured.items()}
        if None not in figures.values():
            lines.append([f"measured here: {stage} stage", "", *_cells(columns, figures)])
    shown = [row for row in table.rows if measured.keys() & row.figures.keys()]
    for number, row in enumerate(shown, start=1):
        cells = _cells(columns, row.figures)
        lines.append([f"published: {row.method} [{number}]", str(row.year), *cells])
    partial = [
        f"{name} {faces['num_faces']:,} of {table.num_faces[name]:,}"
        for name, faces in measured.items()
        if faces["num_faces"] != table.num_faces[name]
    ]
    sources = [
        f"[{number}] {row.source}" + (f"; {row.note}" if row.note else "")
        for number, row in enumerate(shown, start=1)
    ]
    return "\n".join(
        [
            "",
            "Beside published figures: measured by others and not here, under other conditions (face",
            "boxes, training data, ImageNet weights, flip test); so small differences say little.",
            f"Measured here: {conditions}",
            *([f"Not whole sets: {', '.join(partial)} faces"] if partial else []),
            "",
            *_aligned(header + lines),
            "",
            *sources,
        ]
    )


def _cells(columns: list[tuple[str, str]], figures: dict[str, dict[str, Any]]) -> list[str]:
    """Figures as text, in the digits that papers give; `-` where one is not known."""
    values = [figures.get(name, {}).get(metric) for name, metric in columns]
    return [
        "-" if value is None else f"{value:.{_DIGITS[metric]}f}"
        for value, (_, metric) in zip(values, columns, strict=True)
    ]


def _aligned(rows: list[list[str]]) -> list[str]:
    """Rows of equal length as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]

"""`lcgcn eval`: NME, failure rate and AUC of both stages, by split and subset."""

import argparse
import json
from pathlib import Path
from typing import Any

from lcgcn_jax.commands.main import DETECTOR_MODEL_OPTION, use_compilation_cache
from lcgcn_jax.data.augment import DEGRADATIONS
from lcgcn_jax.data.dataset import open_dataset, require_scheme
from lcgcn_jax.data.detected import detector_boxes
from lcgcn_jax.detection import FaceDetector
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference import load
from lcgcn_jax.training.evaluation import (
    report,
    split_errors,
    with_flip_test,
    write_face_errors,
)


def add_parser(subparsers) -> None:
    """Adds `eval` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "eval",
        help="measure a model on a split: NME, failure rate, AUC",
        description="Measures a model on faces prepared with `lcgcn prepare`. NME and the failure "
        "rate at 0.1 are in percent, the area under the error curve up to 0.1 is in 0..1.",
        epilog="example: lcgcn eval --model runs/small --data data/w300 --split full --flip_test",
    )
    parser.add_argument("--model", required=True, help="bundle or training workdir")
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare wrote")
    parser.add_argument("--split", required=True, help="e.g. test, common, challenge, full")
    parser.add_argument(
        "--boxes",
        choices=("gt", "rect", "detector"),
        default="gt",
        help="face boxes: of the true landmarks, those that came with the data, or those of the face "
        "detector (on the undamaged picture; a face that it misses has the true box, and how many "
        "is said) (%(default)s)",
    )
    parser.add_argument("--detector_model", **DETECTOR_MODEL_OPTION)
    parser.add_argument(
        "--flip_test", action="store_true", help="average over the crop and its mirror image"
    )
    parser.add_argument(
        "--degrade",
        choices=DEGRADATIONS,
        default="none",
        help="damage every crop, by its name's seed: occlude (one or two rectangles with sides of "
        "23-47 %% of the crop, one random colour with noise of sigma 15), blur (Gaussian, sigma "
        "1.6-3.9 %% of the crop's side), dark (grey levels times 0.15-0.5), noise (Gaussian, sigma "
        "5-25 grey levels); %(default)s",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="faces at a time (%(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument(
        "--per_face",
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
        if path.exists() and not args.overwrite:
            raise InputError(f"{path}: already exists; choose another file or give --overwrite")
    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size}: has to be at least 1")
    use_compilation_cache()
    model = load(args.model)
    dataset = open_dataset(args.data)
    require_scheme(dataset, model.scheme.name)
    predict = (
        with_flip_test(model.predict_crops, model.scheme) if args.flip_test else model.predict_crops
    )
    box, missed = args.boxes, None
    if args.boxes == "detector":
        box, missed = detector_boxes(FaceDetector(args.detector_model), dataset, args.split)
    errors = split_errors(
        predict,
        dataset,
        args.split,
        image_size=model.image_size,
        batch_size=args.batch_size,
        box=box,
        degrade=args.degrade,
    )
    result = report(
        dataset, args.split, errors, boxes=args.boxes, missed=missed, degrade=args.degrade
    )
    print(
        f"{result['dataset']} {args.split}, boxes: {args.boxes}"
        + ("" if missed is None else f" ({missed} faces missed)")
        + f", flip test: {'yes' if args.flip_test else 'no'}"
        + ("" if args.degrade == "none" else f", degraded: {args.degrade}")
    )
    print(format_table(result))
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
    if args.per_face is not None:
        write_face_errors(args.per_face, dataset, args.split, errors)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def format_table(result: dict[str, Any]) -> str:
    """The figures of `evaluation.report` as a table for the screen."""
    rows = {"all": {"num_faces": result["num_faces"], **result["stages"]}} | result["subsets"]
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

"""`lcgcn calibrate`: how far off each landmark is to be expected, fitted and put into the model."""

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lcgcn_jax.commands.main import use_compilation_cache
from lcgcn_jax.data.dataset import FaceDataset, open_dataset, require_scheme
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.fit_uncertainty import calibrate
from lcgcn_jax.evaluation.report import format_uncertainty
from lcgcn_jax.inference.model import load
from lcgcn_jax.models.bundles import SHIPPED, find_bundle, save_uncertainty


def add_parser(subparsers) -> None:
    """Adds `calibrate` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "calibrate",
        help="fit how far off each landmark is to be expected, and put it into the model",
        description="Fits a monotone map from the peak and the spread of a landmark's heatmap to its "
        "predicted error, in percent of what NME divides by, and puts it into the model: `lcgcn predict` "
        "then reports a predicted error for each landmark, and `lcgcn eval` how good these are. Each face "
        "is used clean and under every corruption of `lcgcn eval --corruption`, so that the map sees "
        "large errors. The figures printed here are cross-validated: each face's are of a map that was "
        "fitted without its image. Fit on hard faces too, such as profiles: a map of easy "
        "faces expects too small errors on hard ones; each data set counts the same. The split has to be one "
        "that the model was not trained on; `lcgcn eval` on the same split is optimiztic.",
        epilog="example: lcgcn calibrate --model runs/small --data data/w300",
    )
    parser.add_argument("--model", required=True, help="bundle or training workdir")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        action="append",
        help="folder that prepare wrote; give --data once for each of several, easy and hard faces together",
    )
    parser.add_argument(
        "--offsets",
        nargs=2,
        action="append",
        default=[],
        metavar=("DIR", "FILE"),
        help="remove the annotation offsets in FILE, which 'lcgcn fit-offsets' wrote, from the faces of "
        "--data DIR",
    )
    parser.add_argument("--split", default="validation", help="faces to fit on (%(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        help="bundle to make, a copy of the model with the map; without it, the model itself gets the map",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="faces at a time (%(default)s)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the map that the model has already"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fits, prints how good it is, and writes.

    Raises:
      InputError: model or data cannot be used, or something is there already.
    """
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: has to be at least 1")
    bundle = find_bundle(args.model)
    if args.out is None and bundle.parent == SHIPPED:
        raise InputError(f"{args.model}: comes with the package; give --out, a bundle to make")
    if args.out is not None and args.out.exists():
        raise InputError(f"{args.out}: already exists; choose another --out")
    use_compilation_cache()
    model = load(bundle)
    if args.out is None and model.calibration is not None and not args.overwrite:
        raise InputError(f"{bundle}: is calibrated already; give --out or --overwrite")
    datasets = _open_datasets(args.data, args.offsets)
    for dataset in datasets:
        require_scheme(dataset, model.scheme)
    fit = calibrate(
        model.predict_crops,
        # Where a scheme has changed its normalizer, the model's counts.
        [dataclasses.replace(dataset, scheme=model.scheme) for dataset in datasets],
        args.split,
        image_size=model.image_size,
        batch_size=args.batch_size,
    )
    for dataset, figures in zip(datasets, fit.figures, strict=True):
        title = f"{dataset.name if len(datasets) == 1 else dataset.path} {args.split}"
        for corrupt, judged in figures.items():
            name = "as they are" if corrupt == "none" else f"damaged: {corrupt}"
            print(f"{title}, {name}; cross-validated{format_uncertainty(judged)}\n")
    rows = {}
    for dataset, figures, subsets in zip(datasets, fit.figures, fit.subsets, strict=True):
        rows[f"{dataset.path}, all"] = figures["none"]
        rows |= {f"{dataset.path}, {name}": judged for name, judged in subsets.items()}
    print(format_ratios(rows) + "\n")
    out = bundle if args.out is None else args.out
    try:
        if args.out is not None:
            shutil.copytree(bundle, args.out)
        save_uncertainty(out, fit.calibration)
    except (OSError, shutil.Error) as error:
        raise InputError(f"{out}: cannot be written: {error}") from error
    print(f"{out}: calibrated; errors are in % of {model.scheme.normalizer_text}")
    return 0


def _open_datasets(folders: Sequence[Path], offsets: Sequence[Sequence[str]]) -> list[FaceDataset]:
    """Opens prepared folders, and removes annotation offsets from those that are named in `offsets`."""
    files = {Path(folder): file for folder, file in offsets}
    twice = len(set(folders)) < len(folders) or len(files) < len(offsets)
    if twice or (unknown := [folder for folder in files if folder not in folders]):
        raise InputError(
            "--data: give each folder once, and --offsets DIR FILE at most once for each"
            if twice
            else f"--offsets {unknown[0]}: no such --data; give one of {', '.join(map(str, folders))}"
        )
    datasets = []
    for folder in folders:
        dataset = open_dataset(folder)
        datasets.append(dataset.without_offsets(files[folder]) if folder in files else dataset)
    return datasets


def format_ratios(rows: dict[str, dict[str, Any]]) -> str:
    """Mean expected beside mean measured errors of undamaged faces, by dataset and subset, as a table."""
    width = max(map(len, rows))
    lines = [
        "mean expected and measured error in %, undamaged faces, cross-validated",
        f"{'':{width}}  landmarks  expected  measured  expected / measured",
    ]
    for name, row in rows.items():
        expected, measured = row["expected_error"], row["measured_error"]
        ratio = expected / measured if measured else float("nan")
        lines.append(
            f"{name:{width}}  {row['num_landmarks']:9,}  {expected:8.2f}  {measured:8.2f}  {ratio:8.2f}"
        )
    return "\n".join(lines)

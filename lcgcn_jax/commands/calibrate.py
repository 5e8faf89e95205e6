"""`lcgcn calibrate`: how far off each landmark is to be expected, fitted and put into the model."""

import argparse
import shutil
from pathlib import Path

from lcgcn_jax.commands.eval import format_uncertainty
from lcgcn_jax.commands.main import use_compilation_cache
from lcgcn_jax.data.dataset import open_dataset, require_scheme
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.fit_uncertainty import calibrate
from lcgcn_jax.inference.model import load
from lcgcn_jax.models.bundles import SHIPPED, find_bundle, save_uncertainty


def add_parser(subparsers) -> None:
    """Adds `calibrate` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "calibrate",
        help="fit how far off each landmark is to be expected, and put it into the model",
        description="Fits a monotone map from the peak and the spread of a landmark's heatmap to its "
        "predicted error, in percent of what NME divides by, and puts it into the model: `lcgcn predict` "
        "then reports an predicted error for each landmark, and `lcgcn eval` how good these are. Each face "
        "counts as it is and under every damage of `lcgcn eval --corruption`, or the map would not have seen "
        "large errors. The figures printed here are cross-validated: each face's are of a map that was "
        "fitted without its image. The split has to be one that the model was not trained on; "
        "`lcgcn eval` on the same split is optimiztic.",
        epilog="example: lcgcn calibrate --model runs/small --data data/w300",
    )
    parser.add_argument("--model", required=True, help="bundle or training workdir")
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare wrote")
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
    dataset = open_dataset(args.data)
    require_scheme(dataset, model.scheme)
    calibration, figures = calibrate(
        model.predict_crops,
        dataset,
        args.split,
        image_size=model.image_size,
        batch_size=args.batch_size,
    )
    for corrupt, judged in figures.items():
        name = "as they are" if corrupt == "none" else f"damaged: {corrupt}"
        print(f"{dataset.name} {args.split}, {name}; cross-validated{format_uncertainty(judged)}\n")
    out = bundle if args.out is None else args.out
    try:
        if args.out is not None:
            shutil.copytree(bundle, args.out)
        save_uncertainty(out, calibration)
    except (OSError, shutil.Error) as error:
        raise InputError(f"{out}: cannot be written: {error}") from error
    print(f"{out}: calibrated; errors are in % of {model.scheme.normalizer_text}")
    return 0

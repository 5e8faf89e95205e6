"""Calibrate the predicted error of each landmark.

Fits a monotone map from the peak and the standard deviation of a heatmap to the
error of the landmark, in percent of the normalizer of NME, and adds it to the
model for 'lcgcn predict' and 'lcgcn eval'. Faces are used clean and with each
corruption of 'lcgcn eval'. Include difficult faces, such as profiles: a map of
easy faces underestimates the errors on difficult ones. Use a split that the
model was not trained on; 'lcgcn eval' on this split is optimistic.

Example: lcgcn research calibrate --model runs/small --data data/w300
"""

import argparse
import shutil

from lcgcn_jax.atomic_io import writing
from lcgcn_jax.cache import use_compilation_cache
from lcgcn_jax.commands.options import add, add_flag
from lcgcn_jax.data.dataset import open_datasets
from lcgcn_jax.errors import InputError, require_absent
from lcgcn_jax.evaluation.fit_uncertainty import calibrate
from lcgcn_jax.evaluation.tables import format_calibration
from lcgcn_jax.inference.model import load_model
from lcgcn_jax.models.bundles import SHIPPED, find_bundle, save_uncertainty
from lcgcn_jax.models.hub import hub_reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model", "--batch-size")
    text = "dataset folder; repeat it for several datasets"
    add(parser, "--data", action="append", help=text)
    parser.add_argument(
        "--offsets",
        nargs=2,
        action="append",
        default=[],
        metavar=("DIR", "FILE"),
        help="remove the annotation offsets in FILE ('lcgcn research fit-offsets') from the faces "
        "of --data DIR",
    )
    add(parser, "--split", default="validation", help="split to fit on")
    text = "folder for a calibrated copy (default: change the model itself)"
    add(parser, "--out", required=False, help=text)
    add_flag(parser, "--overwrite", "replace the calibration of the model")


def run(args: argparse.Namespace) -> int:
    bundle = find_bundle(args.model)
    if args.out is not None:
        require_absent(args.out)
    elif bundle.parent == SHIPPED or hub_reference(args.model):
        where = "comes with the package" if bundle.parent == SHIPPED else "is a download"
        raise InputError(f"{args.model}: {where}; give --out for a calibrated copy")
    use_compilation_cache()
    model = load_model(bundle)
    if args.out is None and model.calibration is not None and not args.overwrite:
        raise InputError(f"{bundle}: is already calibrated; give --out or --overwrite")
    datasets = open_datasets(args.data, model.scheme, args.offsets)
    fit = calibrate(
        model.predict_crops,
        datasets,
        args.split,
        image_size=model.image_size,
        batch_size=args.batch_size,
    )
    print(format_calibration(datasets, args.split, fit))
    out = args.out or bundle
    with writing(out):
        if args.out is not None:
            shutil.copytree(bundle, out)
        save_uncertainty(out, fit.calibration)
    print(f"{out}: calibrated; errors are in % of {model.scheme.normalizer_text}")
    return 0

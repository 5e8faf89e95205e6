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

from lcgcn_jax.cache import use_compilation_cache
from lcgcn_jax.commands.options import add, add_datasets, add_flag
from lcgcn_jax.evaluation.calibrate_bundle import calibrate_bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model", "--batch-size")
    add_datasets(parser)
    add(parser, "--split", default="validation", help="split to fit on")
    text = "folder for a calibrated copy (default: change the model itself)"
    add(parser, "--out", required=False, help=text)
    add_flag(parser, "--overwrite", "replace the calibration of the model")


def run(args: argparse.Namespace) -> int:
    use_compilation_cache()
    report = calibrate_bundle(
        args.model,
        args.data,
        args.split,
        offsets=args.offsets,
        batch_size=args.batch_size,
        out=args.out,
        overwrite=args.overwrite,
    )
    print(report)
    return 0

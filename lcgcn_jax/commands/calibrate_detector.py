"""`lcgcn calibrate-detector`: from the detector's boxes to the landmarks' boxes, fitted and measured."""

import argparse
from pathlib import Path

import numpy as np

from lcgcn_jax.commands.main import DETECTOR_MODEL_OPTION
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.detector_boxes import detect_split
from lcgcn_jax.inference.face_detector import BOX_MAP, FaceDetector, crop_errors, fit_box_map


def add_parser(subparsers) -> None:
    """Adds `calibrate-detector` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "calibrate-detector",
        help="fit the map from the face detector's boxes to the landmarks' boxes",
        description="Runs the face detector on the faces of a prepared dataset, fits the map from its "
        "boxes (and five points) to the bounding box of the landmarks on one split, and measures on "
        "another how far the face crops are off. Prints the coefficients of detection.BOX_MAP.",
        epilog="example: lcgcn calibrate-detector --data data/w300",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare wrote")
    parser.add_argument("--split", default="train", help="faces to fit on (%(default)s)")
    parser.add_argument("--test-split", default="validation", help="to measure on (%(default)s)")
    parser.add_argument("--detector-model", **DETECTOR_MODEL_OPTION)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fits, measures, and prints both.

    Raises:
      InputError: the data or the detector cannot be used, or no face was found.
    """
    dataset = open_dataset(args.data)
    detector = FaceDetector(args.detector_model)
    (fitted, boxes, found), (detections, true, seen) = (
        detect_split(detector, dataset, split) for split in (args.split, args.test_split)
    )
    for split, mask in ((args.split, found), (args.test_split, seen)):
        if not mask.any():
            raise InputError(f"{args.data}: the detector finds no face of the split {split!r}")
        print(f"{split}: {mask.sum():,} of {len(mask):,} faces found ({100 * mask.mean():.2f} %)")
    maps = {
        "as detected": None,
        "constants": fit_box_map(fitted, boxes[found], points=False),
        "with points": fit_box_map(fitted, boxes[found]),
        "BOX_MAP": BOX_MAP,
    }
    print(f"{args.test_split}, in % of the box's longer side:")
    print("              offset x      y   mean distance   scale   mean absolute")
    for name, box_map in maps.items():
        guessed = detections.boxes if box_map is None else box_map(detections)
        offset, scale = crop_errors(guessed, true[seen])
        x, y = 100 * offset.mean(axis=0)
        distance = 100 * np.linalg.norm(offset, axis=1).mean()
        print(
            f"{name:12}  {x:8.2f} {y:6.2f} {distance:15.2f} {100 * scale.mean():7.2f} "
            f"{100 * np.abs(scale).mean():15.2f}"
        )
    print("coefficients, with points:")
    coefficients = maps["with points"].coefficients
    print(np.array2string(coefficients, precision=4, suppress_small=True, separator=", "))
    return 0

"""Fit the map from detector boxes to landmark boxes.

Runs the face detector on a prepared dataset, fits the map from its boxes and
five points to the bounding box of the landmarks on one split, and measures the
errors of the face crops on another. Prints the coefficients of
inference.box_map.BOX_MAP.

Example: lcgcn research calibrate-detector --data data/w300
"""

import argparse

from lcgcn_jax.commands.options import add
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.evaluation.fit_box_map import compare_box_maps
from lcgcn_jax.inference.face_detector import FaceDetector


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--data", "--detector-model")
    add(parser, "--split", default="train", help="split to fit on")
    add(parser, "--test-split", default="validation", help="split to measure on")


def run(args: argparse.Namespace) -> int:
    dataset, detector = open_dataset(args.data), FaceDetector(args.detector_model)
    print(compare_box_maps(detector, dataset, args.split, args.test_split))
    return 0

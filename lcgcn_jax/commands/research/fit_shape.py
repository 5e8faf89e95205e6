"""Fit the linear shape refinement on top of a trained model.

For each landmark, fits a correction that is linear in the positions of all
other landmarks, with a 2x2 matrix per pair, to the errors of the model on its
training faces, augmented as in its training. Writes the best model of the run
with this refinement. Give all datasets of the training: a refinement that is
fitted on frontal faces only raises the error on profiles.

Example:
  lcgcn research fit-shape --workdir runs/w300 --data data/w300 --out w300
"""

import argparse

from lcgcn_jax.arguments import location, number
from lcgcn_jax.cache import use_compilation_cache
from lcgcn_jax.commands.options import add, add_count, add_datasets, add_flag
from lcgcn_jax.training.fit_shape_refiner import refine_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--workdir", type=location, required=True, help="folder of the training run")
    add_datasets(parser)
    text = "weight of each view of a face, once for each --data in their order (default: 1)"
    add(parser, "--weight", type=number(float, 0, above=True), action="append", help=text)
    add(parser, "--split", default="train", help="split to fit on")
    add(parser, "--out", help="folder of the new bundle")
    add_count(parser, "--views", 3, "views of each face")
    text = "also fit terms that depend on the yaw of the face, for data with profiles"
    add_flag(parser, "--pose-terms", text)
    text = "weight of the ridge penalty; larger values give smaller corrections"
    add(parser, "--ridge", type=number(float, 0), default=0.1, help=text)


def run(args: argparse.Namespace) -> int:
    use_compilation_cache()
    refine_run(
        args.workdir,
        args.data,
        args.split,
        args.out,
        offsets=args.offsets,
        weights=args.weight or (),
        views=args.views,
        ridge=args.ridge,
        pose_terms=args.pose_terms,
    )
    print(f"{args.out}: the best model of {args.workdir} with a linear shape refinement")
    return 0

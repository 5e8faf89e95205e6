"""`lcgcn fit-shape`: a last turn behind a trained graph, fitted in closed form."""

import argparse
import json
from pathlib import Path
from typing import Any

from lcgcn_jax.commands.main import use_compilation_cache
from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.data.dataset import open_dataset, require_scheme
from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.models.bundles import CARD, find_bundle, load_bundle, save_bundle
from lcgcn_jax.training.config import RUN_CONFIG
from lcgcn_jax.training.fit_shape_refiner import fit_shape_refiner


def add_parser(subparsers) -> None:
    """Adds `fit-shape` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "fit-shape",
        help="put a last turn behind a trained graph, fitted in closed form",
        description="Fits how each landmark is to be moved by how all the others lie (a matrix for every "
        "pair of landmarks) to what a trained model gets wrong on its training faces, varied as in its "
        "training, and writes the best model of the run with that turn behind it.",
        epilog="example: lcgcn fit-shape --workdir runs/w300_lcgcn_best --data data/w300 --out w300_best",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare wrote")
    parser.add_argument("--split", default="train", help="faces to fit on (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="bundle to make")
    parser.add_argument("--views", type=int, default=3, help="views of each face (%(default)s)")
    parser.add_argument(
        "--ridge", type=float, default=0.1, help="the more, the smaller the moves (%(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fits and writes.

    Raises:
      InputError: run or data cannot be used, or something is there already.
    """
    if args.views < 1 or args.ridge < 0:
        raise InputError("--views: at least 1, and --ridge: at least 0")
    if args.out.exists():
        raise InputError(f"{args.out}: already exists; choose another --out")
    config_file = args.workdir / RUN_CONFIG
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in config["data"]["augment"].items()
        }
        augment = AugmentConfig(**fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config_file}: not a run's configuration: {one_line(error)}") from error
    bundle = load_bundle(args.workdir)
    dataset = open_dataset(args.data)
    require_scheme(dataset, bundle.scheme)
    use_compilation_cache()
    fitted = fit_shape_refiner(
        bundle, dataset, args.split, augment=augment, views=args.views, ridge=args.ridge
    )
    card = (find_bundle(args.workdir) / CARD).read_text(encoding="utf-8")
    card += f"\nWith a shape turn, fitted to {args.views} views of the faces of {args.split}.\n"
    try:
        save_bundle(args.out, fitted, card)
    except OSError as error:
        raise InputError(f"{args.out}: cannot be written: {error.strerror}") from error
    print(f"{args.out}: the best model of {args.workdir} with a shape turn; lcgcn eval measures it")
    return 0

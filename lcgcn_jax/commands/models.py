"""`lcgcn models`: the models that come with the package."""

import argparse

from lcgcn_jax.accelerators import warn_if_gpu_is_unused
from lcgcn_jax.models.bundles import CARD, SHIPPED, WEIGHTS, load_bundle, shipped_bundles


def add_parser(subparsers) -> None:
    """Adds `models` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "models",
        help="the models that come with the package",
        description="Lists the models that come with the package; their names can stand wherever a "
        "command takes --model.",
        epilog="example: lcgcn predict --model w300-lcgcn-small photo.jpg",
    )
    parser.add_argument("--card", metavar="NAME", choices=shipped_bundles(), help="show its card")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints a line a model, or a model's card."""
    if args.card is not None:
        print((SHIPPED / args.card / CARD).read_text(encoding="utf-8"), end="")
        return 0
    warn_if_gpu_is_unused()
    for name in shipped_bundles():
        bundle = load_bundle(name)
        megabytes = (SHIPPED / name / WEIGHTS).stat().st_size / 1e6
        print(
            f"{name}: {bundle.scheme.num_landmarks} landmarks ({bundle.scheme.name}), crops of "
            f"{bundle.image_size} px, {megabytes:.1f} MB"
        )
    return 0

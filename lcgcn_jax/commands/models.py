"""List the models that come with the package.

Use their names wherever a command takes --model.

Example: lcgcn predict --model w300-lcgcn-small photo.jpg
"""

import argparse

from lcgcn_jax.accelerators import warn_if_gpu_is_unused
from lcgcn_jax.commands.options import add
from lcgcn_jax.models.bundles import CARD, SHIPPED, WEIGHTS, load_bundle, shipped_bundles


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--card", metavar="NAME", choices=shipped_bundles(), help="show a model card")


def run(args: argparse.Namespace) -> int:
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

"""List the models that come with the package.

Use their names wherever a command takes --model. The model card states the conditions of the measurements.

Example: lcgcn predict --model w300-lcgcn-small photo.jpg
"""

import argparse

from lcgcn_jax.accelerators import warn_if_gpu_is_unused
from lcgcn_jax.commands.options import add
from lcgcn_jax.interop.model_table import shipped_model_table
from lcgcn_jax.models.bundles import CARD, SHIPPED, shipped_bundles


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--card", metavar="NAME", choices=shipped_bundles(), help="show a model card")


def run(args: argparse.Namespace) -> int:
    if args.card is not None:
        print((SHIPPED / args.card / CARD).read_text(encoding="utf-8"), end="")
        return 0
    warn_if_gpu_is_unused()
    print(shipped_model_table())
    return 0

"""Options of `lcgcn predict` for its result files."""

import argparse
from pathlib import Path

from lcgcn_jax.commands.options import add, add_flag
from lcgcn_jax.inference.large_jobs import Shard
from lcgcn_jax.inference.result_files import FORMATS, ResultFiles


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for result files to a parser."""
    add(parser, "--out", default=Path("predictions"), help="folder of the results")
    add(parser, "--format", choices=FORMATS, default="json", help="format of the landmarks")
    add_flag(parser, "--geometry", "JSON: add head pose, eye openness and mouth openness")
    add(parser, "--count-from")
    add(parser, "--overwrite")


def result_files(args: argparse.Namespace, shard: Shard) -> ResultFiles:
    """Result files from the arguments."""
    return ResultFiles(
        args.out,
        args.format,
        args.overwrite,
        not args.no_overlay,
        args.skip_existing,
        shard,
        geometry=args.geometry,
        count_from=args.count_from,
    )

"""Run the whole pipeline on synthetic faces: data, training, evaluation, plots.

Takes 3 to 10 minutes on two CPU cores.

Example: lcgcn demo --out runs/demo
"""

import argparse
from pathlib import Path

from lcgcn_jax.cache import use_compilation_cache
from lcgcn_jax.commands.options import add, add_count
from lcgcn_jax.training.config import load_config
from lcgcn_jax.training.demo import run_demo
from lcgcn_jax.training.metric_writer import print_validation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--out", default=Path("runs/demo"), help="output folder")
    parser.add_argument("--config", default="demo", help="config to train (default: %(default)s)")
    add_count(parser, "--faces", 1800, "number of training faces")
    add_count(parser, "--test-faces", 200, "number of test faces")


def run(args: argparse.Namespace) -> int:
    use_compilation_cache()
    run_demo(
        load_config(args.config),
        args.out,
        num_train=args.faces,
        num_test=args.test_faces,
        on_validation=print_validation,
        report=print,
    )
    return 0

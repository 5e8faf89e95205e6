"""Estimate the cost of a training step on TPUs or GPUs (none required).

Compiles the training step for a TPU slice or for GPUs, and prints what one chip
needs: memory, operations, bytes moved, collectives, and the kernels of a GPU.
Takes minutes; requires the extra tpu or cuda.

Example: lcgcn research compile --config w300_lcgcn_best --topology v5e:4x4
"""

import argparse
import dataclasses

import jax

from lcgcn_jax.atomic_io import require_writable, write_json
from lcgcn_jax.commands.options import add, add_flag
from lcgcn_jax.profiling.aot_compile import CHIPS, compile_step, largest_batch, least_seconds
from lcgcn_jax.profiling.step_report import format_step
from lcgcn_jax.training.config_checks import load_checked_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--config")
    text = f"kind of chip ({', '.join(CHIPS)}) and number of chips: v5e:4x4, v4:2x2x2, h200:8"
    add(parser, "--topology", required=True, help=text)
    add(parser, "--batch-size", default=None, help="faces per step, over all chips")
    text = "estimate the largest batch that fits, by also compiling twice the batch"
    add_flag(parser, "--largest-batch", text)
    add(parser, "--json", "--overwrite")


def run(args: argparse.Namespace) -> int:
    if args.json is not None:
        require_writable(args.json, overwrite=args.overwrite)
    config, _ = load_checked_config(args.config, args.overrides)
    # The step is compiled for another machine, so the chips of this one stay free.
    jax.config.update("jax_platforms", "cpu")
    batch_size = config.train.batch_size if args.batch_size is None else args.batch_size
    cost = compile_step(config, args.topology, batch_size)
    print(format_step(cost))
    figures = dataclasses.asdict(cost) | {"least_seconds": least_seconds(cost)}
    if args.largest_batch:
        double = compile_step(config, args.topology, 2 * batch_size)
        figures["largest_batch"] = count = largest_batch((cost, double))
        print(f"largest batch   {count:,}, from the memory at {batch_size} and {2 * batch_size}")
    if args.json is not None:
        write_json(args.json, figures)
    return 0

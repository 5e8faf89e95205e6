"""`lcgcn compile`: what a training step would need of a TPU slice, without one."""

import argparse
import dataclasses
import json
from pathlib import Path

import jax

from lcgcn_jax.atomic_io import require_writable, write_whole, writing
from lcgcn_jax.profiling.tpu_compile import (
    CHIPS,
    GIB,
    StepCost,
    chip_of,
    compile_step,
    largest_batch,
    least_seconds,
)
from lcgcn_jax.training.config import apply_overrides, load_config, parse_overrides
from lcgcn_jax.training.config_checks import check_config


def add_parser(subparsers) -> None:
    """Adds `compile` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "compile",
        help="what a training step would need of a TPU slice, without one",
        description="Compiles the whole training step for a TPU slice that need not be there, and prints "
        "what one chip of it would need: memory, operations, bytes moved, exchanges with other chips. "
        "Takes libtpu (pip install 'lcgcn-jax[tpu]') and some minutes. Any field of the config can be set "
        "with --config.NAME=VALUE.",
        epilog="example: lcgcn compile --config configs/w300_lcgcn_best.py --topology v5e:4x4 "
        "--largest-batch",
    )
    parser.add_argument("--config", required=True, help="config file, or file:argument")
    parser.add_argument(
        "--topology",
        required=True,
        help=f"kind ({', '.join(CHIPS)}), a colon, and chips in each direction: v5e:4x4, v4:2x2x2",
    )
    parser.add_argument(
        "--batch-size", type=int, help="faces in a step, over all chips; the config's by default"
    )
    parser.add_argument(
        "--largest-batch",
        action="store_true",
        help="compute the largest batch that fits, from this one and one of twice the size (another compile)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--overwrite", action="store_true", help="replace that file")


def run_with_overrides(args: argparse.Namespace, rest: list[str]) -> int:
    """Compiles, and prints a table.

    Raises:
      InputError: configuration, topology, batch or file cannot be used, or libtpu is not installed.
    """
    if args.json is not None:
        require_writable(args.json, overwrite=args.overwrite)
    config = load_config(args.config)
    apply_overrides(config, parse_overrides(rest))
    check_config(config)
    # Compiled for another machine: the chips of this one, if there are any, stay free.
    jax.config.update("jax_platforms", "cpu")
    batch_size = config.train.batch_size if args.batch_size is None else args.batch_size
    cost = compile_step(config, args.topology, batch_size)
    print(describe(cost))
    figures = dataclasses.asdict(cost) | {"least_seconds": least_seconds(cost)}
    if args.largest_batch:
        twice = compile_step(config, args.topology, 2 * batch_size)
        figures["largest_batch"] = largest_batch((cost, twice))
        print(
            f"largest batch  {figures['largest_batch']:,}, from the memory at {batch_size} and at "
            f"{2 * batch_size}; --batch-size {figures['largest_batch']} compiles it"
        )
    if args.json is not None:
        text = json.dumps(figures, indent=1) + "\n"
        with writing(args.json):
            write_whole(args.json, lambda tmp: tmp.write_text(text, encoding="utf-8"))
    return 0


def describe(cost: StepCost) -> str:
    """The figures as lines of text."""
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in cost.parts.items())
    seconds = least_seconds(cost)
    lines = [
        f"{cost.topology}, {cost.num_chips} chips, batch {cost.batch_size}; one chip, computed by the "
        "compiler, not measured:",
        f"memory         {cost.memory / GIB:.2f} of {chip_of(cost.topology).memory / GIB:.2f} GiB ({parts})",
        f"operations     {cost.flops / 1e9:,.1f} GFLOP",
        f"bytes moved    {cost.bytes_accessed / GIB:.2f} GiB",
    ]
    for kind, found in cost.collectives.items():
        lines.append(f"{kind:<15}{found.count} of {found.size / 2**20:.2f} MiB together")
    if not cost.collectives:
        lines.append("exchanges      none")
    lines.append(
        f"at the most    {1 / seconds:.1f} steps/s, {cost.batch_size / seconds:.0f} faces/s, at the chip's "
        "documented rates"
    )
    return "\n".join(lines)

"""Compare graph heads on one heatmap model (the paper's Table 3).

Trains graph heads on a frozen heatmap model, each with several seeds, and
writes table.md and table.json: validation NME on clean and corrupted crops,
its standard deviation over the seeds, and paired bootstrap intervals of the
differences. The same command resumes where it stopped; Ctrl-C, SIGTERM and
SIGHUP save first (exit codes 130, 143 and 129).

Example: lcgcn research ablation --model runs/w300 --out runs/table3
"""

import argparse

from lcgcn_jax.arguments import names
from lcgcn_jax.cache import use_compilation_cache
from lcgcn_jax.commands.options import add, add_count
from lcgcn_jax.errors import choose
from lcgcn_jax.training.ablation import DEFAULT_ROWS, ROWS, run_ablation, write_tables
from lcgcn_jax.training.config_checks import load_checked_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model")
    add(parser, "--out", help="folder of the runs and tables")
    add(parser, "--config", default="w300_lcgcn:small,frozen")
    rows = (
        f"variants of the graph, separated by commas: {', '.join(ROWS)} (default: all but visible*, which "
        "need visibility labels)"
    )
    add(parser, "--rows", metavar="NAME,...", type=names, help=rows)
    add_count(parser, "--seeds", 3, "runs per variant")


def run(args: argparse.Namespace) -> int:
    rows = args.rows or DEFAULT_ROWS
    for row in rows:
        choose("--rows", row, ROWS)
    config, overrides = load_checked_config(args.config, args.overrides)
    config.init_from = args.model
    use_compilation_cache()
    results = run_ablation(config, args.out, rows=rows, seeds=args.seeds, overridden=overrides)
    print(write_tables(results, args.out))
    return 0

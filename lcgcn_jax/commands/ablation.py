"""`lcgcn ablation`: the paper's Table 3 and more, on given data."""

import argparse
import json
from pathlib import Path

from lcgcn_jax.atomic_io import write_whole, writing
from lcgcn_jax.commands.main import use_compilation_cache
from lcgcn_jax.errors import InputError
from lcgcn_jax.models.registry import require_known
from lcgcn_jax.training.ablation import ROWS, markdown, run_ablation, summarize
from lcgcn_jax.training.config import apply_overrides, load_config, parse_overrides
from lcgcn_jax.training.config_checks import check_config


def add_parser(subparsers) -> None:
    """Adds `ablation` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "ablation",
        help="graphs against each other on one heatmap model (the paper's Table 3)",
        description="Trains graphs on one frozen heatmap model, several seeds each, and writes "
        "table.md and table.json: validation NME on plain and corrupted crops, spread over the seeds, "
        "and paired bootstrap intervals of the differences. Any field of the config can be set with "
        "--config.NAME=VALUE. The same command goes on where it stopped; Ctrl-C, SIGTERM and SIGHUP "
        "save first (exit codes 130, 143 and 129).",
        epilog="example: lcgcn ablation --model runs/w300_hrnet18_small --out runs/table3 "
        "--config.data.dir=data/w300",
    )
    parser.add_argument(
        "--model", required=True, help="bundle or training workdir with the heatmap model"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and tables")
    parser.add_argument(
        "--config",
        default="w300_lcgcn:small,frozen",
        help="how the graphs train: config file, or file:argument (%(default)s)",
    )
    parser.add_argument(
        "--rows", default=",".join(ROWS), help="which graphs, separated by commas (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (%(default)s)")


def run_with_overrides(args: argparse.Namespace, rest: list[str]) -> int:
    """Runs what is missing of the table, and writes it; returns 0.

    Raises:
      InputError: the config, the model, the data or the folder cannot be used.
      Interrupted: SIGINT, SIGTERM or SIGHUP ended it, after saving.
    """
    rows = args.rows.split(",")
    require_known("--rows", rows, ROWS)
    if args.seeds < 1:
        raise InputError(f"--seeds {args.seeds}: at least 1")
    config = load_config(args.config)
    overrides = parse_overrides(rest)
    apply_overrides(config, overrides)
    check_config(config)
    config.init_from = args.model
    use_compilation_cache()
    results = run_ablation(config, args.out, rows=rows, seeds=args.seeds, overridden=overrides)
    summary = summarize(results)
    table = markdown(summary)
    texts = {"table.json": json.dumps(summary, indent=1) + "\n", "table.md": table}
    for name, text in texts.items():
        with writing(args.out / name):
            write_whole(
                args.out / name, lambda tmp, text=text: tmp.write_text(text, encoding="utf-8")
            )
    print(table)
    return 0

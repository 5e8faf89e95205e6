"""`lcgcn train`: a config file and a folder in, a trained model out."""

import argparse
from pathlib import Path

from tqdm import tqdm

from lcgcn_jax.commands.main import use_compilation_cache
from lcgcn_jax.distributed import initialize_distributed, is_primary_process
from lcgcn_jax.errors import InputError
from lcgcn_jax.training.api import CURVES, write_curves
from lcgcn_jax.training.config import apply_overrides, load_config, parse_overrides
from lcgcn_jax.training.config_checks import check_config
from lcgcn_jax.training.config_types import describe_steps
from lcgcn_jax.training.sharding import describe_devices
from lcgcn_jax.training.trainer import Trainer


def add_parser(subparsers) -> None:
    """Adds `train` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "train",
        help="train a model from a config file, or go on with a run",
        description="Trains a model. Any field of the config can be set with "
        "--config.NAME=VALUE. The same command on a folder with checkpoints goes on where it "
        "stopped; Ctrl-C, SIGTERM and SIGHUP save first (exit codes 130, 143 and 129).",
        epilog="example: lcgcn train --config configs/w300_lcgcn.py:small --workdir runs/small "
        "--config.train.steps=1000",
    )
    parser.add_argument("--config", required=True, help="config file, or file:argument")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with a run although the config or the data are not those that it began with; "
        "the old config stays in the folder under a number",
    )
    group = parser.add_argument_group(
        "many processes",
        "The same command in each of them, on a folder that all can reach; the batch is that of all "
        "together. A run may go on with another number of them.",
    )
    group.add_argument(
        "--distributed",
        action="store_true",
        help="one of the processes of a TPU slice, of a Slurm step or of Open MPI",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 is")
    group.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0")


def run_with_overrides(args: argparse.Namespace, rest: list[str]) -> int:
    """Trains; returns 0.

    Many processes print one line together: after a signal, those that are not the primary one return
    the exit code and raise nothing.

    Raises:
      InputError: the config, the data or the folder cannot be used, or the folder not any more.
      Interrupted: SIGINT, SIGTERM or SIGHUP ended it, after saving.
    """
    config = load_config(args.config)
    overrides = parse_overrides(rest)
    apply_overrides(config, overrides)
    check_config(config)
    use_compilation_cache()
    _join(args)
    training = Trainer(
        config, args.workdir, accept_changes=args.accept_changes, overridden=overrides
    ).prepare()
    if not is_primary_process():
        training.run()
        return 0 if training.stopped_by is None else 128 + training.stopped_by
    print(f"{args.workdir}: on {describe_devices()}", flush=True)
    print(f"{args.workdir}: {describe_steps(training.config, training.num_faces)}", flush=True)
    if training.step:
        print(f"{args.workdir}: resuming from step {training.step:,}", flush=True)
    elif training.start_message:
        print(f"{args.workdir}: {training.start_message}", flush=True)
    finished = training.run(on_validation=print_figures)
    write_curves(args.workdir)
    if not finished:
        raise training.interruption()
    print(f"{args.workdir}: done; best model in best/, curves in {CURVES}")
    return 0


def _join(args: argparse.Namespace) -> None:
    place = (args.coordinator, args.num_processes, args.process_id)
    if args.distributed and place != (None, None, None):
        raise InputError(
            "--distributed: finds the processes by itself; leave --coordinator, "
            "--num-processes and --process-id out, or --distributed"
        )
    if args.coordinator is None and place != (None, None, None):
        raise InputError("--num-processes and --process-id: need --coordinator HOST:PORT")
    if args.distributed or args.coordinator is not None:
        initialize_distributed(*place)


def print_figures(step: int, figures: dict[str, float]) -> None:
    """A line for a validation, above the progress bar."""
    shown = ", ".join(f"{k.removeprefix('validation/')} {v:.2f} %" for k, v in figures.items())
    tqdm.write(f"step {step:,}: validation {shown}")

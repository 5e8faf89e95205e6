"""Train a model from a config file, or resume a run.

The same command on a folder with checkpoints resumes the run. Ctrl-C, SIGTERM
and SIGHUP save a checkpoint first (exit codes 130, 143 and 129).

Example:
  lcgcn train --config demo --workdir runs/demo --config.train.steps=1000
"""

import argparse

from lcgcn_jax.arguments import location
from lcgcn_jax.cache import use_compilation_cache
from lcgcn_jax.commands.options import add, add_flag
from lcgcn_jax.distributed import initialize_distributed, is_primary_process
from lcgcn_jax.training.api import CURVES, write_curves
from lcgcn_jax.training.config_checks import load_checked_config
from lcgcn_jax.training.metric_writer import LOGGERS, TENSORBOARD, print_validation
from lcgcn_jax.training.trainer import Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--config")
    text = "folder of the run, or gs://BUCKET/PATH"
    add(parser, "--workdir", type=location, required=True, help=text)
    text = "resume even if the config or the data differ from those of the run; the former config "
    text += "is kept in the folder under a number"
    add_flag(parser, "--accept-changes", text)
    text = "where metrics are logged, besides metrics.jsonl; can be repeated (default: tensorboard)"
    add(parser, "--log", choices=LOGGERS, action="append", help=text)
    group = parser.add_argument_group(
        "multiple processes",
        "Run the same command in each process, with a workdir on a shared disk or in a\nbucket. The "
        "processes share the batch. A run can resume with a different number of\nprocesses.",
    )
    text = "find the processes automatically (TPU slice, Slurm, Open MPI)"
    add_flag(group, "--distributed", text)
    add(group, "--coordinator", metavar="HOST:PORT", help="address of process 0")
    add(group, "--num-processes", type=int, metavar="N", help="number of processes")
    add(group, "--process-id", type=int, metavar="I", help="index of this process, from 0")


def run(args: argparse.Namespace) -> int:
    """Train; after a signal, only the primary process raises `Interrupted` and prints its message."""
    config, overrides = load_checked_config(args.config, args.overrides)
    use_compilation_cache()
    address = (args.coordinator, args.num_processes, args.process_id)
    if args.distributed or address != (None, None, None):
        initialize_distributed(*address, automatic=args.distributed)
    trainer = Trainer(
        config,
        args.workdir,
        accept_changes=args.accept_changes,
        overridden=overrides,
        loggers=args.log or (TENSORBOARD,),
    ).prepare()
    if not is_primary_process():
        trainer.run()
        return 0 if trainer.stopped_by is None else 128 + trainer.stopped_by
    for line in trainer.describe_start():
        print(f"{args.workdir}: {line}", flush=True)
    finished = trainer.run(on_validation=print_validation)
    write_curves(args.workdir)
    if not finished:
        raise trainer.interruption()
    print(f"{args.workdir}: done; best model in best/, curves in {CURVES}")
    print("'lcgcn research calibrate' adds predicted errors to the model")
    return 0

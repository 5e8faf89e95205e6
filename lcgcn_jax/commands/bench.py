"""Measure speed: model, training step, input pipeline.

Measures a config with random weights, after warm-up: medians and quartiles.

  compile      training step: trace, compile, and load from the compilation cache
  forward      prediction for crops on the device, folded BatchNorm, float32
  decode       part of forward: heatmaps to landmarks, confidence, and their std
  graph        part of forward: the graph head
  predict      bytes to NumPy arrays: latency of 1 face, throughput of 64
  train_step   training steps on one batch on the devices
  end_to_end   training steps on batches from the input pipeline
  stages       stages of the input pipeline, in one thread
  pipeline     input pipeline only, by number of worker processes

The bound (roofline) is the minimum time for the arithmetic and memory traffic
of a program on one device, as counted by XLA, at the peak rates of a large
matrix product and copy. Programs that fit into CPU caches can be faster.

Example: lcgcn bench --config configs/w300_lcgcn.py:small --only forward,graph
"""

import argparse
import functools

from lcgcn_jax.arguments import integers, names
from lcgcn_jax.atomic_io import require_writable, write_json
from lcgcn_jax.commands.options import add, add_count
from lcgcn_jax.profiling.benchmark import format_benchmark, run_benchmark
from lcgcn_jax.profiling.measurements import BENCHMARKS
from lcgcn_jax.training.config_checks import load_checked_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--config", default="w300_lcgcn:small")
    add(parser, "--data", required=False, help="dataset folder (default: synthetic faces)")
    add(parser, "--batch-size", default=None)
    text = "benchmarks to run, separated by commas (default: all)"
    add(parser, "--only", metavar="NAME,...", type=names, help=text)
    text = "numbers of worker processes of the input pipeline; 0: threads only"
    add(parser, "--workers", metavar="N,...", type=integers, default="0,1,2", help=text)
    add_count(parser, "--repetitions", 10, "measurements of each benchmark")
    add(parser, "--json", "--overwrite")


def run(args: argparse.Namespace) -> int:
    if args.json is not None:
        require_writable(args.json, overwrite=args.overwrite)
    config, _ = load_checked_config(args.config, args.overrides)
    if args.batch_size is not None:
        config.train.batch_size = args.batch_size
    result = run_benchmark(
        config,
        args.data,
        parts=args.only or list(BENCHMARKS),
        repetitions=args.repetitions,
        workers=args.workers,
        report=functools.partial(print, flush=True),
    )
    result = {"config": args.config, "data": str(args.data or "synthetic"), **result}
    print(format_benchmark(result))
    if args.json is not None:
        write_json(args.json, result)
    return 0

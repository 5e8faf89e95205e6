"""`lcgcn bench`: how fast a configuration is on this machine, and how fast it could be."""

import argparse
import contextlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_collections

from lcgcn_jax.atomic_io import require_writable, write_whole, writing
from lcgcn_jax.errors import InputError
from lcgcn_jax.models.registry import require_known
from lcgcn_jax.profiling.measurements import BENCHMARKS, BenchmarkResult, Measurements
from lcgcn_jax.profiling.timing import format_seconds
from lcgcn_jax.synthetic.dataset import LAYOUTS, prepare_synthetic
from lcgcn_jax.training.config import apply_overrides, load_config, parse_overrides
from lcgcn_jax.training.config_checks import check_config
from lcgcn_jax.training.sharding import describe_devices
from lcgcn_jax.training.trainer import Trainer

_LIBRARIES = ("jax", "jaxlib", "flax", "grain", "numpy", "opencv-python-headless")
_SYNTHETIC_FACES = 256


def add_parser(subparsers) -> None:
    """Adds `bench` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "bench",
        help="measure speed: the model and its parts, a training step, the input pipeline",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="""\
Measures a configuration with fresh weights, after warm-up: medians, and the quartiles as spread.

  compile      the training step: traced, compiled, and compiled again from a cache
  forward      prediction on crops that lie on the device, BatchNorm folded, float32
  decode       of it, from heatmaps to landmarks, confidences and spreads
  graph        of it, the graph head
  predict      from bytes to NumPy arrays: latency at 1 face, throughput at 64
  train_step   training steps on one batch that lies on the devices
  end_to_end   training steps on batches from the input pipeline
  stages       the input pipeline's stages, one after the other in one thread
  pipeline     the whole input pipeline alone, by number of worker processes

A floor is the least time that a program's arithmetic and memory traffic on one device (XLA's count)
take at its peaks, which are measured in the same run: a large matrix product, a large array copied.
What stays in a CPU's caches may be faster than the floor.
Any field of the config can be set with --config.NAME=VALUE.""",
        epilog="example: lcgcn bench --config configs/w300_lcgcn.py:small --only forward,graph",
    )
    parser.add_argument(
        "--config", default="w300_lcgcn:small", help="config file, or file:argument (%(default)s)"
    )
    parser.add_argument(
        "--data", type=Path, help="folder that prepare wrote (synthetic faces, drawn for this)"
    )
    parser.add_argument("--batch-size", type=int, help="faces in a batch (the config's)")
    parser.add_argument(
        "--only",
        metavar="PART,...",
        default=",".join(BENCHMARKS),
        help="what to measure (everything)",
    )
    parser.add_argument(
        "--workers",
        metavar="N,...",
        default="0,1,2",
        help="worker processes to try the input pipeline with; 0: threads alone (%(default)s)",
    )
    parser.add_argument(
        "--repetitions", type=int, default=10, help="measurements of each (%(default)s)"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--overwrite", action="store_true", help="replace this file")


def run_with_overrides(args: argparse.Namespace, rest: list[str]) -> int:
    """Measures and prints a table.

    Raises:
      InputError: the config, the data, or what to measure cannot be used.
    """
    if args.json is not None:
        require_writable(args.json, overwrite=args.overwrite)
    parts = args.only.split(",")
    require_known("--only", parts, BENCHMARKS)
    workers = _parse_workers(args.workers)
    if args.repetitions < 1:
        raise InputError(f"--repetitions {args.repetitions}: at least 1")
    config = load_config(args.config)
    apply_overrides(config, parse_overrides(rest))
    check_config(config)
    # Fresh weights are as fast as any, and a frozen model is to run and not to be read from a cache.
    config.init_from, config.train.cache = "", False
    if args.batch_size is not None:
        config.train.batch_size = args.batch_size
    with tempfile.TemporaryDirectory() as folder:
        config.data.dir = str(_data(config, args.data, Path(folder) / "data"))
        training = Trainer(config, Path(folder) / "run").prepare()
        with contextlib.closing(training.batches):
            measurements = Measurements(training, repetitions=args.repetitions, workers=workers)
            rows = []
            for part in BENCHMARKS:  # in its own order, whatever was asked for first
                if part in parts:
                    print(f"measuring: {part}", flush=True)
                    rows += measurements.run(part)
            result = describe(args, config, measurements, rows)
    print(format_table(result))
    if args.json is not None:
        text = json.dumps(result, indent=1) + "\n"
        with writing(args.json):
            write_whole(args.json, lambda tmp: tmp.write_text(text, encoding="utf-8"))
    return 0


def _parse_workers(text: str) -> tuple[int, ...]:
    try:
        workers = tuple(int(part) for part in text.split(","))
    except ValueError:
        workers = (-1,)
    if min(workers) < 0:
        raise InputError(f"--workers {text}: give numbers from 0, separated by commas")
    return workers


def _data(config: ml_collections.ConfigDict, given: Path | None, folder: Path) -> Path:
    """The data to measure with: what was given, or synthetic faces drawn into a folder."""
    if given is not None:
        return given
    if config.scheme not in LAYOUTS:
        raise InputError(
            f"{config.scheme}: no synthetic faces with these points; give --data, a folder that "
            "`lcgcn prepare` wrote"
        )
    faces = max(_SYNTHETIC_FACES, 2 * config.train.batch_size)
    print(f"drawing {faces} synthetic faces", flush=True)
    prepare_synthetic(config.scheme, folder, num_train=faces, num_test=1, seed=0)
    return folder


def describe(
    args: argparse.Namespace,
    config: ml_collections.ConfigDict,
    measurements: Measurements,
    rows: Iterable[BenchmarkResult],
) -> dict[str, Any]:
    """What `--json` writes: the conditions, and a row by name; times in seconds.

    `shares` holds what is worth comparing, where both sides were measured: `graph_and_decode`, their time
    over the forward pass's, and `end_to_end`, the rate of training over that of its step on constant data.
    """
    measured = {row.name: row.to_dict() for row in rows}
    return {
        "config": args.config,
        "image_size": config.data.image_size,
        "batch_size": config.train.batch_size,
        "dtype": config.train.dtype,
        "data": "synthetic" if args.data is None else str(args.data),
        "devices": describe_devices(),
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "peaks": {
            name: {"flops": peaks.flops, "bandwidth": peaks.bandwidth}
            for name, peaks in measurements.peaks.items()
        },
        "rows": measured,
        "shares": _shares({name: row["median"] for name, row in measured.items()}),
    }


def _shares(medians: dict[str, float]) -> dict[str, float]:
    shares = {}
    if "forward" in medians and "decode" in medians:
        parts = medians["decode"] + medians.get("graph head", 0.0)
        shares["graph_and_decode"] = parts / medians["forward"]
    if "train step" in medians and "train, end to end" in medians:
        shares["end_to_end"] = medians["train step"] / medians["train, end to end"]
    return shares


def format_table(result: dict[str, Any]) -> str:
    """The figures of `describe` as a table for the screen, 100 columns wide at most."""
    lines = [
        "",
        result["config"],
        f"{result['image_size']} px, batch {result['batch_size']}, "
        f"train.dtype {result['dtype']}; jax {result['versions']['jax']} on {result['devices']}, "
        f"{result['cores']} cores",
    ]
    for name, peaks in result["peaks"].items():
        lines.append(
            f"peaks of one device, {name}: {peaks['flops'] / 1e9:,.0f} GFLOP/s, "
            f"{peaks['bandwidth'] / 1e9:,.1f} GB/s"
        )
    lines += [
        "",
        f"{'':29}{'median':>10}  {'quartiles':>21}{'faces/s':>10}{'GFLOP':>9}{'floor':>10}{'of it':>8}",
    ]
    for name, row in result["rows"].items():
        low, high = (format_seconds(value) for value in row["quartiles"])
        line = f"{name:29}{format_seconds(row['median']):>10}  "
        line += f"{f'{low} - {high}' if row['repetitions'] > 1 else '':>21}"
        line += f"{row['faces_per_second']:10,.1f}" if row["faces"] else " " * 10
        if row["floor"] is not None:
            line += f"{row['flops'] / 1e9:9.3g}{format_seconds(row['floor']):>10}"
            line += f"{row['floor'] / row['median']:8.0%}"
        lines.append(line.rstrip())
    shares = result["shares"]
    if "graph_and_decode" in shares:
        lines.append(f"graph head and decode: {shares['graph_and_decode']:.1%} of the forward pass")
    if "end_to_end" in shares:
        lines.append(f"training runs at {shares['end_to_end']:.0%} of the rate of its step alone")
    return "\n".join(lines)

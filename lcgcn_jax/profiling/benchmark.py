"""Benchmark of a configuration: `lcgcn bench` from Python."""

import contextlib
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from lcgcn_jax.errors import InputError, choose
from lcgcn_jax.profiling.measurements import BENCHMARKS, BenchmarkResult, Measurements
from lcgcn_jax.profiling.timing import format_seconds
from lcgcn_jax.synthetic.dataset import LAYOUTS, prepare_synthetic
from lcgcn_jax.tables import format_table
from lcgcn_jax.training.sharding import describe_devices
from lcgcn_jax.training.trainer import Trainer

_MIN_SYNTHETIC = 256  # faces
_LIBRARIES = ("jax", "jaxlib", "flax", "grain", "numpy", "opencv-python-headless")


def run_benchmark(
    config: ml_collections.ConfigDict,
    data: Path | None,
    *,
    parts: Sequence[str],
    repetitions: int,
    workers: tuple[int, ...],
    report: Callable[[str], object],
) -> dict[str, Any]:
    """Measure a configuration with random weights, on synthetic faces if `data` is None.

    `report` is called with a line of text about each step.

    Returns:
      Conditions, and results by name under `rows`; times in seconds. `shares` holds ratios of results
      if both were measured: `graph_and_decode`, the time of the graph head and of decoding over that of
      the forward pass, and `end_to_end`, the rate of training over that of its step on constant data.

    Raises:
      InputError: a part is unknown, or the configuration or the data cannot be used.
    """
    for part in parts:
        choose("--only", part, BENCHMARKS)
    # Fresh weights are as fast as trained ones, and a frozen model has to run instead of being cached.
    config = ml_collections.ConfigDict(config.to_dict())
    config.init_from, config.train.cache = "", False
    with tempfile.TemporaryDirectory() as folder:
        config.data.dir = str(data or _draw_faces(config, Path(folder) / "data", report))
        trainer = Trainer(config, Path(folder) / "run").prepare()
        with contextlib.closing(trainer.batches):
            measurements = Measurements(trainer, repetitions=repetitions, workers=workers)
            rows: list[BenchmarkResult] = []
            for part in BENCHMARKS:  # in their order, whatever the order of `parts`
                if part in parts:
                    report(f"measuring: {part}")
                    rows += measurements.run(part)
            return _describe(config, measurements, rows)


def _draw_faces(
    config: ml_collections.ConfigDict, folder: Path, report: Callable[[str], object]
) -> Path:
    if config.scheme not in LAYOUTS:
        raise InputError(
            f"{config.scheme}: there are no synthetic faces with this scheme; give --data, a dataset "
            "folder that 'lcgcn prepare' wrote"
        )
    count = max(_MIN_SYNTHETIC, 2 * config.train.batch_size)
    report(f"drawing {count} synthetic faces")
    prepare_synthetic(config.scheme, folder, num_train=count, num_test=1, seed=0)
    return folder


def _describe(
    config: ml_collections.ConfigDict, measurements: Measurements, rows: Iterable[BenchmarkResult]
) -> dict[str, Any]:
    results = {row.name: row.to_dict() for row in rows}
    return {
        "image_size": config.data.image_size,
        "batch_size": config.train.batch_size,
        "dtype": config.train.dtype,
        "devices": describe_devices(),
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "peaks": {
            name: {"flops": peaks.flops, "bandwidth": peaks.bandwidth}
            for name, peaks in measurements.peaks.items()
        },
        "rows": results,
        "shares": _shares({name: row["median"] for name, row in results.items()}),
    }


def _shares(medians: Mapping[str, float]) -> dict[str, float]:
    shares = {}
    if "forward" in medians and "decode" in medians:
        time = medians["decode"] + medians.get("graph head", 0.0)
        shares["graph_and_decode"] = time / medians["forward"]
    if "train step" in medians and "train, end to end" in medians:
        shares["end_to_end"] = medians["train step"] / medians["train, end to end"]
    return shares


def format_benchmark(result: Mapping[str, Any]) -> str:
    """Format the result of `run_benchmark`, with its config's name under `config`, as a table."""
    lines = [
        "",
        result["config"],
        f"{result['image_size']} px, batch {result['batch_size']}, train.dtype {result['dtype']}; "
        f"jax {result['versions']['jax']} on {result['devices']}, {result['cores']} cores",
    ]
    for name, peaks in result["peaks"].items():
        lines.append(
            f"peaks of one device, {name}: {peaks['flops'] / 1e9:,.0f} GFLOP/s, "
            f"{peaks['bandwidth'] / 1e9:,.1f} GB/s"
        )
    table = [["", "median", "quartiles", "faces/s", "GFLOP", "bound", "of bound"]]
    for name, row in result["rows"].items():
        quartiles = " - ".join(format_seconds(value) for value in row["quartiles"])
        values = [name, format_seconds(row["median"]), quartiles if row["repetitions"] > 1 else ""]
        values.append(f"{row['faces_per_second']:,.1f}" if row["faces_per_second"] else "")
        if row["roofline"] is None:
            values += ["", "", ""]
        else:
            values += [f"{row['flops'] / 1e9:.3g}", format_seconds(row["roofline"])]
            values.append(f"{row['roofline'] / row['median']:.0%}")
        table.append(values)
    lines += ["", format_table(table)]
    shares = result["shares"]
    if "graph_and_decode" in shares:
        lines.append(f"graph head and decode: {shares['graph_and_decode']:.1%} of the forward pass")
    if "end_to_end" in shares:
        lines.append(f"training runs at {shares['end_to_end']:.0%} of the rate of its step only")
    return "\n".join(lines)

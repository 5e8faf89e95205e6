r"""Profile the training step, and compare variants of it: config values and XLA options.

    python benchmarks/step_variants.py --variants train.remat=True,train.batch_size=128 --json variants.json

runs on the devices of this machine. It profiles the baseline, then times it and its variants interleaved, on
random weights and images. A gain is the speedup per face minus 1; the predicted gain follows from the bytes
that XLA counts. With a topology,

    python benchmarks/step_variants.py --config w300_lcgcn_best:small --topology v5e:2x2 \
        --batch-size 16 --variants train.remat=True

nothing runs: the step is compiled for a TPU slice without a TPU, and the figures are those of the compiler.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import importlib.metadata
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from lcgcn_jax.errors import InputError
from lcgcn_jax.profiling import aot_compile
from lcgcn_jax.profiling.roofline import Cost
from lcgcn_jax.profiling.timing import format_seconds, measure
from lcgcn_jax.training.config import apply_overrides, load_config, parse_overrides
from lcgcn_jax.training.train_step import compute_dtype

GIB = aot_compile.GIB
BASELINE = "baseline"
PROFILED_STEPS = 3
PROFILED_ROWS = 15


def main() -> None:
    """Parse the flags, run, and write the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="variants, joined by + or separated by commas:\n"
        "  FIELD=VALUE    a field of the config, such as train.remat=True\n"
        "  xla_...=VALUE  an option of XLA\n"
        "--config.NAME=VALUE sets a field for the baseline and for all variants.",
    )
    parser.add_argument("--config", default="w300_lcgcn_best", help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, help="faces per step (default: from the config)")
    parser.add_argument("--variants", default="train.remat=True", help="(%(default)s)")
    parser.add_argument("--topology", help="compile for this TPU slice without running")
    parser.add_argument("--repetitions", type=int, default=20, help="per variant (%(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args, rest = parser.parse_known_args()
    try:
        result = run(args, parse_overrides(rest))
    except InputError as error:
        sys.exit(f"step_variants: {error}")
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run(args: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    """Measure and print everything; returns the content of the JSON file."""
    config = load_config(args.config)
    apply_overrides(config, overrides)
    if args.batch_size is not None:
        config.train.batch_size = args.batch_size
    if args.topology:
        if aot_compile.chip_of(args.topology).target_config:
            raise InputError("--topology is for TPU slices; lcgcn research compile also takes GPUs")
        jax.config.update("jax_platforms", "cpu")  # leave the accelerators of this machine free
        devices = aot_compile.devices_of(args.topology)
    else:
        devices = jax.devices()
        config.train.dtype = compute_dtype(config.train.dtype).name
    variants = [Variant.parse(text, config) for text in [BASELINE, *args.variants.split(",")]]
    print(f"{args.config}, {len(devices)} x {devices[0].device_kind}")
    for variant in variants:
        variant.lower(devices)
    result = {"conditions": conditions(args, config, devices)}
    if args.topology:
        for variant in variants:  # one at a time: each takes minutes and gigabytes
            variant.compile()
            print(f"{variant.name}: {json.dumps(variant.figures)}", flush=True)
    else:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            programs = list(pool.map(Variant.compile, variants))
        steps = {v.name: repeat_step(p) for v, p in zip(variants, programs, strict=True)}
        result["profile"] = profile(steps[BASELINE], programs[0])
        print(format_profile(result["profile"]), flush=True)
        times = measure(steps, repetitions=args.repetitions)
        for variant in variants:
            timing = times[variant.name]
            variant.figures |= {"median": timing.median, "quartiles": list(timing.quartiles)}
    result["variants"] = compare(variants)
    print(format_variants(result["variants"]))
    return result


def conditions(
    args: argparse.Namespace, config: ml_collections.ConfigDict, devices: list[jax.Device]
) -> dict[str, Any]:
    """Conditions of the measurement."""
    libraries = ("jax", "jaxlib", "flax", "optax") + (("libtpu",) if args.topology else ())
    return {
        "config": args.config,
        "image_size": config.data.image_size,
        "dtype": config.train.dtype,
        "topology": args.topology,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "repetitions": None if args.topology else args.repetitions,
        "versions": {name: importlib.metadata.version(name) for name in libraries},
    }


@dataclasses.dataclass
class Variant:
    """Variant of the training step: a config and options of XLA, with its figures."""

    name: str
    config: ml_collections.ConfigDict
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, config: ml_collections.ConfigDict) -> "Variant":
        """Parse a variant such as `train.batch_size=128+xla_...=VALUE`.

        Raises:
          InputError: the config has no such field.
        """
        variant = cls(text, ml_collections.ConfigDict(config.to_dict()))
        for part in [] if text == BASELINE else text.split("+"):
            key, equals, value = part.partition("=")
            if not equals:
                raise InputError(f"--variants: {part!r} is neither FIELD=VALUE nor xla_...=VALUE")
            if key.startswith("xla_"):
                variant.options[key] = value
            else:
                apply_overrides(variant.config, {key: value})
        return variant

    def lower(self, devices: list[jax.Device]) -> None:
        """Trace and lower the step."""
        start = time.perf_counter()
        batch_size = self.config.train.batch_size
        self._lowered = aot_compile.lower_train_step(self.config, devices, batch_size)
        self.figures["trace_seconds"] = time.perf_counter() - start

    def compile(self) -> jax.stages.Compiled:
        """Compile the step, and store the figures of the compiler."""
        start = time.perf_counter()
        program = self._lowered.compile(compiler_options=self.options or None)
        seconds = time.perf_counter() - start
        memory, cost = program.memory_analysis(), Cost.of(program)
        collectives = aot_compile.collectives(program.as_text())
        self.figures |= {
            "batch_size": self.config.train.batch_size,
            "compile_seconds": seconds,
            "temporaries": memory.temp_size_in_bytes,
            "program": memory.generated_code_size_in_bytes,
            "flops": cost.flops,
            "bytes": cost.bytes,
            "collectives": {kind: dataclasses.asdict(c) for kind, c in collectives.items()},
        }
        return program


def repeat_step(program: jax.stages.Compiled) -> Callable[[], Any]:
    """Function that runs a step on one random batch, and keeps the state."""
    rng = np.random.default_rng(0)

    def sample(info):
        if jnp.issubdtype(info.dtype, jnp.floating):
            # Positive, as Adam's second moments are. BatchNorm removes the offset of positive weights.
            return rng.uniform(0, 0.1, info.shape).astype(info.dtype)
        return rng.integers(0, 1 if info.dtype == jnp.int32 else 255, info.shape).astype(info.dtype)

    arguments = jax.tree.map(sample, program.args_info[0])
    state, batch = jax.device_put(arguments, program.input_shardings[0])

    def step():
        nonlocal state
        state, scalars = program(state, batch)
        return scalars

    return step


def profile(step: Callable[[], Any], program: jax.stages.Compiled) -> dict[str, Any]:
    """Profile a step.

    Returns:
      `seconds` per step, and `shares` of the time of all operations by the JAX primitive that an operation,
      or the root of a fusion, comes from, separately for the backward pass.
    """
    for _ in range(2):
        jax.block_until_ready(step())
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with jax.profiler.trace(folder):
            for _ in range(PROFILED_STEPS):
                jax.block_until_ready(step())
        seconds = (time.perf_counter() - start) / PROFILED_STEPS
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        durations = collections.Counter()
        for event in (event for plane in planes for line in plane.lines for event in line.events):
            operation = dict(event.stats).get("hlo_op")
            if operation is not None:
                durations[operation] += event.duration_ns
    primitives = primitives_of(program.as_text())
    shares = collections.Counter()
    for operation, duration in durations.items():
        shares[primitives.get(operation, re.sub(r"[.\d]+$", "", operation))] += duration
    total = shares.total()
    return {
        "seconds": seconds,
        "shares": {name: duration / total for name, duration in shares.most_common()},
    }


def primitives_of(hlo: str) -> dict[str, str]:
    """Map the instructions of a program to the JAX primitives that they come from."""
    primitives = {}
    for name, path in re.findall(r'%?([\w.-]+) = .*metadata=\{op_name="([^"]*)"', hlo):
        primitive = path.rpartition("/")[2]
        primitives[name] = primitive + (", backward" if "transpose(" in path else "")
    return primitives


def compare(variants: list[Variant]) -> list[dict[str, Any]]:
    """Figures of all variants, with gains relative to the first: 0.1 means 10 % more faces per second."""
    base = variants[0].figures

    def gain(figures, key):
        per_face = figures[key] / figures["batch_size"]
        return base[key] / base["batch_size"] / per_face - 1

    rows = []
    for variant in variants:
        row = {"name": variant.name, **variant.figures}
        row["predicted_gain"] = gain(row, "bytes")
        if "median" in row:
            row["measured_gain"] = gain(row, "median")
        rows.append(row)
    return rows


def format_profile(figures: dict[str, Any]) -> str:
    """Format the largest shares as a table."""
    lines = [f"\n{BASELINE}: {format_seconds(figures['seconds'])} per profiled step"]
    for name, share in list(figures["shares"].items())[:PROFILED_ROWS]:
        lines.append(f"{name:44}{share:7.1%}")
    return "\n".join(lines)


def format_variants(rows: list[dict[str, Any]]) -> str:
    """Format the variants as a table."""
    head = ("trace, s", "compile", "temp. GiB", "GFLOP", "GiB moved", "collective", "predicted")
    lines = [f"\n{'':24}" + "".join(f"{title:>11}" for title in (*head, "step", "gain"))]
    for row in rows:
        columns = [
            f"{row['trace_seconds']:.1f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['temporaries'] / GIB:.2f}",
            f"{row['flops'] / 1e9:,.1f}",
            f"{row['bytes'] / GIB:.2f}",
            f"{sum(c['count'] for c in row['collectives'].values())}",
            f"{row['predicted_gain']:+.1%}",
        ]
        if "median" in row:
            columns += [format_seconds(row["median"]), f"{row['measured_gain']:+.1%}"]
        lines.append(f"{row['name']:24}" + "".join(f"{column:>11}" for column in columns))
    return "\n".join(lines)


if __name__ == "__main__":
    main()

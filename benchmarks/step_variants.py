r"""Where a training step's time goes, and what other ways of computing it cost or gain.

    python benchmarks/step_variants.py --variants one_pass,train.batch_size=128 --json variants.json

runs on the device at hand: it profiles the step as it is, then times it and its variants in turns, on
weights and images that are drawn. A gain is how much faster a face is; the predicted one is what follows
from the bytes alone that XLA counts. With a topology

    python benchmarks/step_variants.py --config configs/w300_lcgcn_best.py:small --topology v5e:2x2 \
        --batch-size 16

nothing runs: the step is compiled for a TPU slice that need not be there, and the figures are its
compiler's.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax import lax

from lcgcn_jax.errors import InputError
from lcgcn_jax.models import hrnet, layers, workarounds
from lcgcn_jax.profiling import tpu_compile
from lcgcn_jax.profiling.timing import format_seconds, measure
from lcgcn_jax.training.config import apply_overrides, load_config, parse_overrides
from lcgcn_jax.training.trainer import compute_dtype

GIB = tpu_compile.GIB
PROFILED_STEPS = 3
PROFILED_ROWS = 15


def main() -> None:
    """Profiles and measures, or compiles alone; prints tables, writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="variants:\n"
        + "\n".join(f"  {name:14}{variant.__doc__}" for name, variant in VARIANTS.items())
        + "\n  FIELD=VALUE   a field of the config: train.remat=True, train.batch_size=128\n"
        "  xla_...=VALUE an option of XLA\n"
        "several at a time are joined by +. --config.NAME=VALUE sets a field for all.",
    )
    parser.add_argument("--config", default="w300_lcgcn_best", help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, help="faces in a step (the config's)")
    parser.add_argument(
        "--variants", default=",".join([*VARIANTS, "train.remat=True"]), help="(%(default)s)"
    )
    parser.add_argument("--topology", help="compile for this TPU slice, and run nothing")
    parser.add_argument("--repetitions", type=int, default=20, help="of each step (%(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args, rest = parser.parse_known_args()
    try:
        result = run(args, parse_overrides(rest))
    except InputError as error:
        sys.exit(f"step_variants: {error}")
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run(args: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    """All that was asked for, as it is written to the JSON."""
    config = load_config(args.config)
    apply_overrides(config, overrides)
    if args.batch_size is not None:
        config.train.batch_size = args.batch_size
    if args.topology:
        jax.config.update("jax_platforms", "cpu")  # chips of this machine, if any, stay free
        devices = tpu_compile.tpu_devices(args.topology)
    else:
        devices = jax.devices()
        config.train.dtype = compute_dtype(config.train.dtype).name
    variants = [Variant.parse(text, config) for text in ["as it is", *args.variants.split(",")]]
    print(f"{args.config}, {len(devices)} x {devices[0].device_kind}")
    lowered = {}
    for variant in variants:
        start = time.perf_counter()
        with variant.applied():
            lowered[variant.name] = tpu_compile.lower_train_step(
                variant.config, devices, variant.batch_size
            )
        variant.figures["trace_seconds"] = time.perf_counter() - start
    result = {"conditions": conditions(args, config, devices)}
    if args.topology:
        for variant in variants:  # one after the other: each takes minutes, and gigabytes
            variant.compile(lowered[variant.name])
            print(variant.describe(), flush=True)
    else:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            done = {v.name: pool.submit(v.compile, lowered[v.name]) for v in variants}
        programs = {name: future.result() for name, future in done.items()}
        steps = {name: repeated(program) for name, program in programs.items()}
        first = variants[0].name
        result["profile"] = profile(steps[first], programs[first])
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
    """What the figures hold for."""
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
    """A way to compute the step: `parts` of `VARIANTS`, another config, options of XLA."""

    name: str
    config: ml_collections.ConfigDict
    parts: list[str] = dataclasses.field(default_factory=list)
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, config: ml_collections.ConfigDict) -> "Variant":
        """From `one_pass+train.batch_size=128+xla_...=VALUE`.

        Raises:
          InputError: no such variant, or no such field of the config.
        """
        variant = cls(text, ml_collections.ConfigDict(config.to_dict()))
        for part in [] if text == "as it is" else text.split("+"):
            key, equals, value = part.partition("=")
            if equals and key.startswith("xla_"):
                variant.options[key] = value
            elif equals:
                apply_overrides(variant.config, {key: value})
            elif part in VARIANTS:
                variant.parts.append(part)
            else:
                raise InputError(
                    f"--variants: no such thing as {part!r}; there are {', '.join(VARIANTS)}, "
                    "FIELD=VALUE and xla_...=VALUE"
                )
        return variant

    @property
    def batch_size(self) -> int:
        """Faces in a step."""
        return self.config.train.batch_size

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model computes this way."""
        with contextlib.ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(VARIANTS[part]())
            yield

    def compile(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        """The program, and into `figures` what its compiler says of it."""
        start = time.perf_counter()
        program = lowered.compile(compiler_options=self.options or None)
        seconds = time.perf_counter() - start
        memory, cost = program.memory_analysis(), program.cost_analysis()
        collectives = tpu_compile.collectives(program.as_text())
        self.figures |= {
            "batch_size": self.batch_size,
            "compile_seconds": seconds,
            "temporaries": memory.temp_size_in_bytes,
            "program": memory.generated_code_size_in_bytes,
            "flops": cost["flops"],
            "bytes": cost["bytes accessed"],
            "collectives": {kind: dataclasses.asdict(c) for kind, c in collectives.items()},
        }
        return program

    def describe(self) -> str:
        """The figures that there are, in a line."""
        return f"{self.name}: {json.dumps(self.figures)}"


def repeated(program: jax.stages.Compiled) -> Callable[[], Any]:
    """The step on one batch, going on from its own state each time."""
    rng = np.random.default_rng(0)

    def draw(info):
        if jnp.issubdtype(info.dtype, jnp.floating):
            # Positive as Adam's second moments are; BatchNorm takes out what weights all above 0 add up to.
            return rng.uniform(0, 0.1, info.shape).astype(info.dtype)
        return rng.integers(0, 1 if info.dtype == jnp.int32 else 255, info.shape).astype(info.dtype)

    drawn = jax.tree.map(draw, program.args_info[0])
    state, batch = jax.device_put(drawn, program.input_shardings[0])

    def step():
        nonlocal state
        state, scalars = program(state, batch)
        return scalars

    return step


def profile(step: Callable[[], Any], program: jax.stages.Compiled) -> dict[str, Any]:
    """How much of a step's time goes to what, by the profiler.

    Returns:
      `seconds` of a step, and `shares` of all operations' time by name: the JAX primitive that an
      operation, or the root of a fusion, comes from, and whether in the backward pass.
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
        spent = collections.Counter()
        for plane in planes:
            for line in plane.lines:
                for event in line.events:
                    operation = dict(event.stats).get("hlo_op")
                    if operation is not None:
                        spent[operation] += event.duration_ns
    origins = origins_of(program.as_text())
    shares = collections.Counter()
    for operation, duration in spent.items():
        shares[origins.get(operation, re.sub(r"[.\d]+$", "", operation))] += duration
    total = shares.total()
    return {
        "seconds": seconds,
        "shares": {name: duration / total for name, duration in shares.most_common()},
    }


def origins_of(hlo: str) -> dict[str, str]:
    """For each instruction of a program the JAX primitive that it comes from."""
    origins = {}
    for name, path in re.findall(r'%?([\w.-]+) = .*metadata=\{op_name="([^"]*)"', hlo):
        primitive = path.rpartition("/")[2]
        origins[name] = primitive + (", backward" if "transpose(" in path else "")
    return origins


def compare(variants: list[Variant]) -> list[dict[str, Any]]:
    """The figures of all, and gains against the first: 0.1 is a tenth more faces in the same time."""
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


def format_profile(found: dict[str, Any]) -> str:
    """The largest shares as a table."""
    lines = [f"\nthe step as it is, {format_seconds(found['seconds'])} while profiled"]
    for name, share in list(found["shares"].items())[:PROFILED_ROWS]:
        lines.append(f"{name:44}{share:7.1%}")
    return "\n".join(lines)


def format_variants(rows: list[dict[str, Any]]) -> str:
    """A line for each variant."""
    head = ("trace, s", "compile", "temp. GiB", "GFLOP", "GiB moved", "exchanges", "predicted")
    lines = [f"\n{'':24}" + "".join(f"{title:>11}" for title in (*head, "step", "gain"))]
    for row in rows:
        cells = [
            f"{row['trace_seconds']:.1f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['temporaries'] / GIB:.2f}",
            f"{row['flops'] / 1e9:,.1f}",
            f"{row['bytes'] / GIB:.2f}",
            f"{sum(c['count'] for c in row['collectives'].values())}",
            f"{row['predicted_gain']:+.1%}",
        ]
        if "median" in row:
            cells += [format_seconds(row["median"]), f"{row['measured_gain']:+.1%}"]
        lines.append(f"{row['name']:24}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


@contextlib.contextmanager
def one_pass() -> Iterator[None]:
    """BatchNorm's mean and variance from sums of one pass, about the running mean."""

    def call(self, x, *, train):
        if not train:
            return original(self, x, train=train)
        axes = tuple(range(x.ndim - 1))
        about = lax.stop_gradient(self.mean[...])
        wide = x.astype(jnp.float32) - workarounds.per_channel(about, x.astype(jnp.float32))
        first, second = wide.mean(axis=axes), jnp.square(wide).mean(axis=axes)
        mean, var = about + first, jnp.maximum(second - jnp.square(first), 0)
        keep = self.momentum
        self.mean.set_value(keep * self.mean[...] + (1 - keep) * lax.stop_gradient(mean))
        self.var.set_value(keep * self.var[...] + (1 - keep) * lax.stop_gradient(var))
        factor = self.scale[...] * lax.rsqrt(var + workarounds.EPSILON)
        offset = self.bias[...] - mean * factor
        x = x.astype(self.dtype)
        return x * workarounds.per_channel(factor, x) + workarounds.per_channel(offset, x)

    original = layers.BatchNorm.__call__
    with mock.patch.object(layers.BatchNorm, "__call__", call):
        yield


@contextlib.contextmanager
def conv1x1() -> Iterator[None]:
    """1x1 convolutions as such, not as products of matrices."""

    def call(self, x):
        if self.size != 1 or self.stride != 1:
            return original(self, x)
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y if self.bias is None else y + workarounds.per_channel(self.bias[...], y)

    original = layers.Conv.__call__
    with mock.patch.object(layers.Conv, "__call__", call):
        yield


@contextlib.contextmanager
def resize() -> Iterator[None]:
    """Upsampling by jax.image.resize, not by two products of matrices."""

    def upsample(x, shape):
        return jax.image.resize(x, (x.shape[0], *shape, x.shape[3]), "bilinear")

    with mock.patch.object(hrnet, "upsample_bilinear", upsample):
        yield


def padded(multiple: int) -> Callable:
    """A variant whose branches have the next multiple of channels."""

    @contextlib.contextmanager
    def pad() -> Iterator[None]:
        archs = {
            name: dataclasses.replace(
                arch, widths=tuple(-(-width // multiple) * multiple for width in arch.widths)
            )
            for name, arch in hrnet.ARCHS.items()
        }
        with mock.patch.dict(hrnet.ARCHS, archs):
            yield

    pad.__doc__ = f"Channels of the branches padded to multiples of {multiple}."
    return pad


def _pure(module: nnx.Module, train: bool) -> tuple[Callable, nnx.State, nnx.State]:
    graphdef, params, batch_stats = nnx.split(module, nnx.Param, nnx.BatchStat)

    def call(params, batch_stats, branches):
        module = nnx.merge(graphdef, params, batch_stats)
        branches = module(branches, train=train)
        return branches, nnx.split(module, nnx.Param, nnx.BatchStat)[2]

    return call, params, batch_stats


@contextlib.contextmanager
def scan() -> Iterator[None]:
    """Equal modules of a stage as one in a lax.scan; XLA counts its operations and bytes once."""

    class Scanned:
        """Stands for all modules of a stage."""

        def __init__(self, modules):
            self.modules = modules

        def __call__(self, branches, *, train):
            parts = [_pure(module, train) for module in self.modules]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(part[1:] for part in parts))
            branches, batch_stats = lax.scan(
                lambda carry, weights: parts[0][0](*weights, carry), list(branches), stacked
            )
            for i, module in enumerate(self.modules):
                nnx.update(module, jax.tree.map(lambda leaf, i=i: leaf[i], batch_stats))
            return branches

    def call(self, images, *, train):
        stages = self.stages
        scanned = [[Scanned(s)] if len(s) > 1 else list(s) for s in stages]
        object.__setattr__(self, "stages", scanned)  # nnx would take it for weights
        try:
            return original(self, images, train=train)
        finally:
            object.__setattr__(self, "stages", stages)

    original = hrnet.HRNet.__call__
    with mock.patch.object(hrnet.HRNet, "__call__", call):
        yield


VARIANTS = {
    "one_pass": one_pass,
    "conv1x1": conv1x1,
    "resize": resize,
    "pad8": padded(8),
    "pad32": padded(32),
    "pad128": padded(128),
    "scan": scan,
}


if __name__ == "__main__":
    main()

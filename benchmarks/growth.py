r"""Growth of time and memory with faces per batch, landmarks, image size, and devices.

    python benchmarks/growth.py --json growth.json

varies one quantity at a time; the others keep the first value of their list. Each measurement runs in its
own process, on random weights and images: inference on one device, and training steps on simulated devices of
this machine, which share its cores. The graph is also measured without the heatmap model; it computes one
matrix of edges for each face, so its cost is quadratic in the number of landmarks.

The peak of the memory includes Python and the compiled program. GFLOP and GB (bytes that the operations read
and write) per face are those of the compiler. The last two columns are exponents of the growth of the time
and of the bytes of a batch from the line before: 1 is linear, 2 is quadratic. Requires Linux (`/proc`).
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from step_variants import repeat_step

from lcgcn_jax.arguments import integers, number
from lcgcn_jax.models.bundles import abstract_weights
from lcgcn_jax.profiling.aot_compile import lower_train_step
from lcgcn_jax.profiling.roofline import Cost
from lcgcn_jax.profiling.timing import format_seconds, measure
from lcgcn_jax.tables import format_table
from lcgcn_jax.training import sharding
from lcgcn_jax.training.config import load_config
from lcgcn_jax.training.steps import make_inference_step

AXES = ("batch", "landmarks", "size", "devices")
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
      kind: `inference`, `graph` (only the graph), or `training`.
      batch: faces per batch, over all devices.
      size: side of the crops in pixels.
    """

    kind: str
    config: str
    batch: int
    landmarks: int
    size: int
    devices: int
    repetitions: int


def main() -> None:
    """Parse the flags, measure each case in a process, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="w300_lcgcn_best:small", help="(%(default)s)")
    text = "values, separated by commas (%(default)s)"
    parser.add_argument("--batch", type=integers, default="8,1,2,4,16,32,64,128,256", help=text)
    parser.add_argument("--landmarks", type=integers, default="68,98,150,200,300", help=text)
    parser.add_argument("--size", type=integers, default="192,128,256,384,512", help=text)
    parser.add_argument("--devices", type=integers, default="1,2,4,8", help=text)
    help = "faces per training step, over all devices (%(default)s)"
    parser.add_argument("--train-batch", type=number(int, 1), default=16, help=help)
    parser.add_argument("--only", nargs="+", choices=AXES, default=AXES, help="tables (all)")
    parser.add_argument("--repetitions", type=number(int, 1), default=5, help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # of a process that measures
    args = parser.parse_args()
    if args.case is not None:
        print(json.dumps(run(Case(**json.loads(args.case)))))
        return
    rows = []
    for axis in args.only:
        cases = [measure_in_process(case) for case in cases_of(args, axis)]
        rows += [{"axis": axis, **case} for case in cases]
        for kind in dict.fromkeys(case["kind"] for case in cases):
            print(format_growth(axis, [case for case in cases if case["kind"] == kind]), flush=True)
    if args.json is not None:
        result = {"jax": jax.__version__, "cores": os.cpu_count(), "rows": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def cases_of(args: argparse.Namespace, axis: str) -> list[Case]:
    """Measurements of a table, in the order of the quantity."""
    fixed = {name: getattr(args, name)[0] for name in AXES} | {"devices": 1}
    fixed |= {"config": args.config, "repetitions": args.repetitions}
    kinds = {"landmarks": ("inference", "graph"), "devices": ("training",)}.get(
        axis, ("inference",)
    )
    if axis == "devices":
        fixed["batch"] = args.train_batch
    points = sorted(set(getattr(args, axis)))
    return [Case(**fixed | {axis: value, "kind": kind}) for kind in kinds for value in points]


def measure_in_process(case: Case) -> dict[str, Any]:
    """Measure in a new process, whose memory is that of this measurement."""
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={case.devices}"
    )
    command = [sys.executable, __file__, "--case", json.dumps(dataclasses.asdict(case))]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return dataclasses.asdict(case) | json.loads(done.stdout.splitlines()[-1])


def run(case: Case) -> dict[str, float]:
    """Compile and measure; times in seconds, memory in bytes."""
    program, step = (training if case.kind == "training" else inference)(case)
    reset_peak()
    timing = measure({"step": step}, repetitions=case.repetitions)["step"]
    memory, cost = program.memory_analysis(), Cost.of(program)
    return {
        "seconds": timing.median,
        "peak": peak(),
        "temporaries": memory.temp_size_in_bytes,
        "flops": cost.flops * case.devices,
        "bytes": cost.bytes * case.devices,
    }


def training(case: Case) -> tuple[jax.stages.Compiled, Callable[[], Any]]:
    """Training step on simulated devices, with the landmarks of the config."""
    config = load_config(case.config)
    config.data.image_size = case.size
    program = lower_train_step(config, jax.devices()[: case.devices], case.batch).compile()
    return program, repeat_step(program)


def inference(case: Case) -> tuple[jax.stages.Compiled, Callable[[], Any]]:
    """Program from crops, or from the inputs of the graph, to landmarks."""
    model = abstract_weights(load_config(case.config).model.to_dict(), case.landmarks)
    weights = (model.params, model.batch_stats)
    inputs = jax.ShapeDtypeStruct((case.batch, case.size, case.size, 3), jnp.uint8)
    function = make_inference_step(model.graphdef, "predict")
    if case.kind == "graph":
        detect = make_inference_step(model.graphdef, "detect")
        inputs = jax.eval_shape(detect, *weights, inputs)
        function = make_inference_step(model.graphdef, "refine", case.size)
    step = sharding.compile_predict_step(function, sharding.make_mesh(1))
    program = step.lower(*weights, inputs).compile()
    rng = np.random.default_rng(0)

    def sample(info: jax.ShapeDtypeStruct) -> np.ndarray:
        high = 255 if info.dtype == jnp.uint8 else 0.1
        return rng.uniform(0, high, info.shape).astype(info.dtype)

    arguments = jax.device_put(jax.tree.map(sample, (*weights, inputs)))
    return program, lambda: program(*arguments)


def reset_peak() -> None:
    """Set the peak of the resident memory to its current value, without that of the compiler."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> int:
    """Peak of the resident memory in bytes, since the last reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def format_growth(axis: str, cases: Sequence[dict[str, Any]]) -> str:
    """Format the measurements of one kind as a table."""
    first = cases[0]
    fixed = ", ".join(f"{name} {first[name]}" for name in AXES if name != axis)
    table = [[axis, "per face", "peak, MiB", "temporaries, MiB", "GFLOP", "GB", "time", "bytes"]]
    for before, case in zip([None, *cases], cases, strict=False):
        exponents = ["", ""]
        if before is not None:
            exponents = [f"{slope(axis, name, before, case):.2f}" for name in ("seconds", "bytes")]
        sizes = [f"{case[name] / MIB:,.0f}" for name in ("peak", "temporaries")]
        costs = [f"{case[name] / case['batch'] / 1e9:.3g}" for name in ("flops", "bytes")]
        time = format_seconds(case["seconds"] / case["batch"])
        table.append([f"{case[axis]}", time, *sizes, *costs, *exponents])
    return f"\n{first['kind']} by {axis}; {fixed}\n{format_table(table)}"


def slope(axis: str, name: str, before: dict[str, Any], after: dict[str, Any]) -> float:
    """Exponent of the growth of a figure between two measurements."""
    return math.log(after[name] / before[name]) / math.log(after[axis] / before[axis])


if __name__ == "__main__":
    main()

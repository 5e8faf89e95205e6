"""Speed of HRNet in JAX, PyTorch, onnxruntime and OpenVINO, with the same weights on the same device.

    python benchmarks/compare_libraries.py --json compare_libraries.json

requires `pip install '.[torch]'` (on a GPU, a CUDA build of PyTorch and '.[cuda]'); `torch.compile` also
requires a C++ compiler. With '.[onnx]' and `pip install openvino`, it measures the ONNX export with
onnxruntime and OpenVINO on a CPU. Measurements are interleaved, so that other load affects all of them
equally. A ratio above 1 means that JAX is faster. On a busy machine, compare the CPU time of one core:

    taskset -c 0 python benchmarks/compare_libraries.py --clock cpu --only inference
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# Leave GPU memory for PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# `torch.compile` would fork, which can deadlock JAX.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.cpu_kernels import kernel_prefix, with_cpu_kernels
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.interop.serving import INPUT, write_onnx
from lcgcn_jax.interop.torch_weights import export_weights
from lcgcn_jax.landmarks import IBUG68
from lcgcn_jax.models.bn_folding import fold_batch_norm
from lcgcn_jax.models.bundles import Bundle
from lcgcn_jax.models.hrnet import ARCHS
from lcgcn_jax.models.registry import create_model
from lcgcn_jax.models.weights import batch_stats_of, merge_weights, split_weights
from lcgcn_jax.profiling.roofline import Cost, Peaks, measure_peaks
from lcgcn_jax.profiling.timing import Timing, format_seconds, measure

try:
    import torch
    from torch_hrnet import TorchHRNet
except ImportError:
    sys.exit("compare_libraries: PyTorch is not installed: pip install '.[torch]'")

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TASKS = ("inference", "training")
NETWORK, SERVING = "network", "bytes to landmarks"
# Relative to the range of the outputs: float32 sums differ in order; TF32 has a mantissa of 10 bits.
TOLERANCES = {"cpu": 1e-4, "cuda": 1e-2}
LEARNING_RATE = 1e-4
_SUFFIX = f", {SERVING}"


def main() -> None:
    """Parse the flags, measure, print tables, and write the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=ARCHS, default="w18", help="HRNet variant (%(default)s)")
    parser.add_argument(
        "--image_size", type=int, default=256, help="side of the crops (%(default)s)"
    )
    parser.add_argument(
        "--batch_sizes", default="", help="for inference (default: 1,8; on a GPU 1,64)"
    )
    parser.add_argument("--train_batch_size", type=int, default=0, help="(default: 8; on a GPU 64)")
    parser.add_argument("--only", choices=TASKS, help="(default: both)")
    parser.add_argument("--repetitions", type=int, default=20, help="per measurement (%(default)s)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="wall or CPU time (%(default)s)"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu != torch.cuda.is_available():
        sys.exit(
            "compare_libraries: only one of JAX and PyTorch can use the GPU; set CUDA_VISIBLE_DEVICES="
        )
    if on_gpu and args.clock == "cpu":
        sys.exit("compare_libraries: --clock cpu does not measure a GPU; leave out --clock")
    # The defaults of JAX: TF32 if available, and the fastest cuDNN algorithm.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    sizes = [int(n) for n in (args.batch_sizes or ("1,64" if on_gpu else "1,8")).split(",")]
    comparison = Comparison(args, "cuda" if on_gpu else "cpu")
    tasks = []
    if args.only != "training":
        tasks += [comparison.inference(batch) for batch in sizes]
    if args.only != "inference":
        tasks.append(comparison.training(args.train_batch_size or (64 if on_gpu else 8)))
    warm_up(tasks)
    result = {"conditions": comparison.conditions(), "results": []}
    for task in tasks:
        result["results"].append(comparison.measure(task))
        print(format_result(result["results"][-1]), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Task:
    """Functions to compare, by name, on the same `batch` faces; all return the same if `equal`.

    `jax` is the JAX program, for its roofline bound.
    """

    name: str
    batch: int
    runs: dict[str, Callable]
    jax: "JaxProgram"
    equal: bool


class JaxProgram:
    """A function with fixed arguments, compiled at the first call."""

    def __init__(self, function: Callable, *args: Any, **options: Any):
        name = kernel_prefix(jax.default_backend(), build=True)
        traced = with_cpu_kernels(function, name)
        self._jitted = jax.jit(traced, compiler_options=compiler_options(), **options)
        self._args = args

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        return self._jitted.lower(*self._args).compile()

    def __call__(self) -> Any:
        return self.compiled(*self._args)


class TrainingStep(JaxProgram):
    """A step `function(state, x, y) -> state`; every call continues with the new state."""

    def __init__(self, function: Callable, *args: Any):
        super().__init__(function, *args, donate_argnums=0)

    def __call__(self) -> Any:
        state = super().__call__()
        self._args = (state, *self._args[1:])
        return state


def warm_up(tasks: Iterable[Task]) -> None:
    """Compile everything: the JAX programs in threads, concurrently with PyTorch in this thread."""
    runs = [(name, run) for task in tasks for name, run in task.runs.items()]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiling = [pool.submit(run) for name, run in runs if name.startswith("jax")]
        for name, run in runs:
            if not name.startswith("jax"):
                run()
        for future in compiling:
            future.result()


class Comparison:
    """The same network in both libraries."""

    def __init__(self, args: argparse.Namespace, device: str):
        self._args, self._device = args, device
        model = {
            "heatmap": {"name": "hrnet", "arch": args.arch},
            "decode": "argmax",
            "graph": None,
            "bn_momentum": 0.99,
        }
        k = IBUG68.num_landmarks

        @jax.jit
        def fresh():
            _, params, batch_stats = split_weights(create_model(model, k, rngs=nnx.Rngs(0)))
            return params | batch_stats

        self._bundle = Bundle(model, IBUG68, args.image_size, jax.tree.map(np.asarray, fresh()))
        state = export_weights(self._bundle, graph=False, source="the model")
        self._state = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}

    def conditions(self) -> dict[str, Any]:
        """Conditions of the measurement."""
        args = self._args
        libraries = ["jax", "jaxlib", "flax", "torch", "onnxruntime", "openvino"]
        peaks = dataclasses.asdict(self.peaks)
        return {
            "network": f"HRNet {args.arch}, {args.image_size} px, {IBUG68.num_landmarks} landmarks",
            "device": jax.devices()[0].device_kind,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "clock": args.clock,
            "repetitions": args.repetitions,
            "versions": {name: _version(name) for name in libraries},
            "peaks": peaks,
        }

    @functools.cached_property
    def peaks(self) -> Peaks:
        """Peak rates of the device, measured in this run."""
        return measure_peaks(jnp.float32)

    def inference(self, batch: int) -> Task:
        """Inference from normalized crops to logits; on a CPU also from bytes to landmarks, with ONNX."""
        images = _normal((batch, self._args.image_size, self._args.image_size, 3), 0)
        program = self._jax_inference(images, jnp.float32)
        runs: dict[str, Callable] = {"jax float32": program}
        runs |= self._torch_runs(functools.partial(self._torch_inference, images))
        if self._device == "cuda":
            runs["jax bfloat16"] = self._jax_inference(images, jnp.bfloat16)
        else:
            runs |= self._serving(batch)
        return Task(f"inference, batch {batch}", batch, runs, program, equal=True)

    def training(self, batch: int) -> Task:
        """Training steps: Adam on the squared error of the logits, with BatchNorm in training mode."""
        args, k = self._args, IBUG68.num_landmarks
        images = _normal((batch, args.image_size, args.image_size, 3), 0)
        targets = _normal((batch, args.image_size // 4, args.image_size // 4, k), 1)
        program = self._jax_training(images, targets, jnp.float32)
        runs: dict[str, Callable] = {"jax float32": program}
        runs |= self._torch_runs(functools.partial(self._torch_training, images, targets))
        if self._device == "cuda":
            runs["jax bfloat16"] = self._jax_training(images, targets, jnp.bfloat16)
        return Task(f"training, batch {batch}", batch, runs, program, equal=False)

    def _torch_runs(self, create: Callable[..., Callable]) -> dict[str, Callable]:
        """Variants of PyTorch; `create` takes the options `channels_last`, `autocast` and `compiled`."""
        runs = {
            "torch eager float32": create(),
            "torch eager float32, channels_last": create(channels_last=True),
            "torch compile float32, channels_last": create(channels_last=True, compiled=True),
        }
        if self._device == "cuda":
            half = {"channels_last": True, "autocast": True}
            runs["torch autocast, channels_last"] = create(**half)
            runs["torch compile, autocast, channels_last"] = create(**half, compiled=True)
        return runs

    def measure(self, task: Task) -> dict[str, Any]:
        """Measure the functions of a task interleaved, and compute the ratios to JAX."""
        if task.equal:
            self._require_equal(task.runs["jax float32"](), task.runs["torch eager float32"]())
        args = self._args
        times = measure(task.runs, repetitions=args.repetitions, clock=CLOCKS[args.clock])
        roofline, limit = Cost.of(task.jax.compiled).roofline(self.peaks)
        ratios = _ratios(times)
        return {
            "task": task.name,
            "batch": task.batch,
            "roofline": {"seconds": roofline, "limit": limit},
            "seconds": {
                name: {"median": t.median, "quartiles": list(t.quartiles)}
                for name, t in times.items()
            },
            "over_jax": ratios,
            "best": {
                kind: min(names, key=ratios.__getitem__)
                for kind in (NETWORK, SERVING)
                if (names := [name for name in ratios if _kind(name) == kind])
            },
        }

    def _jax_inference(self, images: np.ndarray, dtype: jnp.dtype) -> JaxProgram:
        weights = fold_batch_norm(*self._bundle.create(dtype))
        return JaxProgram(
            lambda x: merge_weights(*weights).heatmap_model(x, train=False)[0], jnp.asarray(images)
        )

    def _serving(self, batch: int) -> dict[str, Callable]:
        """Functions from bytes to landmarks: this package, and its ONNX export in other libraries."""
        size, threads = self._args.image_size, torch.get_num_threads()
        crops = np.random.default_rng(2).integers(0, 256, (batch, size, size, 3), np.uint8)
        model = LandmarkModel(self._bundle)
        runs: dict[str, Callable] = {f"jax{_SUFFIX}": functools.partial(model.predict_crops, crops)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "face.onnx"
            try:
                write_onnx(path, self._bundle)
            except InputError as error:
                print(f"the ONNX export is not measured: {error}", file=sys.stderr)
                return runs
            for name, load in (("onnxruntime", load_onnxruntime), ("openvino", load_openvino)):
                try:
                    runs[f"{name}{_SUFFIX}"] = functools.partial(load(path, threads), crops)
                except ImportError as error:
                    print(f"{name} is not measured: {error}", file=sys.stderr)
        return runs

    def _torch_model(self, *, channels_last: bool, compiled: bool) -> "torch.nn.Module":
        model = TorchHRNet(ARCHS[self._args.arch], IBUG68.num_landmarks)
        model.load_state_dict(self._state)
        model = model.to(self._device, memory_format=_memory_format(channels_last))
        # Programs for dynamic shapes are slower.
        return torch.compile(model, dynamic=False) if compiled else model

    def _torch_tensor(self, array: np.ndarray, channels_last: bool) -> "torch.Tensor":
        tensor = torch.from_numpy(array).permute(0, 3, 1, 2).to(self._device)
        return tensor.contiguous(memory_format=_memory_format(channels_last))

    def _torch_inference(
        self,
        images: np.ndarray,
        *,
        channels_last: bool = False,
        autocast: bool = False,
        compiled: bool = False,
    ) -> Callable:
        model = self._torch_model(channels_last=channels_last, compiled=compiled).eval()
        x = self._torch_tensor(images, channels_last)

        def run():
            with torch.inference_mode(), self._autocast(autocast):
                logits = model(x)
            self._wait()
            return logits

        return run

    def _torch_training(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        *,
        channels_last: bool = False,
        autocast: bool = False,
        compiled: bool = False,
    ) -> Callable:
        model = self._torch_model(channels_last=channels_last, compiled=compiled).train()
        x, y = (self._torch_tensor(array, channels_last) for array in (images, targets))
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)

        def step():
            with self._autocast(autocast):
                logits = model(x)
            loss = torch.nn.functional.mse_loss(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self._wait()

        return step

    def _jax_training(
        self, images: np.ndarray, targets: np.ndarray, dtype: jnp.dtype
    ) -> TrainingStep:
        graphdef, params, batch_stats = self._bundle.create(dtype)
        optimizer = optax.adam(LEARNING_RATE)

        def loss_of(params, batch_stats, x, y):
            model = merge_weights(graphdef, params, batch_stats)
            logits, _ = model.heatmap_model(x, train=True)
            return jnp.square(logits.astype(jnp.float32) - y).mean(), batch_stats_of(model)

        def step(state, x, y):
            params, batch_stats, opt_state = state
            gradients, batch_stats = jax.grad(loss_of, has_aux=True)(params, batch_stats, x, y)
            updates, opt_state = optimizer.update(gradients, opt_state)
            return optax.apply_updates(params, updates), batch_stats, opt_state

        state = (params, batch_stats, optimizer.init(params))
        return TrainingStep(step, state, jnp.asarray(images), jnp.asarray(targets))

    def _autocast(self, enabled: bool):
        return torch.autocast(self._device, torch.bfloat16, enabled=enabled)

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _require_equal(self, ours: jax.Array, theirs: "torch.Tensor") -> None:
        ours = np.asarray(ours)
        difference = np.abs(ours - theirs.permute(0, 2, 3, 1).cpu().numpy()).max() / np.ptp(ours)
        if difference > TOLERANCES[self._device]:
            sys.exit(
                f"compare_libraries: the outputs of the networks differ by {difference:.1e} of their range"
            )


def load_onnxruntime(path: Path, threads: int) -> Callable[[np.ndarray], Any]:
    """Load an ONNX graph into onnxruntime; returns the function of the crops."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda crops: session.run(None, {INPUT: crops})


def load_openvino(path: Path, threads: int) -> Callable[[np.ndarray], Any]:
    """Load an ONNX graph into OpenVINO, in float32; returns the function of the crops."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.compile_model(path, "CPU", options).create_infer_request()
    return lambda crops: request.infer([crops])


def _kind(name: str) -> str:
    return SERVING if name.endswith(_SUFFIX) else NETWORK


def _ratios(times: dict[str, Timing]) -> dict[str, float]:
    """Ratios of the median times to that of JAX with the same dtype and task."""

    def reference(name):
        if _kind(name) == SERVING:
            return f"jax{_SUFFIX}"
        return "jax bfloat16" if "autocast" in name else "jax float32"

    return {
        name: time.median / times[reference(name)].median
        for name, time in times.items()
        if not name.startswith("jax")
    }


def format_result(result: dict[str, Any]) -> str:
    """Format a result as a table."""
    lines = [f"\n{result['task']:40}{'median':>10}{'quartiles':>22}{'over JAX':>10}"]
    for name, seconds in result["seconds"].items():
        low, high = (format_seconds(value) for value in seconds["quartiles"])
        ratio = result["over_jax"].get(name)
        lines.append(
            f"{name:40}{format_seconds(seconds['median']):>10}{f'{low} - {high}':>22}"
            + (f"{ratio:10.2f}" if ratio is not None else "")
        )
    roofline = result["roofline"]
    lines.append(
        f"roofline bound of jax float32: {format_seconds(roofline['seconds'])}, from its "
        + roofline["limit"]
    )
    for kind, name in result["best"].items():
        lines.append(f"best of the others, {kind}: {name}, {result['over_jax'][name]:.2f}")
    return "\n".join(lines)


def _normal(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _memory_format(channels_last: bool) -> "torch.memory_format":
    return torch.channels_last if channels_last else torch.contiguous_format


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()

"""Speed of HRNet in JAX and in PyTorch, with the same weights on the same device.

    python benchmarks/against_torch.py --json against_torch.json

requires `pip install '.[torch]'` (on a GPU, a CUDA build of PyTorch and '.[cuda]'). With '.[onnx]', it also
measures the ONNX export with onnxruntime on a CPU. Measurements are interleaved, so that other load affects
all of them equally. A ratio above 1 means that JAX is faster. On a busy machine, compare the CPU time of one
core:

    taskset -c 0 python benchmarks/against_torch.py --clock cpu --only inference
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

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lcgcn_jax.compilation import compiler_options
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
from lcgcn_jax.profiling.timing import Timing, format_seconds, measure

try:
    import torch
    from torch_hrnet import TorchHRNet
except ImportError:
    sys.exit("against_torch: PyTorch is not installed: pip install '.[torch]'")

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TASKS = ("inference", "training")
# Relative to the range of the outputs: float32 sums differ in order; TF32 has a mantissa of 10 bits.
TOLERANCES = {"cpu": 1e-4, "cuda": 1e-2}
LEARNING_RATE = 1e-4


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
            "against_torch: only one of JAX and PyTorch can use the GPU; set CUDA_VISIBLE_DEVICES="
        )
    if on_gpu and args.clock == "cpu":
        sys.exit("against_torch: --clock cpu does not measure a GPU; leave out --clock")
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
    """Functions to compare, by name, on the same `batch` faces; all return the same if `equal`."""

    name: str
    batch: int
    runs: dict[str, Callable]
    equal: bool


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
        libraries = ["jax", "jaxlib", "flax", "torch", "onnxruntime"]
        return {
            "network": f"HRNet {args.arch}, {args.image_size} px, {IBUG68.num_landmarks} landmarks",
            "device": jax.devices()[0].device_kind,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "clock": args.clock,
            "repetitions": args.repetitions,
            "versions": {name: _version(name) for name in libraries},
        }

    def inference(self, batch: int) -> Task:
        """Inference from normalized crops to logits; on a CPU also from bytes to landmarks, with ONNX."""
        images = _normal((batch, self._args.image_size, self._args.image_size, 3), 0)
        runs = {"jax float32": self._jax_inference(images, jnp.float32)}
        runs["torch eager float32"] = self._torch_inference(images)
        runs["torch eager float32, channels_last"] = self._torch_inference(
            images, channels_last=True
        )
        if self._device == "cuda":
            half = {"channels_last": True, "autocast": True}
            runs["jax bfloat16"] = self._jax_inference(images, jnp.bfloat16)
            runs["torch autocast, channels_last"] = self._torch_inference(images, **half)
            runs["torch compile, autocast, channels_last"] = self._torch_inference(
                images, **half, compiled=True
            )
        else:
            runs |= self._serving(batch)
        return Task(f"inference, batch {batch}", batch, runs, equal=True)

    def training(self, batch: int) -> Task:
        """Training steps: Adam on the squared error of the logits, with BatchNorm in training mode."""
        args, k = self._args, IBUG68.num_landmarks
        images = _normal((batch, args.image_size, args.image_size, 3), 0)
        targets = _normal((batch, args.image_size // 4, args.image_size // 4, k), 1)
        runs = {
            "jax float32": self._jax_training(images, targets, jnp.float32),
            "torch eager float32": self._torch_training(images, targets),
        }
        if self._device == "cuda":
            half = {"channels_last": True, "autocast": True}
            runs["jax bfloat16"] = self._jax_training(images, targets, jnp.bfloat16)
            runs["torch autocast, channels_last"] = self._torch_training(images, targets, **half)
            runs["torch compile, autocast, channels_last"] = self._torch_training(
                images, targets, **half, compiled=True
            )
        return Task(f"training, batch {batch}", batch, runs, equal=False)

    def measure(self, task: Task) -> dict[str, Any]:
        """Measure the functions of a task interleaved, and compute the ratios to JAX."""
        if task.equal:
            self._require_equal(task.runs["jax float32"](), task.runs["torch eager float32"]())
        args = self._args
        times = measure(task.runs, repetitions=args.repetitions, clock=CLOCKS[args.clock])
        return {
            "task": task.name,
            "batch": task.batch,
            "seconds": {
                name: {"median": t.median, "quartiles": list(t.quartiles)}
                for name, t in times.items()
            },
            "torch_over_jax": _ratios(times),
        }

    def _jax_inference(self, images: np.ndarray, dtype: jnp.dtype) -> Callable:
        weights = fold_batch_norm(*self._bundle.create(dtype))
        run = jax.jit(
            lambda x: merge_weights(*weights).heatmap_model(x, train=False)[0],
            compiler_options=compiler_options(),
        )
        return functools.partial(run, jnp.asarray(images))

    def _serving(self, batch: int) -> dict[str, Callable]:
        """Functions from bytes to landmarks: this package and its ONNX export; empty without '.[onnx]'."""
        try:
            import onnxruntime

            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "face.onnx"
                write_onnx(path, self._bundle)
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = torch.get_num_threads()
                session = onnxruntime.InferenceSession(
                    path, options, providers=["CPUExecutionProvider"]
                )
        except (ImportError, InputError) as error:
            print(f"onnxruntime is not measured: {error}", file=sys.stderr)
            return {}
        size = self._args.image_size
        crops = np.random.default_rng(2).integers(0, 256, (batch, size, size, 3), np.uint8)
        return {
            "jax, bytes to landmarks": functools.partial(
                LandmarkModel(self._bundle).predict_crops, crops
            ),
            "onnxruntime, bytes to landmarks": functools.partial(session.run, None, {INPUT: crops}),
        }

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

    def _jax_training(self, images: np.ndarray, targets: np.ndarray, dtype: jnp.dtype) -> Callable:
        graphdef, params, batch_stats = self._bundle.create(dtype)
        optimizer = optax.adam(LEARNING_RATE)

        def loss_of(params, batch_stats, x, y):
            model = merge_weights(graphdef, params, batch_stats)
            logits, _ = model.heatmap_model(x, train=True)
            return jnp.square(logits.astype(jnp.float32) - y).mean(), batch_stats_of(model)

        @functools.partial(jax.jit, donate_argnums=0, compiler_options=compiler_options())
        def step(state, x, y):
            params, batch_stats, opt_state = state
            gradients, batch_stats = jax.grad(loss_of, has_aux=True)(params, batch_stats, x, y)
            updates, opt_state = optimizer.update(gradients, opt_state)
            return optax.apply_updates(params, updates), batch_stats, opt_state

        state = (params, batch_stats, optimizer.init(params))
        x, y = jnp.asarray(images), jnp.asarray(targets)

        def run():
            nonlocal state
            state = step(state, x, y)
            return state

        return run

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
                f"against_torch: the outputs of the networks differ by {difference:.1e} of their range"
            )


def _ratios(times: dict[str, Timing]) -> dict[str, float]:
    """Ratios of the median times to that of JAX with the same dtype and task."""

    def reference(name):
        if "bytes" in name:
            return "jax, bytes to landmarks"
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
        ratio = result["torch_over_jax"].get(name)
        lines.append(
            f"{name:40}{format_seconds(seconds['median']):>10}{f'{low} - {high}':>22}"
            + (f"{ratio:10.2f}" if ratio is not None else "")
        )
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

"""Benchmarks of `lcgcn bench`: the model and its parts, a training step, and the input pipeline."""

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from lcgcn_jax import heatmaps
from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.cpu_kernels import kernel_prefix, with_cpu_kernels
from lcgcn_jax.data.augment import augment_face
from lcgcn_jax.data.encoding import decode_image
from lcgcn_jax.data.pipeline import Batch, train_iterator
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.models.bn_folding import fold_batch_norm
from lcgcn_jax.models.bundles import Bundle
from lcgcn_jax.models.functional import FunctionalModel
from lcgcn_jax.models.lcgcn import normalize_images
from lcgcn_jax.profiling.roofline import Cost, Peaks, measure_peaks
from lcgcn_jax.profiling.timing import Timing, measure
from lcgcn_jax.training.train_step import compute_dtype
from lcgcn_jax.training.trainer import Trainer

PREDICT_BATCH_SIZE = 64
"""Batch size of the throughput of prediction."""

_STEPS = 4  # training steps, or batches of the pipeline, per measurement


@dataclasses.dataclass(frozen=True)
class BenchmarkResult:
    """Measurement of one benchmark.

    Attributes:
      timing: time per iteration.
      faces: faces per iteration, or None.
      cost: cost of the program, or None if the benchmark is not a single program.
      roofline: roofline bound of the program in seconds, or None.
      bound: peak that limits it, `flops` or `bytes`, or None.
    """

    name: str
    timing: Timing
    faces: int | None = None
    cost: Cost | None = None
    roofline: float | None = None
    bound: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types; times are in seconds. A time of 0, a difference of two, gives no rate."""
        median = self.timing.median
        return {
            "median": median,
            "quartiles": list(self.timing.quartiles),
            "repetitions": len(self.timing.seconds),
            "faces": self.faces,
            "faces_per_second": self.faces / median if self.faces and median else None,
            "flops": None if self.cost is None else self.cost.flops,
            "bytes": None if self.cost is None else self.cost.bytes,
            "roofline": self.roofline,
            "bound": self.bound,
        }


class Measurements:
    """Benchmarks of a configuration on its data.

    Args:
      training: trainer with random weights, in its own working directory.
      workers: numbers of worker processes of the input pipeline to measure; 0: threads only.
    """

    def __init__(self, training: Trainer, *, repetitions: int, workers: tuple[int, ...]):
        self._training, self._config = training, training.config
        self._repetitions, self._workers = repetitions, workers
        self._batch_size: int = training.config.train.batch_size
        self.peaks: dict[str, Peaks] = {}  # by dtype

    def run(self, name: str) -> Iterator[BenchmarkResult]:
        """Run one of `BENCHMARKS`."""
        return BENCHMARKS[name](self)

    def compilation(self) -> Iterator[BenchmarkResult]:
        """Trace and compile the training step, and load it from the compilation cache; once each."""
        batch = self._batch
        with tempfile.TemporaryDirectory() as cache, _compilation_cache(cache):
            lowered, seconds = _timed(lambda: self._lower(batch))
            yield BenchmarkResult("train step: trace", Timing((seconds,)))
            _, seconds = _timed(lowered.compile)
            yield BenchmarkResult("train step: compile", Timing((seconds,)))
            jax.clear_caches()  # of the process, so that the program is loaded from the folder
            again = self._lower(batch)
            self._train_step, seconds = _timed(again.compile)
            yield BenchmarkResult("train step: compile, cached", Timing((seconds,)))

    def forward(self) -> Iterator[BenchmarkResult]:
        """Prediction on crops that lie on the device, and its parts apart."""
        yield self._program("forward", self._folded.predict, self._images)

    def decode(self) -> Iterator[BenchmarkResult]:
        """From heatmaps to landmarks, confidences and standard deviations."""
        functional = self._folded

        def decode(logits, maps):
            model = functional.merge()
            heatmap_std = heatmaps.heatmap_std(logits, activation=model.activation)
            return model.read_peaks(logits, maps), heatmap_std

        yield self._program("decode", decode, *self._maps)

    def graph(self) -> Iterator[BenchmarkResult]:
        """Graph head only; no result for a model without one."""
        if self._config.model.graph is None:
            return
        size = self._config.data.image_size
        functional = self._folded

        def refine(graph_inputs):
            return functional.refine(graph_inputs, size)

        graph_inputs = jax.jit(lambda *maps: functional.merge().read_peaks(*maps))(*self._maps)
        yield self._program("graph head", refine, graph_inputs)

    def train_step(self) -> Iterator[BenchmarkResult]:
        """Training steps on one batch on the devices."""
        step, batch = self._train_step, self._batch

        def steps():
            scalars = None
            for _ in range(_STEPS):
                self._training.state, scalars = step(self._training.state, batch)
            return scalars

        timing = self._time(steps, warmup=1).per(_STEPS)
        dtype = compute_dtype(self._config.train.dtype)
        yield self._result("train step", timing, Cost.of(step), dtype)

    def end_to_end(self) -> Iterator[BenchmarkResult]:
        """Training steps on batches from the input pipeline, as in the training loop."""
        step, training = self._train_step, self._training

        def steps():
            scalars = None
            for _ in range(_STEPS):
                batch, _ = training.next_batch()
                training.state, scalars = step(training.state, batch)
            return scalars

        yield BenchmarkResult("train, end to end", self._time(steps).per(_STEPS), self._batch_size)

    def stages(self) -> Iterator[BenchmarkResult]:
        """Stages of the input pipeline for one batch, in one thread."""
        data, scheme = self._config.data, self._training.dataset.scheme
        source = self._training.dataset.source(data.train_split)
        augment = data.augment
        rng = np.random.default_rng(self._config.seed)
        indices = [int(i) for i in rng.integers(0, len(source), self._batch_size)]
        records = [source[i] for i in indices]
        faces = [augment_face(r, scheme, data.image_size, augment, rng) for r in records]
        times = measure(
            {
                "read": lambda: [source[i] for i in indices],
                "decode": lambda: [decode_image(r["image"]) for r in records],
                "decode and augment": lambda: [
                    augment_face(r, scheme, data.image_size, augment, rng) for r in records
                ],
                "batch": lambda: {key: np.stack([face[key] for face in faces]) for key in faces[0]},
            },
            repetitions=self._repetitions,
        )
        # `augment_face` includes the decoding. The stages are interleaved, so repetitions can be subtracted.
        decode, both = times["decode"].seconds, times["decode and augment"].seconds
        warp = tuple(max(0.0, b - d) for b, d in zip(both, decode, strict=True))
        read = tuple(r + d for r, d in zip(times["read"].seconds, decode, strict=True))
        yield BenchmarkResult("input: read, decode", Timing(read), self._batch_size)
        yield BenchmarkResult("input: warp, augment", Timing(warp), self._batch_size)
        yield BenchmarkResult("input: batch", times["batch"], self._batch_size)

    def pipeline(self) -> Iterator[BenchmarkResult]:
        """Throughput of the input pipeline in isolation."""
        data = self._config.data
        for workers in self._workers:
            batches = train_iterator(
                self._training.dataset,
                data.train_split,
                image_size=data.image_size,
                batch_size=self._batch_size,
                seed=self._config.seed,
                augment=data.augment,
                num_workers=workers,
                num_threads=data.num_threads,
            )
            # Several batches per measurement, since some are prefetched before the first request.
            count = _STEPS * max(1, data.num_threads)
            with contextlib.closing(batches):
                timing = self._time(functools.partial(_take, batches, count), warmup=1)
            yield BenchmarkResult(f"input: {workers} workers", timing.per(count), self._batch_size)

    def predict(self) -> Iterator[BenchmarkResult]:
        """`LandmarkModel.predict_crops`, from uint8 crops to NumPy arrays: latency and throughput."""
        crops = np.resize(np.asarray(self._images), (PREDICT_BATCH_SIZE, *self._images.shape[1:]))
        for name, count in (("predict: latency", 1), ("predict: throughput", PREDICT_BATCH_SIZE)):
            call = functools.partial(self._model.predict_crops, crops[:count])
            yield BenchmarkResult(name, self._time(call), count)

    def _time(self, function: Callable[[], Any], *, warmup: int = 2) -> Timing:
        return measure({"": function}, repetitions=self._repetitions, warmup=warmup)[""]

    def _program(self, name: str, function: Callable, *arguments: Any) -> BenchmarkResult:
        """Compile and time a function of the prediction."""
        kernels = kernel_prefix(jax.default_backend(), build=True)
        traced = with_cpu_kernels(function, kernels)
        jitted = jax.jit(traced, compiler_options=compiler_options())
        program = jitted.lower(*arguments).compile()
        timing = self._time(lambda: program(*arguments))
        return self._result(name, timing, Cost.of(program), jnp.dtype(jnp.float32))

    def _result(self, name: str, timing: Timing, cost: Cost, dtype: jnp.dtype) -> BenchmarkResult:
        if dtype.name not in self.peaks:
            self.peaks[dtype.name] = measure_peaks(dtype)
        roofline, bound = cost.roofline(self.peaks[dtype.name])
        return BenchmarkResult(name, timing, self._batch_size, cost, roofline, bound)

    def _lower(self, batch: dict[str, jax.Array]) -> jax.stages.Lowered:
        return self._training.train_step.lower(self._training.state, batch)

    @functools.cached_property
    def _train_step(self) -> jax.stages.Compiled:
        return self._lower(self._batch).compile()

    @functools.cached_property
    def _batch(self) -> dict[str, jax.Array]:
        """Batch on the devices."""
        return self._training.next_batch()[0]

    @functools.cached_property
    def _images(self) -> jax.Array:
        """Crops of a batch on one device."""
        return jnp.asarray(np.asarray(self._batch["image"]))

    @functools.cached_property
    def _bundle(self) -> Bundle:
        params, batch_stats = self._training.state.evaluated
        # Copies, since the step donates the arrays.
        weights = jax.tree.map(np.array, params | batch_stats)
        config, scheme = self._config, self._training.dataset.scheme
        return Bundle(config.model.to_dict(), scheme, config.data.image_size, weights)

    @functools.cached_property
    def _folded(self) -> FunctionalModel:
        return fold_batch_norm(*self._bundle.create())

    @functools.cached_property
    def _model(self) -> LandmarkModel:
        return LandmarkModel(self._bundle)

    @functools.cached_property
    def _maps(self) -> tuple[jax.Array, jax.Array]:
        """Logits and features of the heatmap model."""
        functional = self._folded

        @jax.jit
        def run(images):
            model = functional.merge()
            logits, maps = model.heatmap_model(normalize_images(images), train=False)
            return logits.astype(jnp.float32), maps

        return run(self._images)


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def _take(batches: Iterator[Batch], count: int) -> None:
    for _ in range(count):
        next(batches)


@contextlib.contextmanager
def _compilation_cache(folder: str) -> Iterator[None]:
    """Cache every compiled program in a folder within the context."""
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    previous = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # JAX reads the folder only on the first use
        yield
    finally:
        for name, value in previous.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


BENCHMARKS: dict[str, Callable[[Measurements], Iterator[BenchmarkResult]]] = {
    "compile": Measurements.compilation,
    "forward": Measurements.forward,
    "decode": Measurements.decode,
    "graph": Measurements.graph,
    "predict": Measurements.predict,
    "train_step": Measurements.train_step,
    "end_to_end": Measurements.end_to_end,
    "stages": Measurements.stages,
    "pipeline": Measurements.pipeline,
}
"""Benchmarks by name, in the order of execution."""

"""What `lcgcn bench` measures: the model and its parts, a training step, and the input pipeline."""

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
from lcgcn_jax.data.augment import AugmentConfig, augment_face
from lcgcn_jax.data.pipeline import Batch, train_iterator
from lcgcn_jax.data.records import decode_image
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.models.bn_folding import fold_batch_norm
from lcgcn_jax.models.bundles import Bundle
from lcgcn_jax.models.functional import FunctionalModel
from lcgcn_jax.models.lcgcn import normalize_images
from lcgcn_jax.profiling.roofline import Cost, Peaks, measure_peaks
from lcgcn_jax.profiling.timing import Timing, measure
from lcgcn_jax.training import sharding
from lcgcn_jax.training.trainer import Trainer, compute_dtype

PREDICTED = 64
"""Faces at a time where the throughput of prediction is measured."""

_STEPS = 4  # of a training, or batches of the pipeline, that are timed together


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing that was measured.

    Attributes:
      name: what.
      timing: of one go.
      faces: in one go; None for what is not done for faces.
      cost: of the program, where it is one.
      floor: the least time that this cost takes at the device's peaks, in seconds.
      bound: by which peak, `flops` or `bytes`.
    """

    name: str
    timing: Timing
    faces: int | None = None
    cost: Cost | None = None
    floor: float | None = None
    bound: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """In plain types; times in seconds."""
        median = self.timing.median
        return {
            "median": median,
            "quartiles": list(self.timing.quartiles),
            "repetitions": len(self.timing.seconds),
            "faces": self.faces,
            "faces_per_second": None if self.faces is None else self.faces / median,
            "flops": None if self.cost is None else self.cost.flops,
            "bytes": None if self.cost is None else self.cost.bytes,
            "floor": self.floor,
            "bound": self.bound,
        }


class Measurements:
    """Measures a configuration on its data.

    Args:
      training: the model, with fresh weights, and the data; a run that nothing else uses.
      repetitions: measurements of each figure.
      workers: numbers of worker processes to try the input pipeline with; 0: threads of this process.
    """

    def __init__(self, training: Trainer, *, repetitions: int, workers: tuple[int, ...]):
        self._training, self._config = training, training.config
        self._repetitions, self._workers = repetitions, workers
        self._batch_size: int = training.config.train.batch_size
        self.peaks: dict[str, Peaks] = {}  # by the type that is computed in

    def run(self, part: str) -> Iterator[Row]:
        """The rows of one of `PARTS`."""
        return PARTS[part](self)

    def compilation(self) -> Iterator[Row]:
        """The training step: traced, compiled, and taken from the cache. Once each."""
        batch = self._batch
        with tempfile.TemporaryDirectory() as cache, _compilation_cache(cache):
            lowered, seconds = _timed(lambda: self._lower(batch))
            yield Row("train step: trace", Timing((seconds,)))
            _, seconds = _timed(lowered.compile)
            yield Row("train step: compile", Timing((seconds,)))
            jax.clear_caches()  # what is in memory, so that the program comes from the folder
            again = self._lower(batch)
            self._train_step, seconds = _timed(again.compile)
            yield Row("train step: compile, cached", Timing((seconds,)))

    def forward(self) -> Iterator[Row]:
        """Prediction on crops that lie on the device, and its parts apart."""
        yield self._program("forward", self._folded.predict, self._images)

    def decode(self) -> Iterator[Row]:
        """From heatmaps to landmarks, confidences and spreads."""
        functional = self._folded

        def decode(logits, maps):
            model = functional.merge()
            heatmap_std = heatmaps.heatmap_std(logits, activation=model.activation)
            return model.read_peaks(logits, maps), heatmap_std

        yield self._program("decode", decode, *self._maps)

    def graph(self) -> Iterator[Row]:
        """The graph head alone; no row for a model without one."""
        if self._config.model.graph is None:
            return
        size = self._config.data.image_size
        functional = self._folded

        def refine(graph_inputs):
            return functional.refine(graph_inputs, size)

        graph_inputs = jax.jit(lambda *maps: functional.merge().read_peaks(*maps))(*self._maps)
        yield self._program("graph head", refine, graph_inputs)

    def train_step(self) -> Iterator[Row]:
        """Training steps on one batch that lies on the devices."""
        step, batch = self._train_step, self._batch

        def steps():
            for _ in range(_STEPS):
                self._training.state, scalars = step(self._training.state, batch)
            return scalars

        cost = Cost.of(step)
        timing = measure({"": steps}, repetitions=self._repetitions, warmup=1)[""].per(_STEPS)
        yield self._with_floor(
            Row("train step", timing, self._batch_size, cost),
            compute_dtype(self._config.train.dtype),
        )

    def end_to_end(self) -> Iterator[Row]:
        """Training steps on batches from the input pipeline, as the training loop takes them."""
        step, training = self._train_step, self._training

        def steps():
            for _ in range(_STEPS):
                batch = next(training.batches)
                batch.pop("record")
                batch = sharding.put_batch(batch, training.mesh)
                training.state, scalars = step(training.state, batch)
            return scalars

        timing = measure({"": steps}, repetitions=self._repetitions, warmup=2)[""].per(_STEPS)
        yield Row("train, end to end", timing, self._batch_size)

    def stages(self) -> Iterator[Row]:
        """What the input pipeline does for a batch, stage by stage, in one thread."""
        data, scheme = self._config.data, self._training.dataset.scheme
        source = self._training.dataset.source(data.train_split)
        augment = AugmentConfig(**data.augment.to_dict())
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
        # `augment_face` decodes too; each repetition took its stages one after the other.
        decode, both = times["decode"].seconds, times["decode and augment"].seconds
        augment_alone = tuple(max(0.0, b - d) for b, d in zip(both, decode, strict=True))
        read = tuple(r + d for r, d in zip(times["read"].seconds, decode, strict=True))
        yield Row("input: read, decode", Timing(read), self._batch_size)
        yield Row("input: warp, augment", Timing(augment_alone), self._batch_size)
        yield Row("input: batch", times["batch"], self._batch_size)

    def pipeline(self) -> Iterator[Row]:
        """Batches of the whole input pipeline, with nobody else to wait for."""
        data = self._config.data
        for workers in self._workers:
            batches = train_iterator(
                self._training.dataset,
                data.train_split,
                image_size=data.image_size,
                batch_size=self._batch_size,
                seed=self._config.seed,
                augment=AugmentConfig(**data.augment.to_dict()),
                num_workers=workers,
                num_threads=data.num_threads,
            )
            # Several together: some lie ready when the first is asked for.
            count = _STEPS * max(1, data.num_threads)
            with contextlib.closing(batches):
                timing = measure(
                    {"": functools.partial(_take, batches, count)},
                    repetitions=self._repetitions,
                    warmup=1,
                )[""]
            yield Row(f"input: {workers} workers", timing.per(count), self._batch_size)

    def predict(self) -> Iterator[Row]:
        """`LandmarkModel.predict_crops`, from bytes to NumPy arrays: one face, and many."""
        crops = np.resize(np.asarray(self._images), (PREDICTED, *self._images.shape[1:]))
        for name, count in (("predict: latency", 1), ("predict: throughput", PREDICTED)):
            call = functools.partial(self._model.predict_crops, crops[:count])
            timing = measure({"": call}, repetitions=self._repetitions)[""]
            yield Row(name, timing, count)

    def _program(self, name: str, function: Callable, *arguments: Any) -> Row:
        """Times a program of prediction."""
        jitted = jax.jit(function, compiler_options=compiler_options())
        program = jitted.lower(*arguments).compile()
        timing = measure({"": lambda: program(*arguments)}, repetitions=self._repetitions)[""]
        row = Row(name, timing, self._batch_size, Cost.of(program))
        return self._with_floor(row, jnp.dtype(jnp.float32))

    def _with_floor(self, row: Row, dtype: jnp.dtype) -> Row:
        if dtype.name not in self.peaks:
            self.peaks[dtype.name] = measure_peaks(dtype)
        floor, bound = row.cost.floor(self.peaks[dtype.name])
        return dataclasses.replace(row, floor=floor, bound=bound)

    def _lower(self, batch: dict[str, jax.Array]) -> jax.stages.Lowered:
        return self._training.train_step.lower(self._training.state, batch)

    @functools.cached_property
    def _train_step(self) -> jax.stages.Compiled:
        return self._lower(self._batch).compile()

    @functools.cached_property
    def _batch(self) -> dict[str, jax.Array]:
        """A batch on the devices."""
        batch = next(self._training.batches)
        batch.pop("record")
        return sharding.put_batch(batch, self._training.mesh)

    @functools.cached_property
    def _images(self) -> jax.Array:
        """Crops of a batch, on one device."""
        return jnp.asarray(np.asarray(self._batch["image"]))

    @functools.cached_property
    def _bundle(self) -> Bundle:
        params, batch_stats = self._training.state.evaluated
        weights = jax.tree.map(np.array, params | batch_stats)  # copies: the step donates them
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
    """Within, compiled programs are kept in this folder alone, however quick they were to compile."""
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it keeps the folder that it was first used with
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


PARTS: dict[str, Callable[[Measurements], Iterator[Row]]] = {
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
"""What can be measured, in the order in which it is."""

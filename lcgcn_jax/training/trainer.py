"""Training run: data, model, optimizer, restore, loop."""

import dataclasses
import logging
import math
import signal
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from lcgcn_jax.allocator import allocator_advice
from lcgcn_jax.cpu_kernels import compiler_advice
from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.data.mixture import FaceMixture
from lcgcn_jax.data.pipeline import TrainIterator, train_iterator, view_order
from lcgcn_jax.distributed import is_primary_process, preemption_guard, raise_on_all_processes
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.face_errors import SplitErrors, errors_of, split_errors
from lcgcn_jax.evaluation.mean_face import mean_shape
from lcgcn_jax.interrupts import Interrupted
from lcgcn_jax.models.bundles import BEST, WEIGHTS, Bundle, save_bundle
from lcgcn_jax.models.lcgcn import MEAN_SHAPES, GraphInputs, LCGCNOutput
from lcgcn_jax.models.weights import Weights
from lcgcn_jax.storage import BucketPath, as_path, check_access
from lcgcn_jax.training import sharding
from lcgcn_jax.training.checkpoints import Checkpoints, latest_checkpoint
from lcgcn_jax.training.config_checks import check_config
from lcgcn_jax.training.config_types import Config, describe_steps, resolve_steps
from lcgcn_jax.training.feature_cache import CachedBatches, FeatureCache
from lcgcn_jax.training.metric_writer import TENSORBOARD, MetricWriter, check_loggers
from lcgcn_jax.training.optimizer import TRAINED
from lcgcn_jax.training.pretrained import load_pretrained_weights
from lcgcn_jax.training.run_lock import RunLock, needs_writing, read_run_config
from lcgcn_jax.training.state import TrainState
from lcgcn_jax.training.steps import make_inference_step
from lcgcn_jax.training.train_data import open_train_data, require_visibility_labels
from lcgcn_jax.training.train_step import TrainStep, build_train_step, init_weights

_LOGGER = logging.getLogger("lcgcn_jax")


@dataclasses.dataclass(frozen=True)
class _StepResult:
    """Scalars of a step and its records, to check while the next step runs."""

    step: int
    scalars: dict[str, jax.Array]
    records: np.ndarray


class Trainer:
    """One training run.

    The constructor only checks the configuration. `prepare`, which `run` calls, opens the data, locks the
    workdir, and restores the state. Most of the attributes below exist only after it.

    Args:
      config: fields as in `config_types.Config`.
      workdir: folder of the run. With checkpoints of the same configuration the run resumes from the latest.
      mesh: devices to train on; all of them by default.
      feature_cache: with `train.cache`: cache of another run with the same frozen heatmap model.
      accept_changes: resume even if the configuration or the data differ from those of the run.
      overridden: names of the config fields that were set on the command line; see `resolve_steps`.
      loggers: where metrics are logged, in addition to `metrics.jsonl` (`metric_writer.LOGGERS`).

    Attributes:
      config: typed configuration, with all lengths in steps.
      dataset: data of the validation faces and the mean shape.
      mixture: data to train on.
      num_faces: faces in an epoch.
      schedules: learning rate of each parameter group that trains.
      start_message: pretrained weights, and a best model that will be replaced; empty for a run that resumes.
      best_nme: lowest validation NME so far, in percent.
      stopped_by: signal that ended `run` early.

    Raises:
      InputError: the configuration cannot be used.
    """

    dataset: FaceDataset
    mixture: FaceMixture
    num_faces: int
    mesh: jax.sharding.Mesh
    train_step: jax.stages.Wrapped
    schedules: dict[str, Callable]
    checkpoints: Checkpoints
    state: TrainState
    batches: TrainIterator | CachedBatches

    def __init__(
        self,
        config: ml_collections.ConfigDict | Config,
        workdir: Path,
        mesh: jax.sharding.Mesh | None = None,
        *,
        feature_cache: FeatureCache | None = None,
        accept_changes: bool = False,
        overridden: Collection[str] = (),
        loggers: Sequence[str] = (TENSORBOARD,),
    ):
        check_loggers(loggers)
        fields = config.to_dict()
        check_config(ml_collections.ConfigDict(fields))
        self.config = Config.from_dict(fields)
        self.workdir = as_path(workdir)
        self._mesh = mesh
        self.feature_cache = feature_cache
        self.start_message = ""
        self.best_nme = math.inf
        self.stopped_by: signal.Signals | None = None
        self._accept_changes, self._overridden = accept_changes, overridden
        self._loggers = loggers
        self._lock: RunLock | None = None

    def prepare(self) -> "Trainer":
        """Open the data and the workdir, build the training step, and restore the state, once.

        Raises:
          InputError: the data or the workdir cannot be used. A workdir that did not exist is not created.
        """
        if self._lock is not None:
            return self
        self._open_data()
        step = self._build_steps()
        self._restore(step)
        return self

    def describe_start(self) -> list[str]:
        """Lines on the devices, the length of the training, and where the prepared run starts."""
        lines = [
            f"on {sharding.describe_devices()}",
            describe_steps(self.config, self.num_faces),
            f"resuming from step {self.step:,}" if self.step else self.start_message,
            allocator_advice(),
            compiler_advice() if sharding.is_one_cpu(self.mesh) else "",
        ]
        return [line for line in lines if line]

    # ------------------------------------------ Data ------------------------------------------

    def _open_data(self) -> None:
        config = self.config
        if config.train.cache and jax.process_count() > 1:
            raise InputError("config train.cache: works in one process only; set it to false")
        raise_on_all_processes(lambda: check_access(self.workdir))
        self.dataset, self.mixture = raise_on_all_processes(lambda: open_train_data(config))
        self.num_faces = self.mixture.num_faces(config.data.train_split)
        previous = None
        if not self._accept_changes:
            previous = raise_on_all_processes(lambda: read_run_config(self.workdir))
        self.config = resolve_steps(config, self.num_faces, previous, self._overridden)

    # ----------------------------------- Model and optimizer -----------------------------------

    def _build_steps(self) -> TrainStep:
        data = self.config.data
        self.mesh = sharding.make_mesh() if self._mesh is None else self._mesh
        step = build_train_step(self.config, self.dataset.scheme.num_landmarks, self.mesh)
        self.train_step, self.schedules = step.compiled, step.schedules
        self._predict_step, self._refine_step, self._detect_step = (
            sharding.compile_predict_step(function, self.mesh)
            for function in (
                make_inference_step(step.model.graphdef, "predict"),
                make_inference_step(step.model.graphdef, "refine", data.image_size),
                make_inference_step(step.model.graphdef, "detect"),
            )
        )
        self._has_visibility = step.model.merge().visibility is not None
        if self._has_visibility and "graph" in TRAINED[self.config.train.mode]:
            raise_on_all_processes(
                lambda: require_visibility_labels(self.mixture, data.train_split)
            )
        return step

    # ----------------------------------------- Restore -----------------------------------------

    def _restore(self, step: TrainStep) -> None:
        """Lock the workdir and set the state.

        1. The workdir has checkpoints: resume from the latest that is complete. If all of them are damaged,
           raise, because starting again would overwrite a run that can perhaps be repaired.
        2. The workdir has none, and `init_from` is set: start from pretrained weights.
        3. Otherwise: start from random weights.
        """
        config, start = self.config, None
        if latest_checkpoint(self.workdir) is None:
            start = self._initial_weights(step)  # before the lock: an error leaves no folder behind
        self._lock = raise_on_all_processes(
            lambda: RunLock(
                self.workdir,
                config,
                self.dataset,
                sources=self.mixture.datasets if config.data.sources else (),
                accept_changes=self._accept_changes,
            )
        )
        try:
            self.checkpoints = raise_on_all_processes(
                lambda: Checkpoints(self.workdir, config.train.keep)
            )
            progress = None
            if self.checkpoints.latest is not None:
                self.state, progress = self.checkpoints.load(step.abstract_state())
                self.best_nme = progress["best_nme"] or math.inf
                self._check_best()
            else:
                assert start is not None
                self.state = step.init_state(*start)
            raise_on_all_processes(self._lock.write_config)
            self.feature_cache = self._create_feature_cache() if config.train.cache else None
            self.batches = self._open_batches()
            if progress is not None:
                self.batches.set_state(progress["batches"])
        except BaseException:
            self._lock.close()
            self._lock = None
            raise

    def _check_best(self) -> None:
        """Forget the best model of a resumed run if its files are missing or damaged."""
        path = self.workdir / BEST / WEIGHTS
        # With several processes, one that cannot read the file would wait for the others.
        if math.isinf(self.best_nme) or jax.process_count() > 1 or isinstance(path, BucketPath):
            return
        try:
            with safe_open(path, "np"):
                pass
        except (OSError, SafetensorError):
            self.best_nme = math.inf
            _LOGGER.warning(
                "lcgcn: %s: missing or damaged; the best of the next validations replaces it", path
            )

    # ------------------------------------------ Loop ------------------------------------------

    def run(self, *, on_validation: Callable[[int, dict[str, float]], None] | None = None) -> bool:
        """Train up to `config.train.steps`.

        Args:
          on_validation: called after each validation with the step and the metrics.

        Returns:
          Whether the last step was reached. False: SIGINT, SIGTERM or SIGHUP ended the run after saving a
          checkpoint, and `stopped_by` is the signal.

        Raises:
          FloatingPointError: the loss, its gradient, a parameter or a validation error is not finite; the
            latest checkpoint stays unchanged.
          InputError: the data or the workdir cannot be used, or the workdir can no longer be written; the
            latest checkpoint stays unchanged.
        """
        self.prepare()
        assert self._lock is not None
        train, is_primary = self.config.train, is_primary_process()
        steps, eval_every, checkpoint_every = train.steps, train.eval_every, train.checkpoint_every
        assert steps is not None
        assert eval_every is not None
        assert checkpoint_every is not None
        bar = tqdm(
            total=steps, initial=self.step, desc="train", unit="step", disable=not is_primary
        )
        with (
            preemption_guard() as stop_after,
            closing(self._lock),
            ExitStack() as stack,
            closing(self.batches),
            bar,
        ):
            log = raise_on_all_processes(lambda: self._open_log() if is_primary else None)
            if log is not None:
                stack.enter_context(closing(log))

            def write(step: int, values: dict[str, float]) -> None:
                raise_on_all_processes(lambda: None if log is None else log.write(step, values))

            def validate(step: int) -> None:
                metrics = self._validate_and_save_best()
                write(step, metrics)
                if on_validation is not None:
                    on_validation(step, metrics)

            if self.step >= steps and math.isinf(self.best_nme):
                validate(self.step)
            if self.step < steps:
                bar.set_postfix_str("compiling")
            pending: _StepResult | None = None
            logged_step, logged_at = self.step, time.perf_counter()
            for step in range(self.step + 1, steps + 1):
                result = self._take_step(step)
                # Checks the previous step while this one runs, so that the device does not wait.
                self._require_finite(pending)
                if pending is None:
                    bar.set_postfix_str("")
                pending = result
                bar.update()
                is_last = step == steps

                if is_last or step % train.log_every == 0:
                    values = self._train_metrics(pending)
                    now = time.perf_counter()
                    values["steps_per_second"] = (step - logged_step) / (now - logged_at)
                    logged_step, logged_at = step, now
                    self._require_finite(pending)
                    write(step, values)
                    bar.set_postfix(loss=f"{values['train/loss']:.4f}")

                if is_last or step % eval_every == 0:
                    self._require_finite(pending)
                    validate(step)
                    logged_step, logged_at = step, time.perf_counter()

                stop = stop_after(step)
                if is_last or stop is not None or step % checkpoint_every == 0:
                    self._require_finite(pending)
                    raise_on_all_processes(lambda: None if log is None else log.flush())
                    self._save_checkpoint()
                if stop is not None and not is_last:
                    self.stopped_by = stop
                    break
        return self.step >= steps

    def _take_step(self, step: int) -> _StepResult:
        batch, records = self.next_batch()
        self.state, scalars = self.train_step(self.state, batch)
        return _StepResult(step, scalars, records)

    def next_batch(self) -> tuple[dict[str, Any], np.ndarray]:
        """Take a training batch. Returns it on the devices, and the numbers of its faces."""
        batch = next(self.batches)
        records = batch.pop("record")
        if not self._has_visibility:
            batch.pop("visibility")
        return sharding.put_batch(batch, self.mesh), records

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return int(self.state.step)

    def predict(self, images: np.ndarray) -> LCGCNOutput:
        """Predict this process's part of a batch of crops, with the weights to evaluate."""
        params, batch_stats = self.state.evaluated
        batch = sharding.put_batch(images, self.mesh)
        return sharding.get_batch(self._predict_step(params, batch_stats, batch))

    def validate(
        self, corruption: str = "none", *, dataset: FaceDataset | None = None
    ) -> SplitErrors:
        """Errors of both stages on the validation split, with ground-truth boxes.

        Args:
          dataset: dataset of the faces; `data.dir` by default.
        """
        split, dataset = self.config.data.validation_split, dataset or self.dataset
        if self.feature_cache is not None:
            batches = self.feature_cache.split(dataset, split, corruption)
            return errors_of(
                ((self._refine(graph_inputs), batch) for graph_inputs, batch in batches),
                dataset.scheme,
            )
        return split_errors(
            self.predict,
            dataset,
            split,
            image_size=self.config.data.image_size,
            batch_size=self.config.train.batch_size,
            corruption=corruption,
        )

    def interruption(self) -> Interrupted:
        """Exception for a command to raise after a signal ended `run`."""
        assert self.stopped_by is not None, "no signal ended the run"
        stop = Interrupted(self.stopped_by)
        stop.saved = (
            f"{self.workdir}: saved at step {self.step:,}; the same command resumes the run"
        )
        return stop

    def _initial_weights(self, step: TrainStep) -> tuple[Weights, Weights]:
        config, scheme = self.config, self.dataset.scheme
        params, batch_stats = init_weights(config, scheme.num_landmarks)
        if names := batch_stats.keys() & set(MEAN_SHAPES):
            shape = mean_shape(self.dataset, config.data.train_split)
            # An array for each name, because the training step donates them.
            batch_stats |= {name: jnp.array(shape, jnp.float32) for name in names}
        if (self.workdir / BEST).is_dir():
            self.start_message = (
                f"{self.workdir}: has a best model but no checkpoint, so the run starts again at step 0 and "
                "replaces it"
            )
        if config.init_from:
            model = step.model.merge()
            params, batch_stats, message = raise_on_all_processes(
                lambda: load_pretrained_weights(config, scheme, model, params, batch_stats)
            )
            self.start_message = "; ".join(filter(None, (self.start_message, message)))
        return params, batch_stats

    def _open_batches(self) -> TrainIterator | CachedBatches:
        data, batch_size, seed = self.config.data, self.config.train.batch_size, self.config.seed
        if self.feature_cache is not None:
            order = view_order(
                self.mixture, data.train_split, batch_size=batch_size, seed=seed, views=data.views
            )
            return CachedBatches(
                order, self.feature_cache.training_views(data.train_split, data.augment, data.views)
            )
        return train_iterator(
            self.mixture,
            data.train_split,
            image_size=data.image_size,
            batch_size=batch_size,
            seed=seed,
            augment=data.augment,
            views=data.views,
            num_workers=data.num_workers,
            num_threads=data.num_threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _open_log(self) -> MetricWriter:
        assert self._lock is not None
        config, require_held = self.config.to_dict(), self._lock.require_held
        return MetricWriter(
            self.workdir, self.step, self._loggers, config, require_held=require_held
        )

    def _create_feature_cache(self) -> FeatureCache:
        if self.feature_cache is not None:
            return self.feature_cache
        # Copies, because the training step donates the arrays of the state.
        frozen = jax.tree.map(jnp.copy, (self.state.params, self.state.batch_stats))
        mesh, step = self.mesh, self._detect_step

        # Without `self`, because the cache outlives this run.
        def detect(images: np.ndarray) -> GraphInputs:
            return jax.tree.map(np.asarray, step(*frozen, sharding.put_batch(images, mesh)))

        return FeatureCache(
            detect,
            self.mixture,
            image_size=self.config.data.image_size,
            batch_size=self.config.train.batch_size,
        )

    def _refine(self, graph_inputs: GraphInputs) -> LCGCNOutput:
        batch = sharding.put_batch(graph_inputs, self.mesh)
        return jax.tree.map(np.asarray, self._refine_step(*self.state.evaluated, batch))

    def _train_metrics(self, result: _StepResult) -> dict[str, float]:
        metrics = {f"train/{name}": float(value) for name, value in result.scalars.items()}
        for group, schedule in self.schedules.items():
            metrics[f"learning_rate/{group}"] = float(schedule(result.step - 1))
        return metrics

    def _save_checkpoint(self) -> None:
        progress: dict[str, Any] = {
            "batches": self.batches.get_state(),
            "best_nme": None if math.isinf(self.best_nme) else self.best_nme,
        }
        assert self._lock is not None
        raise_on_all_processes(self._lock.require_held)
        self.checkpoints.save(self.state, progress)

    def _validate_and_save_best(self) -> dict[str, float]:
        errors = self.validate()
        metrics = {f"validation/{stage}_nme": 100 * mean for stage, mean in errors.mean().items()}
        visibility = errors.visibility_summary()
        if visibility is not None and visibility["auroc"] is not None:
            metrics["validation/visibility_auroc"] = 100 * visibility["auroc"]
        last_stage = "graph" if "graph" in TRAINED[self.config.train.mode] else "heatmap"
        nme = metrics[f"validation/{last_stage}_nme"]
        if not math.isfinite(nme):
            raise FloatingPointError(f"the validation error is {nme} at step {self.step}")
        if nme < self.best_nme:
            self.best_nme = nme
            assert self._lock is not None
            raise_on_all_processes(self._lock.require_held)
            raise_on_all_processes(
                lambda: self._save_best(metrics) if is_primary_process() else None
            )
        return metrics

    def _save_best(self, metrics: dict[str, float]) -> None:
        params, batch_stats = self.state.evaluated
        bundle = Bundle(
            self.config.model.to_dict(),
            self.dataset.scheme,
            self.config.data.image_size,
            params | batch_stats,
            flip_bias=self.config.data.augment.flip_bias,
        )
        lines = [f"- {name}: {value:.3f} %" for name, value in sorted(metrics.items())]
        card = (
            f"# {self.workdir.name}\n\nBest validation of a training run, at step {self.step} of "
            f"{self.config.train.steps}.\n\nData: {self.dataset.name}, {self.dataset.scheme.name}; "
            f"ground-truth boxes, no flip test.\n\n" + "\n".join(lines) + "\n"
        )
        with needs_writing(self.workdir / BEST):
            save_bundle(self.workdir / BEST, bundle, card)

    def _require_finite(self, result: _StepResult | None) -> None:
        if result is None:
            return
        # All three, because a ReLU can hide a NaN from the loss (`compilation.compiler_options`).
        for name in ("loss", "gradient_norm", "parameter_norm"):
            value = float(result.scalars[name])
            if not math.isfinite(value):
                break
        else:
            return
        faces = self.mixture.names(self.config.data.train_split, result.records)
        rates = {group: rate(result.step - 1) for group, rate in self.schedules.items()}
        rates_text = ", ".join(f"{group} {float(rate):g}" for group, rate in rates.items())
        raise FloatingPointError(
            f"the {name.replace('_', ' ')} is {value} at step {result.step} (learning rate: {rates_text}); "
            f"faces of the batch: {', '.join(faces)}"
        )

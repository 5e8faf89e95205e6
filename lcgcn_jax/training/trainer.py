"""The training loop: from a configuration and a folder to a trained model, or on from where it stopped."""

import math
import signal
import time
from collections.abc import Callable, Collection
from contextlib import closing, nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from tqdm import tqdm

from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.data.dataset import FaceDataset, open_dataset
from lcgcn_jax.data.mixture import FaceMixture
from lcgcn_jax.data.pipeline import TrainIterator, train_iterator, view_order
from lcgcn_jax.distributed import is_primary_process, preemption_guard, raise_on_all_processes
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.evaluator import SplitErrors, errors_of, mean_shape, split_errors
from lcgcn_jax.interrupts import Interrupted
from lcgcn_jax.landmarks import get_scheme
from lcgcn_jax.models.bundles import BEST, Bundle, save_bundle
from lcgcn_jax.models.lcgcn import MEAN_SHAPES, GraphInputs, LCGCNOutput
from lcgcn_jax.models.registry import create_model
from lcgcn_jax.models.weights import split_weights
from lcgcn_jax.training import sharding
from lcgcn_jax.training.checkpoints import Checkpoints, latest_checkpoint
from lcgcn_jax.training.config import resolve_steps
from lcgcn_jax.training.config_checks import check_config, check_image_size
from lcgcn_jax.training.feature_cache import CachedBatches, FeatureCache
from lcgcn_jax.training.metric_writer import MetricWriter
from lcgcn_jax.training.optimizer import TRAINED, make_optimizer, trained_names
from lcgcn_jax.training.pretrained import load_pretrained_weights
from lcgcn_jax.training.run_lock import RunLock, needs_writing, read_run_config
from lcgcn_jax.training.state import TrainState, create_state
from lcgcn_jax.training.steps import (
    check_losses,
    make_detect_step,
    make_predict_step,
    make_refine_step,
    make_train_step,
)


def compute_dtype(name: str) -> jnp.dtype:
    """Type to compute in: `float32`, `bfloat16`, or `auto`, bfloat16 where there is an accelerator."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise InputError(
            f"config train.dtype: unknown type {name!r}; use float32, bfloat16 or auto"
        )
    return jnp.dtype(name)


class Trainer:
    """One run: the model, the data and the state, from a configuration.

    Args:
      config: as `training.config.default_config` describes.
      workdir: the run's folder. One that has checkpoints of the same configuration goes on from the
        latest.
      mesh: devices to train on; all of them by default.
      graph_inputs: with `train.cache`, what another run with the same heatmap model has computed already.
      accept_changes: go on also where configuration or data are not those that the run began with.
      overridden: names of the config fields that were set on the command line; see `resolve_steps`.

    Raises:
      InputError: data, configuration or folder cannot be used.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        mesh: jax.sharding.Mesh | None = None,
        *,
        graph_inputs: FeatureCache | None = None,
        accept_changes: bool = False,
        overridden: Collection[str] = (),
    ):
        check_config(config)
        self.workdir = Path(workdir)
        self.mesh = sharding.make_mesh() if mesh is None else mesh
        sharding.check_batch_size(config.train.batch_size, self.mesh)
        self.dataset = raise_on_all_processes(lambda: _open_data(config))
        self.mixture = raise_on_all_processes(lambda: _open_mixture(config, self.dataset))
        if config.train.cache and jax.process_count() > 1:
            raise InputError("config train.cache: is for one process; set it to false")
        # An epoch's steps see each of them once.
        self.num_faces = self.mixture.num_faces(config.data.train_split)
        config = self.config = resolve_steps(
            config,
            self.num_faces,
            None
            if accept_changes
            else raise_on_all_processes(lambda: read_run_config(self.workdir)),
            overridden,
        )
        model = create_model(
            config.model.to_dict(),
            self.dataset.scheme.num_landmarks,
            dtype=compute_dtype(config.train.dtype),
            remat=config.train.remat,
            rngs=nnx.Rngs(config.seed),
        )
        check_losses(config.loss.to_dict(), model.activation)
        check_image_size(config.data.image_size, model.heatmap_model.stride)
        self._has_visibility = model.visibility is not None
        if self._has_visibility:
            raise_on_all_processes(
                lambda: _require_visibility_labels(self.mixture, config.data.train_split)
            )
        self.graphdef, params, batch_stats = split_weights(model)
        if shapes := batch_stats.keys() & set(MEAN_SHAPES):
            shape = jnp.asarray(mean_shape(self.dataset, config.data.train_split), jnp.float32)
            batch_stats |= dict.fromkeys(shapes, shape)
        self.begins = ""  # what it begins with, in words
        # A run that goes on has them in its checkpoint.
        if config.init_from and latest_checkpoint(self.workdir) is None:
            params, batch_stats, self.begins = raise_on_all_processes(
                lambda: load_pretrained_weights(
                    config, self.dataset.scheme, model, params, batch_stats
                )
            )
        mode = config.train.mode
        trained = trained_names(mode, params)
        optimizer, self.schedules = make_optimizer(
            config.optimizer.to_dict(), mode, config.train.steps
        )
        self._claim = raise_on_all_processes(
            lambda: RunLock(
                self.workdir,
                config,
                self.dataset,
                sources=self.mixture.datasets if config.data.sources else (),
                accept_changes=accept_changes,
            )
        )
        state = create_state(
            params, batch_stats, optimizer, trained, with_ema=config.train.ema_decay > 0
        )
        self.state: TrainState = jax.device_put(state, sharding.replicated(self.mesh))
        self.train_step = sharding.compile_train_step(
            make_train_step(
                self.graphdef,
                optimizer,
                trained,
                mode=mode,
                loss_config=config.loss.to_dict(),
                image_size=config.data.image_size,
                ema_decay=config.train.ema_decay,
            ),
            self.mesh,
        )
        self._predict_step = sharding.compile_predict_step(
            make_predict_step(self.graphdef), self.mesh
        )
        self._refine_step = sharding.compile_predict_step(
            make_refine_step(self.graphdef, config.data.image_size), self.mesh
        )
        self.best_nme = math.inf
        self.stopped_by: signal.Signals | None = None  # the signal that ended `run` before its end
        self.checkpoints = Checkpoints(self.workdir, config.train.keep)
        progress = None
        if self.checkpoints.latest is not None:
            self.state, progress = self.checkpoints.load(self.state)
            self.best_nme = progress["best_nme"] or math.inf
        raise_on_all_processes(self._claim.adopt)
        # Only now, since what it keeps is of the weights as they are.
        self.graph_inputs = None
        if config.train.cache:
            self.graph_inputs = self._feature_cache() if graph_inputs is None else graph_inputs
        self.batches = self._open_batches()
        if progress is not None:
            self.batches.set_state(progress["batches"])

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return int(self.state.step)

    def predict(self, images: np.ndarray):
        """The model as it would be evaluated now, on this process's part of a batch of crops."""
        params, batch_stats = self.state.evaluated
        batch = sharding.put_batch(images, self.mesh)
        output = self._predict_step(params, batch_stats, batch)
        start = jax.process_index() * len(images)
        return jax.tree.map(lambda x: np.asarray(x)[start : start + len(images)], output)

    def validate(self, corruption: str = "none") -> SplitErrors:
        """Errors of both stages over the validation split, with ground-truth boxes."""
        split = self.config.data.validation_split
        if self.graph_inputs is not None:
            return errors_of(
                (
                    (self._refine(graph_inputs), batch)
                    for graph_inputs, batch in self.graph_inputs.split(split, corruption)
                ),
                self.dataset.scheme,
            )
        return split_errors(
            self.predict,
            self.dataset,
            split,
            image_size=self.config.data.image_size,
            batch_size=self.config.train.batch_size,
            corruption=corruption,
        )

    def run(self, *, on_validation: Callable[[int, dict[str, float]], None] | None = None) -> bool:
        """Trains up to `config.train.steps`.

        Args:
          on_validation: called with the step and the figures after each validation.

        Returns:
          Whether the last step was reached; False where SIGINT, SIGTERM or SIGHUP ended the run,
          after saving; `stopped_by` is then the signal.

        Raises:
          FloatingPointError: the loss, its gradient, a parameter or a validation error is not finite; the
            latest checkpoint stays as it is.
          InputError: the folder cannot be written any more; so does it then.
        """
        train = self.config.train
        bar = tqdm(
            total=train.steps,
            initial=self.step,
            desc="train",
            unit="step",
            disable=not is_primary_process(),
        )
        log = (
            closing(MetricWriter(self.workdir, self.step))
            if is_primary_process()
            else nullcontext()
        )
        pending: tuple[int, dict, np.ndarray] | None = None
        since, started = self.step, time.perf_counter()
        with (
            preemption_guard() as stop_after,
            closing(self._claim),
            log as writer,
            closing(self.batches),
            bar,
        ):
            for step in range(self.step + 1, train.steps + 1):
                batch = next(self.batches)
                records = batch.pop("record")
                if not self._has_visibility:
                    batch.pop("visibility")
                self.state, scalars = self.train_step(
                    self.state, sharding.put_batch(batch, self.mesh)
                )
                # The step before is looked at while this one runs, so the device does not wait.
                self._require_finite(pending)
                pending = (step, scalars, records)
                bar.update()
                last = step == train.steps
                if last or step % train.log_every == 0:
                    values = {f"train/{name}": float(value) for name, value in scalars.items()}
                    for group, schedule in self.schedules.items():
                        values[f"learning_rate/{group}"] = float(schedule(step - 1))
                    now = time.perf_counter()
                    values["steps_per_second"] = (step - since) / (now - started)
                    since, started = step, now
                    self._require_finite(pending)
                    if writer is not None:
                        writer.write(step, values)
                    bar.set_postfix(loss=f"{values['train/loss']:.4f}")
                if last or step % train.eval_every == 0:
                    self._require_finite(pending)
                    figures = self._validate_and_keep_best()
                    if writer is not None:
                        writer.write(step, figures)
                    if on_validation is not None:
                        on_validation(step, figures)
                    since, started = step, time.perf_counter()
                stop = stop_after(step)
                if last or stop is not None or step % train.checkpoint_every == 0:
                    self._require_finite(pending)
                    self._save()
                if stop is not None and not last:
                    self.stopped_by = stop
                    break
        return self.step == train.steps

    def interruption(self) -> Interrupted:
        """The exception for commands to raise after a signal ended `run`."""
        assert self.stopped_by is not None, "no signal ended the run"
        stop = Interrupted(self.stopped_by)
        stop.kept = f"{self.workdir}: saved at step {self.step:,}; the same command goes on"
        return stop

    def _open_batches(self) -> TrainIterator | CachedBatches:
        config = self.config
        split, augment = config.data.train_split, AugmentConfig(**config.data.augment.to_dict())
        batch_size, seed, views = config.train.batch_size, config.seed, config.data.views
        if self.graph_inputs is not None:
            order = view_order(self.dataset, split, batch_size=batch_size, seed=seed, views=views)
            return CachedBatches(order, self.graph_inputs.training_views(split, augment, views))
        return train_iterator(
            self.mixture,
            split,
            image_size=config.data.image_size,
            batch_size=batch_size,
            seed=seed,
            augment=augment,
            views=views,
            num_workers=config.data.num_workers,
            num_threads=config.data.num_threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _feature_cache(self) -> FeatureCache:
        step = sharding.compile_predict_step(make_detect_step(self.graphdef), self.mesh)
        # The training step donates the state's own arrays.
        frozen = jax.tree.map(jnp.copy, (self.state.params, self.state.batch_stats))

        def detect(images: np.ndarray) -> GraphInputs:
            return jax.tree.map(np.asarray, step(*frozen, sharding.put_batch(images, self.mesh)))

        return FeatureCache(
            detect,
            self.dataset,
            image_size=self.config.data.image_size,
            batch_size=self.config.train.batch_size,
        )

    def _refine(self, graph_inputs: GraphInputs) -> LCGCNOutput:
        output = self._refine_step(
            *self.state.evaluated, sharding.put_batch(graph_inputs, self.mesh)
        )
        return jax.tree.map(np.asarray, output)

    def _save(self) -> None:
        progress = {
            "batches": self.batches.get_state(),
            "best_nme": None if math.isinf(self.best_nme) else self.best_nme,
        }
        self.checkpoints.save(self.state, progress)

    def _validate_and_keep_best(self) -> dict[str, float]:
        errors = self.validate()
        figures = {f"validation/{stage}_nme": 100 * mean for stage, mean in errors.mean().items()}
        visibility = errors.visibility_summary()
        if visibility is not None and visibility["auroc"] is not None:
            figures["validation/visibility_auroc"] = 100 * visibility["auroc"]
        judged = "graph" if "graph" in TRAINED[self.config.train.mode] else "heatmap"
        nme = figures[f"validation/{judged}_nme"]
        if not math.isfinite(nme):
            raise FloatingPointError(f"the validation error is {nme} at step {self.step}")
        if nme < self.best_nme:
            self.best_nme = nme
            if is_primary_process():
                self._save_best(figures)
        return figures

    def _save_best(self, figures: dict[str, float]) -> None:
        params, batch_stats = self.state.evaluated
        bundle = Bundle(
            self.config.model.to_dict(),
            self.dataset.scheme,
            self.config.data.image_size,
            params | batch_stats,
            flip_bias=self.config.data.augment.flip_bias,
        )
        lines = [f"- {name}: {value:.3f} %" for name, value in sorted(figures.items())]
        card = (
            f"# {self.workdir.name}\n\nBest validation of a training run, at step {self.step} of "
            f"{self.config.train.steps}.\n\nData: {self.dataset.name}, {self.dataset.scheme.name}; "
            f"ground-truth boxes, no flip test.\n\n" + "\n".join(lines) + "\n"
        )
        with needs_writing(self.workdir / BEST):
            save_bundle(self.workdir / BEST, bundle, card)

    def _require_finite(self, pending: tuple[int, dict, np.ndarray] | None) -> None:
        if pending is None:
            return
        step, scalars, records = pending
        # All of them: a ReLU may hide a NaN from the loss (`compilation.compiler_options`).
        for what in ("loss", "gradient_norm", "parameter_norm"):
            value = float(scalars[what])
            if not math.isfinite(value):
                break
        else:
            return
        names = ", ".join(self.mixture.names(self.config.data.train_split, records))
        rates = ", ".join(f"{group} {float(f(step - 1)):g}" for group, f in self.schedules.items())
        raise FloatingPointError(
            f"the {what.replace('_', ' ')} is {value} at step {step} (learning rate: {rates}); the batch: "
            f"{names}"
        )


def _open_data(config: ml_collections.ConfigDict) -> FaceDataset:
    fields = ("train_split", "validation_split")
    return _open_folder(config, config.data.dir, fields, config.data.offsets)


def _open_mixture(config: ml_collections.ConfigDict, dataset: FaceDataset) -> FaceMixture:
    if not config.data.sources:
        return FaceMixture.of(dataset)
    datasets, weights = [], []
    for folder, weight, *offsets in config.data.sources:
        datasets.append(_open_folder(config, folder, ("train_split",), *offsets))
        weights.append(float(weight))
    return FaceMixture(tuple(datasets), tuple(weights))


def _require_visibility_labels(mixture: FaceMixture, split: str) -> None:
    """Refuses to train a visibility head on data without visibility labels."""
    for source in mixture.sources(split):
        if any((source[i]["visibility"] >= 0).any() for i in range(len(source))):
            return
    folders = ", ".join(str(dataset.path) for dataset in mixture.datasets)
    raise InputError(
        f"config model.visibility.head: no face of split {split!r} in {folders} has visibility labels; add "
        "a dataset that has them, such as MERL-RAV, to data.sources, or set it to none"
    )


def _open_folder(
    config: ml_collections.ConfigDict, folder: str, fields: tuple[str, ...], offsets: str = ""
) -> FaceDataset:
    """Opens a dataset that has to have the config's scheme and the splits that these fields name.

    Where `offsets` names a file, its annotation offsets are removed.
    """
    try:
        dataset = open_dataset(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    scheme = get_scheme(config.scheme)
    if dataset.scheme.name != scheme.name:
        raise InputError(
            f"{folder}: {dataset.scheme.num_landmarks} points ({dataset.scheme.name}), but "
            f"the config is for {scheme.num_landmarks} ({scheme.name}); set config.scheme or data.dir"
        )
    if dataset.scheme != scheme:
        raise InputError(
            f"{config.scheme}: the scheme has changed since {folder} was prepared; prepare the "
            "data again"
        )
    there = ", ".join(dataset.splits)
    fixes = {
        "train_split": "prepare the data again with training faces, or set",
        "validation_split": (
            "name faces for it in the column 'split' of the annotations and prepare the data again, or set"
        ),
    }
    for field in fields:
        split = config.data[field]
        if missing := [part for part in dataset.parts(split) if part not in dataset.splits]:
            raise InputError(
                f"{folder}: no split {missing[0]!r} for config data.{field}; there are {there}; "
                f"{fixes[field]} config.data.{field} to one of these"
            )
        dataset.source(split)
    return dataset.without_offsets(offsets) if offsets else dataset

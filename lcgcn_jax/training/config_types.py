"""Typed configuration of a training run.

`training.config.default_config` returns the same fields as an `ml_collections.ConfigDict`, which config files
and the command line change. The types and defaults state the range of every field (`fields`).
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.fields import TEXT, Constraint, constrained, number, numbers
from lcgcn_jax.heatmaps import Normalization
from lcgcn_jax.models.config import ModelConfig
from lcgcn_jax.models.registry import model_config

InitScope = Literal["heatmap", "whole", "backbone"]
HeatmapLoss = Literal["focal", "bce", "mse", "adaptive_wing"]
HeatmapCoordinateLoss = Literal["none", "l1", "smooth_l1", "star"]
CoordinateLoss = Literal["l1", "smooth_l1", "wing", "normalized_l2"]
OptimizerMethod = Literal["adam", "muon"]
Schedule = Literal["constant", "cosine", "step"]
TrainMode = Literal["joint", "frozen", "heatmap_only"]
DType = Literal["float32", "bfloat16", "auto"]

_LARGEST_INT = 2**31 - 1  # the step is an int32 in the training state


def _sources(*, whole: bool) -> Constraint:
    """Range of `DataConfig.sources`."""
    del whole

    def is_source(value: Any) -> bool:
        return (
            isinstance(value, tuple | list)
            and len(value) in (2, 3)
            and all(TEXT.accepts(name) for name in (value[0], *value[2:]))
            and isinstance(value[1], int | float)
            and not isinstance(value[1], bool)
            and 0 < value[1] < math.inf
        )

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, tuple | list)
            and all(map(is_source, value))
            and len({source[0] for source in value}) == len(value)
        )

    return Constraint(
        accepts,
        "((dir, weight), ...) or (dir, weight, offsets file) for some, each folder once and each weight a "
        "number above 0",
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Training and validation data.

    Attributes:
      dir: folder that `lcgcn prepare` wrote. It provides the validation faces and the mean shape.
      sources: folders to train on instead of `dir`, as `((dir, weight), ...)`. The faces of a batch are drawn
        in proportion to the weights, and an epoch has as many faces as all folders together. A source can
        also be `(dir, weight, offsets)`, with a file as in `offsets`.
      offsets: file of `lcgcn research fit-offsets`. Its annotation offsets are removed from the landmarks of
        `dir` before augmentation; empty: none.
      train_split: split to train on.
      validation_split: split to validate on.
      image_size: side of the face crops, in pixels.
      num_workers: worker processes of the input pipeline; 0: threads of the training process.
      num_threads: threads that make batches, in each worker process if there are any.
      augment: augmentation of the training faces.
      views: number of different augmented views per face, one per epoch in turn; 0: unlimited.
    """

    dir: str = "data/wflw"
    sources: tuple[tuple, ...] = constrained((), _sources)
    offsets: str = ""
    train_split: str = "train"
    validation_split: str = "validation"
    image_size: int = number(256, 16, 4_096)
    num_workers: int = number(0, 0, 1_024)
    num_threads: int = number(4, 0, 1_024)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    views: int = number(0, 0, 1_000_000)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Training loss; see `training.steps.total_loss`.

    Attributes:
      sigma: standard deviation of the target heatmaps, in heatmap pixels.
      heatmap: loss of the heatmaps: `focal` (the paper) or `bce`, of a sigmoid; `mse` or `adaptive_wing`, of
        a sigmoid or, with `model.heatmap.activation` `linear`, of the outputs.
      heatmap_coordinate: additional loss on the means of the heatmaps: `l1`, `smooth_l1`, `star` or `none`.
      heatmap_coordinate_weight: weight of that loss.
      heatmap_normalization: normalization of the heatmaps to distributions for that loss: `softmax` (of the
        logits times `heatmap_temperature`) or `sigmoid`.
      heatmap_temperature: factor on the logits before the softmax.
      coordinate: loss of the coordinates: `l1` (the paper), `smooth_l1`, `wing` or `normalized_l2` (relative
        to the size of the face).
      coordinate_weight: lambda1 of the paper.
      heatmap_weight: lambda2 of the paper.
      visibility_weight: weight of the cross entropy of the visibility head.
      visibility_class_weights: weights of the classes visible, externally occluded and self-occluded in that
        cross entropy. Unequal weights counter rare classes, but then `visibility` is no longer the
        probability in the data.
    """

    sigma: float = number(1.5, 0.25, 16)
    heatmap: HeatmapLoss = "focal"
    heatmap_coordinate: HeatmapCoordinateLoss = "none"
    heatmap_coordinate_weight: float = number(20.0, 0)
    heatmap_normalization: Normalization = "softmax"
    heatmap_temperature: float = number(2.0, 0, 1_000, above=True)
    coordinate: CoordinateLoss = "l1"
    coordinate_weight: float = number(1.0, 0)
    heatmap_weight: float = number(1.0, 0)
    visibility_weight: float = number(1.0, 0)
    visibility_class_weights: tuple[float, ...] = numbers((1.0, 1.0, 1.0), 0, length=3)


@dataclasses.dataclass(frozen=True)
class LearningRates:
    """Peak learning rate of each parameter group.

    Attributes:
      heatmap: rate of the heatmap model.
      graph: rate of the graph and the visibility head.
    """

    heatmap: float = number(1e-4, 0)
    graph: float = number(1e-3, 0)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam or Muon; see `training.optimizer`.

    Attributes:
      method: `adam`, or `muon` for the convolution kernels of the heatmap model except those of its first and
        last layer, with Adam for all other parameters. The last layer of a registered model must be an
        attribute `head_out`, `outs` or `head`.
      learning_rate: peak learning rates of `heatmap` and of `graph`.
      schedule: `constant`, `cosine` (to zero) or `step` (divided by 10 at each milestone).
      milestones: for `step`: fractions of the training.
      warmup_steps: length of the linear warm-up; at most half of the training is used.
      weight_decay: decoupled weight decay of kernels and matrices.
      clip_norm: largest norm of the gradient; 0: no clipping.
    """

    method: OptimizerMethod = "adam"
    learning_rate: LearningRates = LearningRates()
    schedule: Schedule = "step"
    milestones: tuple[float, ...] = numbers((0.5, 0.83), 0, 1, above=True, ascending=True)
    warmup_steps: int = number(0, 0, _LARGEST_INT)
    weight_decay: float = number(0.0, 0, 10)
    clip_norm: float = number(0.0, 0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training loop. `resolve_steps` turns epochs into steps when the training starts.

    Attributes:
      mode: parameters to train: `joint`, `frozen` (graph only) or `heatmap_only`.
      cache: in `frozen` mode and with `data.views`: compute the inputs of the graph once and keep them in
        memory.
      epochs: length of the training, in epochs of the training split.
      steps: the same in steps; takes precedence over `epochs`.
      batch_size: faces per step, over all devices.
      dtype: `float32`, `bfloat16`, or `auto`: bfloat16 on an accelerator. Parameters are float32.
      remat: recompute activations of the heatmap model for the gradient: less memory, larger batches.
      ema_decay: decay of the moving average of the weights; 0: none.
      log_every: steps between two lines of the log.
      eval_every_epochs: epochs between two validations.
      eval_every: the same in steps; takes precedence.
      checkpoint_every_epochs: epochs between two checkpoints.
      checkpoint_every: the same in steps; takes precedence.
      keep: number of checkpoints to keep.
    """

    mode: TrainMode = "joint"
    cache: bool = False
    epochs: float = number(60.0, 0, 1_000_000, above=True)
    steps: int | None = number(None, 1, _LARGEST_INT)
    batch_size: int = number(16, 1, 1_000_000)
    dtype: DType = "auto"
    remat: bool = False
    ema_decay: float = number(0.0, 0, 1, below=True)
    log_every: int = number(20, 1, _LARGEST_INT)
    eval_every_epochs: float = number(2.0, 0, 1_000_000, above=True)
    eval_every: int | None = number(None, 1, _LARGEST_INT)
    checkpoint_every_epochs: float = number(2.0, 0, 1_000_000, above=True)
    checkpoint_every: int | None = number(None, 1, _LARGEST_INT)
    keep: int = number(2, 1, _LARGEST_INT)


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of a training run. The defaults are the paper's choices.

    Attributes:
      scheme: landmark scheme, a name or a file.
      seed: seed of the initial weights, the order of the faces and their augmentation.
      init_from: weights to start from: a bundle, a workdir, a checkpoint of one, or a PyTorch file (see
        `training.pretrained.read_source`); empty: random weights.
      init_scope: part of these weights to use: `heatmap`, the heatmap model (of an ImageNet file, which has
        no landmark head, its backbone); `whole`; or `backbone`, the heatmap model without its head, for
        another number of landmarks.
      init_grow: whether to embed the weights of a smaller HRNet in the configured one; at first, the outputs
        are those of the smaller model (`models.growth`).
      data: training and validation data.
      model: heatmap model and graph.
      loss: training loss.
      optimizer: learning rates and their schedule.
      train: training loop.
    """

    scheme: str = "wflw98"
    seed: int = number(0, 0, 2**32 - 1)
    init_from: str = ""
    init_scope: InitScope = "heatmap"
    init_grow: bool = False
    data: DataConfig = DataConfig()
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Config":
        """Create a configuration from nested mappings that `config_checks.check_config` accepts."""
        return _from_dict(cls, fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields as nested dictionaries."""
        return dataclasses.asdict(self) | {"model": self.model.to_dict()}


def _from_dict(cls: Any, fields: Mapping[str, Any]) -> Any:
    if cls is ModelConfig:
        return model_config(fields)
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    return cls(
        **{
            name: _from_dict(types[name], value) if dataclasses.is_dataclass(types[name]) else value
            for name, value in fields.items()
        }
    )


EPOCHS = {
    "steps": "epochs",
    "eval_every": "eval_every_epochs",
    "checkpoint_every": "checkpoint_every_epochs",
}
"""Field of `TrainConfig` in steps -> the field that gives the same length in epochs."""


def resolve_steps(
    config: Config,
    num_faces: int,
    previous: Mapping[str, Any] | None = None,
    overridden: Collection[str] = (),
) -> Config:
    """Set the number of steps in every field of `EPOCHS`.

    Args:
      config: configuration; a number of steps in it stays unchanged.
      num_faces: faces in the training split, that is, in one epoch.
      previous: configuration that the run was started with, if it is resumed. Versions before `train.epochs`
        wrote steps only: the run keeps those.
      overridden: names of the fields that were set on the command line. A length in epochs among them
        replaces the steps that the run was started with.
    """
    train = (previous or {}).get("train", {})
    previous_steps = train if "epochs" not in train else {}
    resolved = {}
    for steps, epochs in EPOCHS.items():
        if getattr(config.train, steps) is None:
            # Rounded, so that 0.1 epochs of 30 faces are 3 and not 3.0000000000000004.
            batches = round(getattr(config.train, epochs) * num_faces / config.train.batch_size, 6)
            resolved[steps] = max(1, math.floor(batches))
            if f"train.{epochs}" not in overridden and previous_steps.get(steps):
                resolved[steps] = previous_steps[steps]
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **resolved))


def describe_steps(config: Config, num_faces: int) -> str:
    """One-line summary of the length of a training, whose steps are resolved."""
    train = config.train
    assert train.steps is not None, "call resolve_steps first"
    epochs = train.steps * train.batch_size / num_faces
    return (
        f"{train.steps:,} steps of {train.batch_size} faces, {epochs:.1f} epochs of {num_faces:,}; "
        f"validation every {train.eval_every:,} steps, checkpoint every {train.checkpoint_every:,}"
    )

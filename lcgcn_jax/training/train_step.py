"""Training step of a configuration: model, optimizer, state and compiled program."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lcgcn_jax.errors import InputError
from lcgcn_jax.models.bundles import abstract_weights
from lcgcn_jax.models.functional import FunctionalModel
from lcgcn_jax.models.registry import create_model
from lcgcn_jax.models.weights import Weights, split_weights, to_vector
from lcgcn_jax.training import sharding
from lcgcn_jax.training.config_checks import check_image_size
from lcgcn_jax.training.config_types import Config, DType
from lcgcn_jax.training.optimizer import is_muon_kernel, make_optimizer, trained_names
from lcgcn_jax.training.state import TrainState
from lcgcn_jax.training.steps import Batch, Scalars, check_activation, make_train_step


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """Training step with the model and the optimizer that it trains.

    Attributes:
      model: structure of the model, with shapes and types instead of weights.
      trained: names of the parameters that train.
      optimizer: optimizer of these parameters.
      schedules: learning rate of each parameter group that trains.
      with_ema: whether the state has a moving average of the weights.
      function: the step before compilation, `(state, batch) -> (state, scalars)` (`steps.make_train_step`).
      compiled: the jitted step on the mesh. It donates its state.
    """

    mesh: jax.sharding.Mesh
    model: FunctionalModel
    trained: frozenset[str]
    optimizer: optax.GradientTransformation
    schedules: dict[str, optax.Schedule]
    with_ema: bool
    function: Callable[[TrainState, Batch], tuple[TrainState, Scalars]]
    compiled: jax.stages.Wrapped

    def init_state(self, params: Weights, batch_stats: Weights) -> TrainState:
        """State before the first step, on the mesh."""
        return jax.device_put(
            self._create_state(params, batch_stats), sharding.replicated(self.mesh)
        )

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        where = sharding.replicated(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            jax.eval_shape(self._create_state, self.model.params, self.model.batch_stats),
        )

    def _create_state(self, params: Weights, batch_stats: Weights) -> TrainState:
        learned = {name: params[name] for name in sorted(self.trained)}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            # As one program: outside of `jit`, there is one for each shape of weights.
            opt_state=jax.jit(self.optimizer.init)(learned),
            ema=jax.jit(to_vector)(params | batch_stats) if self.with_ema else None,
        )


def build_train_step(
    config: Config,
    num_landmarks: int,
    mesh: jax.sharding.Mesh,
    *,
    optimizer: optax.GradientTransformation | None = None,
) -> TrainStep:
    """Build the training step of a configuration; no array is created.

    Args:
      config: configuration; `train.steps` is set, because the learning rate schedule needs it.
      optimizer: replaces the optimizer of the configuration, for tests.

    Raises:
      InputError: fields of the configuration contradict each other, or the batch size does not fit the mesh.
    """
    train = config.train
    sharding.check_batch_size(train.batch_size, mesh)
    dtype = compute_dtype(train.dtype, mesh.devices.flat[0].platform)
    abstract = abstract_weights(config.model.to_dict(), num_landmarks, dtype, remat=train.remat)
    model = abstract.merge()
    check_activation(config.loss, model.activation)
    check_image_size(config.data.image_size, model.heatmap_model.stride)
    trained, schedules = trained_names(train.mode, abstract.params), {}
    if config.optimizer.method == "muon" and not any(
        is_muon_kernel(name, abstract.params[name].shape) for name in trained
    ):
        raise InputError(
            f"config optimizer.method: the heatmap model {config.model.heatmap['name']!r} has no kernels for "
            "'muon', [height, width, inputs, outputs] with more than 3 inputs; use 'adam'"
        )
    if optimizer is None:
        assert train.steps is not None, "call resolve_steps first"
        optimizer, schedules = make_optimizer(config.optimizer, train.mode, train.steps)
    function = make_train_step(abstract.graphdef, optimizer, trained, config)
    return TrainStep(
        mesh,
        abstract,
        trained,
        optimizer,
        schedules,
        train.ema_decay > 0,
        function,
        sharding.compile_train_step(function, mesh),
    )


def init_weights(config: Config, num_landmarks: int) -> tuple[Weights, Weights]:
    """Random initial parameters and batch statistics."""
    model = create_model(config.model.to_dict(), num_landmarks, rngs=nnx.Rngs(config.seed))
    return split_weights(model)[1:]


def compute_dtype(name: DType, platform: str | None = None) -> jnp.dtype:
    """Type of the computation: `float32`, `bfloat16`, or `auto`, bfloat16 on an accelerator.

    Args:
      platform: platform of the devices; by default JAX's default one.
    """
    if name == "auto":
        name = "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"
    return jnp.dtype(name)

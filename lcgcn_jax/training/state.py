"""All that a training step changes."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from lcgcn_jax.models.weights import Weights


@typing.no_type_check  # as a pytree it also holds shapes, shardings and what JAX itself puts there
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State of a training.

    Attributes:
      step: number of steps taken.
      params: all parameters, trained or not, float32.
      batch_stats: running statistics of the BatchNorms, float32.
      opt_state: the optimizer's, over the trained parameters.
      ema: moving average of `params` and `batch_stats` together; empty where none is kept.
    """

    step: Int[Array, ""]
    params: Weights
    batch_stats: Weights
    opt_state: optax.OptState
    ema: Weights

    @property
    def evaluated(self) -> tuple[Weights, Weights]:
        """Parameters and batch statistics to evaluate with: the moving average where one is kept."""
        if not self.ema:
            return self.params, self.batch_stats
        return (
            {name: self.ema[name] for name in self.params},
            {name: self.ema[name] for name in self.batch_stats},
        )


def create_state(
    params: Weights,
    batch_stats: Weights,
    optimizer: optax.GradientTransformation,
    trained: frozenset[str],
    *,
    with_ema: bool,
) -> TrainState:
    """State before the first step."""
    # Copies, since the step donates its state and no buffer may be in it twice.
    ema = {name: jnp.array(value) for name, value in (params | batch_stats).items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init({name: params[name] for name in sorted(trained)}),
        ema=ema if with_ema else {},
    )

"""Training state."""

import dataclasses
import functools
import typing

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from lcgcn_jax.models.weights import Weights, from_vector


@typing.no_type_check  # as a pytree it also holds shapes, shardings and placeholders of JAX
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State that a training step updates.

    Attributes:
      step: number of steps taken.
      params: all parameters, trained or not, float32.
      batch_stats: running statistics of the BatchNorms, float32.
      opt_state: optimizer state of the trained parameters.
      ema: moving average of `params` and `batch_stats` as one vector (`weights.to_vector`), because a
        program with a kernel per array is slow to compile; None without a moving average.
    """

    step: Int[Array, ""]
    params: Weights
    batch_stats: Weights
    opt_state: optax.OptState
    ema: Float[Array, "n"] | None

    @functools.cached_property
    def evaluated(self) -> tuple[Weights, Weights]:
        """Parameters and batch statistics to evaluate: the moving average if there is one."""
        if self.ema is None:
            return self.params, self.batch_stats
        # Split on the host, because a program with so many slices is slow to compile.
        average = {
            name: jax.make_array_from_process_local_data(self.ema.sharding, value)
            for name, value in from_vector(
                np.asarray(self.ema), self.params | self.batch_stats
            ).items()
        }
        return (
            {name: average[name] for name in self.params},
            {name: average[name] for name in self.batch_stats},
        )

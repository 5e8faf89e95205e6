"""Timing of functions: warm-up, repetitions, and interleaved measurements."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Timing:
    """Repeated measurements of one function, in seconds."""

    seconds: tuple[float | int, ...]

    @property
    def median(self) -> float:
        """Median."""
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(low), float(high)

    def per(self, count: int) -> "Timing":
        """Divide by the number of iterations that were measured together."""
        return Timing(tuple(value / count for value in self.seconds))


def measure(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repetitions: int,
    warmup: int = 2,
    clock: Callable[[], float | int] = time.perf_counter,
) -> dict[str, Timing]:
    """Time functions interleaved, so that other load on the machine affects all of them equally.

    Args:
      functions: functions to call, by name; the call includes waiting for the JAX arrays in its result.
    """
    for function in functions.values():
        for _ in range(warmup):
            jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            start = clock()
            jax.block_until_ready(function())
            seconds[name].append(clock() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def format_seconds(value: float) -> str:
    """Format a time with three digits in s, ms or us."""
    scale, unit = next(((s, u) for s, u in _UNITS if value >= s), _UNITS[-1])
    return f"{value / scale:.3g} {unit}"

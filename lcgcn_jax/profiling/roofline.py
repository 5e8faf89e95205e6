"""The least time that a program can take on a device, from its arithmetic and its memory traffic.

The roofline model of Williams et al. 2009, with the device's peaks measured and not taken from a data sheet.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lcgcn_jax.profiling.timing import measure

_MATRIX = {"cpu": 2048}  # side; others: a size that fills an accelerator
_MATRIX_ELSEWHERE = 8192
_COPIED = {"cpu": 1 << 28}  # bytes, more than its caches hold
_COPIED_ELSEWHERE = 1 << 30
_REPETITIONS = 10


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What one device reaches at best.

    Attributes:
      flops: floating-point operations a second, a multiply-add counted as two.
      bandwidth: bytes a second that are read or written.
    """

    flops: float
    bandwidth: float


def measure_peaks(dtype: jnp.dtype) -> Peaks:
    """Peaks of the first device: a large matrix product of this type, and a large array copied.

    The shortest of some repetitions counts, since a bound is sought.
    """
    platform = jax.default_backend()
    n = _MATRIX.get(platform, _MATRIX_ELSEWHERE)
    matrix = jnp.full((n, n), 1 / n, dtype)
    array = jnp.zeros(_COPIED.get(platform, _COPIED_ELSEWHERE) // 4, jnp.float32)
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + jnp.ones((1,), x.dtype))
    times = measure(
        {"flops": lambda: product(matrix, matrix), "bandwidth": lambda: copy(array)},
        repetitions=_REPETITIONS,
    )
    return Peaks(
        2 * n**3 / min(times["flops"].seconds), 2 * array.nbytes / min(times["bandwidth"].seconds)
    )


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a compiled program does on each of its devices, as XLA counts it.

    Attributes:
      flops: floating-point operations.
      bytes: memory traffic between its kernels. What a cache keeps is counted too, so on a CPU a program
        that lives in its caches may beat the floor that follows.
    """

    flops: float
    bytes: float

    @classmethod
    def of(cls, program: jax.stages.Compiled) -> "Cost":
        """The cost of a program."""
        analysis = program.cost_analysis()
        return cls(float(analysis["flops"]), float(analysis["bytes accessed"]))

    def floor(self, peaks: Peaks) -> tuple[float, str]:
        """The least time in seconds, and which peak it is bound by, `flops` or `bytes`."""
        return max((self.flops / peaks.flops, "flops"), (self.bytes / peaks.bandwidth, "bytes"))

"""Roofline bound: the shortest time that the FLOPs and the memory traffic of a program allow.

The roofline model of Williams et al. 2009, with measured peaks instead of those of a data sheet.
"""

import dataclasses
import math
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lcgcn_jax.profiling.timing import measure

# Side of the matrices and size of the array in bytes: larger than the caches, and large enough to fill
# an accelerator.
_MATRIX = {"cpu": 2048}
_MATRIX_ACCELERATOR = 8192
_COPIED = {"cpu": 1 << 28}
_COPIED_ACCELERATOR = 1 << 30
_REPETITIONS = 10

# Call of one of the CPU kernels, whose cost XLA does not know.
_KERNEL_CALL = re.compile(
    r'= (?P<results>.*) custom-call\(.*custom_call_target="lcgcn_[0-9a-f]+_(?P<name>\w+)",'
    r" operand_layout_constraints=\{(?P<operands>.*)\}, api_version"
)


@dataclasses.dataclass(frozen=True)
class Peaks:
    """Peak rates of one device.

    Attributes:
      flops: floating-point operations per second; a multiply-add counts as two.
      bandwidth: bytes read or written per second.
    """

    flops: float
    bandwidth: float


def measure_peaks(dtype: jnp.dtype) -> Peaks:
    """Measure the peaks of the first device: a large matrix product, and a copy of a large array.

    Takes the shortest of several repetitions, since the peaks define a bound.
    """
    platform = jax.default_backend()
    n = _MATRIX.get(platform, _MATRIX_ACCELERATOR)
    matrix = jnp.full((n, n), 1 / n, dtype)
    array = jnp.zeros(_COPIED.get(platform, _COPIED_ACCELERATOR) // 4, jnp.float32)
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
    """Cost of a compiled program per device, from XLA's cost analysis and the shapes of the CPU kernels.

    Attributes:
      flops: floating-point operations.
      bytes: memory traffic of all operations. It includes traffic that hits a cache, so a program that
        fits into the caches of a CPU may be faster than its roofline bound.
    """

    flops: float
    bytes: float

    @classmethod
    def of(cls, program: jax.stages.Compiled) -> "Cost":
        """Read the cost of a compiled program."""
        analysis: Any = program.cost_analysis()
        flops, accessed = float(analysis["flops"]), float(analysis["bytes accessed"])
        for call in _KERNEL_CALL.finditer(program.as_text() or ""):
            operands, results = (_shapes(call[group]) for group in ("operands", "results"))
            accessed += 4 * sum(map(math.prod, operands + results))
            if call["name"] == "Convolution":
                flops += 2 * math.prod(results[0]) * math.prod(operands[1][:3])
            elif call["name"] == "KernelGradient":
                flops += 2 * math.prod(operands[1]) * math.prod(results[0][:3])
        return cls(flops, accessed)

    def roofline(self, peaks: Peaks) -> tuple[float, Literal["flops", "bytes"]]:
        """Compute the roofline bound in seconds, and the peak that limits it."""
        return max((self.flops / peaks.flops, "flops"), (self.bytes / peaks.bandwidth, "bytes"))


def _shapes(text: str) -> list[tuple[int, ...]]:
    """Shapes of the float32 arrays in a line of an XLA program."""
    return [tuple(map(int, sizes.split(","))) for sizes in re.findall(r"f32\[([\d,]+)\]", text)]

"""Kernels of a program that XLA compiled for a GPU.

XLA's cost analysis needs a GPU, so the kernels and the bytes that they move are read from the text of the
program.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

COMPILER_OPTIONS: Mapping[str, str | bool] = {
    # The choice between algorithms for convolutions and matrix products needs a GPU.
    "xla_gpu_autotune_level": "0",
    "xla_gpu_enable_triton_gemm": False,
}
"""Options of XLA that compile for a GPU without one."""

_TARGET_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 }}
device_description_str: "{name}"
"""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_OPERAND = re.compile(r"%([\w.-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_WORKSPACE = re.compile(r", s8\[\d+\]\{0\}\)$")
_NO_KERNEL = {
    "after-all", "bitcast", "call", "conditional", "constant", "copy-done", "get-tuple-element",
    "opt-barrier", "parameter", "partition-id", "replica-id", "tuple", "while",
}  # fmt: skip
_COLLECTIVE = re.compile("all-|reduce-scatter|collective-")


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Kernels of one kind.

    Attributes:
      count: number of kernels, each started once.
      size: total bytes of their operands and results, without the workspaces of cuDNN and cuBLAS.
    """

    count: int
    size: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return _OPERAND.findall(self.rest.partition("), ")[0])


def target_config(name: str, memory: int, bandwidth: float) -> str:
    """Description of a Hopper GPU for XLA, as protocol buffer text.

    Args:
      memory: bytes of memory.
      bandwidth: bytes per second.
    """
    return _TARGET_CONFIG.format(name=name, memory=memory, bandwidth=bandwidth)


def count_kernels(hlo: str) -> dict[str, Kernels]:
    """Count the kernels of a compiled program by kind, by descending size.

    The kinds are `convolution` (cuDNN), `matrix product` (cuBLAS), `reduction`, `transpose`, `scatter` and
    `elementwise`, which includes copies. Loops and collectives are left out.

    Args:
      hlo: text of the program (`compiled.as_text()`).
    """
    entry, computations = _parse(hlo)
    shapes = {instruction.name: instruction.shape for instruction in computations[entry]}
    counts, sizes = collections.Counter(), collections.Counter()
    for instruction in computations[entry]:
        if instruction.opcode in _NO_KERNEL or _COLLECTIVE.match(instruction.opcode):
            continue
        kind = _kind_of(instruction)
        counts[kind] += 1
        sizes[kind] += array_bytes(_WORKSPACE.sub(")", instruction.shape))
        called = re.search(r"calls=%([\w.-]+)", instruction.rest)
        read = _sizes_read(computations[called[1]]) if called else {}
        for i, operand in enumerate(instruction.operands):
            sizes[kind] += read.get(i, array_bytes(shapes.get(operand, "")))
    return {kind: Kernels(counts[kind], size) for kind, size in sizes.most_common()}


def array_bytes(shape: str) -> int:
    """Size of the arrays in the text of a shape, such as `(f32[512,512]{1,0}, pred[8])`, in bytes."""
    return sum(
        math.prod(map(int, filter(None, dimensions.split(",")))) * int(bits or 8) // 8
        for _, bits, dimensions in _ARRAY.findall(shape)
    )


def _parse(hlo: str) -> tuple[str, dict[str, list[_Instruction]]]:
    """Name of the main computation, and the instructions of each computation."""
    entry, computations = "", {}
    for is_entry, name, instruction in _lines(hlo):
        if instruction is None:
            entry = name if is_entry else entry
            computations[name] = []
        else:
            computations[name].append(instruction)
    return entry, computations


def _lines(hlo: str) -> Iterator[tuple[bool, str, _Instruction | None]]:
    is_entry, name = False, ""
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            is_entry, name = match[1] is not None, match[2]
            yield is_entry, name, None
        elif name and (match := _INSTRUCTION.match(line)):
            yield is_entry, name, _Instruction(*match.groups())


def _sizes_read(fusion: Sequence[_Instruction]) -> dict[int, int]:
    """Bytes read from the parameters of which a fusion reads only slices, by number."""
    parameters = {
        instruction.name: int(instruction.rest.partition(")")[0])
        for instruction in fusion
        if instruction.opcode == "parameter"
    }
    slices, others = collections.Counter(), set()
    for instruction in fusion:
        for operand in instruction.operands:
            if operand not in parameters:
                continue
            if instruction.opcode == "slice":
                slices[parameters[operand]] += array_bytes(instruction.shape)
            else:
                others.add(parameters[operand])
    return {number: size for number, size in slices.items() if number not in others}


def _kind_of(instruction: _Instruction) -> str:
    if instruction.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
        name = target[1] if target else ""
        if name.startswith("__cudnn$conv"):
            return "convolution"
        return "matrix product" if name.startswith("__cublas") else name
    # XLA names a fusion after the operations in it.
    for word, kind in (
        ("reduce", "reduction"),
        ("softmax", "reduction"),
        ("scatter", "scatter"),
        ("transpose", "transpose"),
    ):
        if word in instruction.name:
            return kind
    return "elementwise"

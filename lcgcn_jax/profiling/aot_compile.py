"""Ahead-of-time compilation of the training step for a TPU slice or for GPUs, on a machine without them.

libtpu's compiler needs only the name of a topology, and XLA's GPU compiler only the description of a GPU.
They report the memory, memory traffic and collectives of one chip; every chip runs the same program on its
part of the batch. The figures are computed by the compiler, not measured.
"""

import collections
import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.experimental import topologies

from lcgcn_jax.errors import InputError, install_command, one_line
from lcgcn_jax.landmarks import get_scheme
from lcgcn_jax.profiling import gpu_program
from lcgcn_jax.profiling.gpu_program import Kernels, array_bytes
from lcgcn_jax.profiling.roofline import Cost, Peaks
from lcgcn_jax.training import sharding
from lcgcn_jax.training.config_checks import check_config
from lcgcn_jax.training.config_types import Config
from lcgcn_jax.training.steps import make_inference_step
from lcgcn_jax.training.train_step import build_train_step

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """TPU chip or GPU.

    Attributes:
      memory: bytes of memory that one program may use.
      peaks: documented peak rates: bfloat16 operations, and memory bandwidth.
      topology_options: options of `get_topology_desc` that make each TPU chip one device.
      target_config: description of a GPU for XLA; empty for a TPU.
    """

    memory: int
    peaks: Peaks
    topology_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    target_config: str = ""

    @classmethod
    def gpu(cls, name: str, memory: int, peaks: Peaks) -> "Chip":
        """GPU of the Hopper generation with `memory` bytes, of which JAX uses three quarters by default."""
        config = gpu_program.target_config(name, memory, peaks.bandwidth)
        return cls(memory * 3 // 4, peaks, target_config=config)


# Memory of TPUs: the limit in the out-of-memory error of libtpu 0.0.52; nominally 32, 16, 95 and 32 GiB.
# Peaks: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e; nvidia.com/en-us/data-center/h100, h200 (SXM, without
# sparsity). On Cloud TPU, the two cores of a v4 chip are one device (megacore); in a topology they are two
# devices by default.
CHIPS = {
    "v4": Chip(int(30.75 * GIB), Peaks(275e12, 1228e9), {"chip_config_name": "megacore"}),
    "v5e": Chip(int(15.75 * GIB), Peaks(197e12, 819e9)),
    "v5p": Chip(int(95.73 * GIB), Peaks(459e12, 2765e9)),
    "v6e": Chip(int(31.24 * GIB), Peaks(918e12, 1638e9)),
    "h100": Chip.gpu("NVIDIA H100 80GB HBM3", 84_929_347_584, Peaks(989e12, 3352e9)),
    "h200": Chip.gpu("NVIDIA H200", 150_754_820_096, Peaks(989e12, 4814e9)),
}
"""Chips by the prefix of the names of topologies."""

# Without these variables, libtpu queries a metadata server, warns about an unknown machine, and cannot be
# loaded by two processes. On a TPU machine they are set already and do not change.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

_MAX_GPUS = 8
_CUDA_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\w+\[[\d,]*\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind in a step.

    Attributes:
      count: number of operations.
      size: total bytes of their results on one chip.
    """

    count: int
    size: int


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Cost of a compiled training step per chip.

    Attributes:
      topology: name of the topology that the step was compiled for.
      num_chips: number of chips of the topology.
      batch_size: faces per step over all chips.
      memory: bytes of memory in use: the sum of `parts`.
      parts: bytes of the arguments, of the results that do not reuse an argument, of the temporaries and of
        the program.
      flops: floating-point operations.
      bytes_accessed: bytes that the operations read and write, from the compiler's cost model; on a GPU, the
        sum over the kernels.
      collectives: collectives by kind; one in a loop counts once.
      kernels: kernels on a GPU by kind.
    """

    topology: str
    num_chips: int
    batch_size: int
    memory: int
    parts: Mapping[str, int]
    flops: float
    bytes_accessed: float
    collectives: Mapping[str, Collective]
    kernels: Mapping[str, Kernels] = dataclasses.field(default_factory=dict)


def chip_of(topology: str) -> Chip:
    """Look up the chip of a topology.

    Raises:
      InputError: the chip is unknown.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise InputError(
            f"{topology}: no such chip; a topology is a chip ({', '.join(CHIPS)}), a colon, and the number "
            "of chips in each dimension: v5e:4x4, v4:2x2x2, h200:8"
        )
    return CHIPS[kind]


def devices_of(topology: str) -> Sequence[Any]:
    """Create the devices of a TPU slice or of a machine with GPUs (`jax.Device`) as compilation targets.

    Raises:
      InputError: the topology does not exist, or its compiler is not installed.
    """
    chip = chip_of(topology)
    if chip.target_config:
        return _gpus(topology, chip)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"libtpu, the TPU compiler, is not installed; {install_command('tpu')} (needs no TPU)"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(topology, "tpu", **chip.topology_options).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"{topology}: the chip has no such topology: {one_line(error)}") from error


def _gpus(topology: str, chip: Chip) -> Sequence[Any]:
    count = topology.partition(":")[2]
    if not (count.isascii() and count.isdecimal() and 1 <= int(count) <= _MAX_GPUS):
        raise InputError(
            f"{topology}: give the number of GPUs of one machine after the colon, 1 to {_MAX_GPUS}, such as "
            f"{topology.partition(':')[0]}:8"
        )
    if importlib.util.find_spec("jax_plugins") is None or not any(
        map(importlib.util.find_spec, _CUDA_PLUGINS)
    ):
        raise InputError(
            f"the CUDA plugin of JAX is not installed; {install_command('cuda')} (needs no GPU)"
        )
    return topologies.get_topology_desc(
        platform="cuda", target_config=chip.target_config, topology=f"1x1x{int(count)}"
    ).devices


def lower_train_step(
    config: ml_collections.ConfigDict, devices: Sequence[Any], batch_size: int
) -> jax.stages.Lowered:
    """Lower the training step of a configuration for some devices, without arrays and without data.

    Args:
      config: configuration (`training.config.default_config`); the `train.dtype` `auto` means bfloat16.
      batch_size: faces per step over all devices; replaces the value of the config.

    Raises:
      InputError: the configuration is invalid, or the batch size is not a multiple of the device count.
    """
    check_config(config)
    typed = Config.from_dict(config.to_dict())
    # The number of steps is only a constant of the schedule, and does not affect the cost.
    train = dataclasses.replace(typed.train, batch_size=batch_size, steps=typed.train.steps or 1000)
    num_landmarks = get_scheme(typed.scheme).num_landmarks
    step = build_train_step(
        dataclasses.replace(typed, train=train), num_landmarks, sharding.mesh_of(devices)
    )
    image_size = typed.data.image_size
    images = jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.uint8)
    batch = {
        "landmarks": jax.ShapeDtypeStruct((batch_size, num_landmarks, 2), jnp.float32),
        "visible": jax.ShapeDtypeStruct((batch_size, num_landmarks), jnp.bool_),
    }
    if step.model.merge().visibility is not None:
        batch["visibility"] = jax.ShapeDtypeStruct((batch_size, num_landmarks), jnp.int8)
    if train.cache:
        detect = make_inference_step(step.model.graphdef, "detect")
        batch["graph_inputs"] = jax.eval_shape(detect, *step.model[1:], images)
    else:
        batch["image"] = images
    return step.compiled.lower(step.abstract_state(), batch)


def compile_step(config: ml_collections.ConfigDict, topology: str, batch_size: int) -> StepCost:
    """Compile the training step for a topology. A full-size HRNet takes minutes on two cores.

    Raises:
      InputError: the configuration, the topology or the batch size is invalid, or the batch does not fit
        into the memory of the chips.
    """
    devices = devices_of(topology)
    is_gpu = bool(chip_of(topology).target_config)
    lowered = lower_train_step(config, devices, batch_size)
    try:
        with _uncached():
            compiled = lowered.compile(dict(gpu_program.COMPILER_OPTIONS) if is_gpu else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"a batch of {batch_size} does not fit {topology}; give a smaller --batch-size. Error of the "
            f"compiler: {str(error).splitlines()[0]}"
        ) from error
    memory: Any = compiled.memory_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        # The new state reuses the memory of the old one, which the step donates.
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    hlo = compiled.as_text() or ""
    kernels = gpu_program.count_kernels(hlo) if is_gpu else {}
    if is_gpu:
        # XLA's cost analysis needs a GPU, so the operations are those before compilation.
        on_cpu = lower_train_step(config, jax.devices("cpu")[:1], batch_size // len(devices))
        analysis: Any = on_cpu.cost_analysis()
        cost = Cost(float(analysis["flops"]), sum(k.size for k in kernels.values()))
    else:
        cost = Cost.of(compiled)
    return StepCost(
        topology=topology,
        num_chips=len(devices),
        batch_size=batch_size,
        memory=sum(parts.values()),
        parts=parts,
        flops=cost.flops,
        bytes_accessed=cost.bytes,
        collectives=collectives(hlo),
        kernels=kernels,
    )


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Disable the compilation cache, which cannot load programs for absent devices."""
    name = "jax_persistent_cache_min_compile_time_secs"
    old = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, old)


def least_seconds(cost: StepCost) -> float:
    """Compute the roofline bound of a step in seconds from the documented peaks of the chip."""
    return Cost(cost.flops, cost.bytes_accessed).roofline(chip_of(cost.topology).peaks)[0]


def collectives(hlo: str) -> dict[str, Collective]:
    """Count the collectives of a compiled program by kind.

    Args:
      hlo: text of the program (`compiled.as_text()`).
    """
    counts, sizes = collections.Counter(), collections.Counter()
    for shape, kind, start in _COLLECTIVE.findall(hlo):
        arrays = [array_bytes(array) for array in _ARRAY.findall(shape)]
        if start and kind != "all-reduce":
            arrays = arrays[1:2]  # operand, result, and sometimes flags
        counts[kind] += 1
        sizes[kind] += sum(arrays)
    return {kind: Collective(counts[kind], sizes[kind]) for kind in _KINDS if counts[kind]}


def largest_batch(costs: Iterable[StepCost]) -> int:
    """Extrapolate the largest batch that fits, since memory grows nearly linearly with the batch size.

    Args:
      costs: costs of the same step with two batch sizes.

    Returns:
      Faces over all chips, a multiple of the number of chips; 0 if one face per chip does not fit.

    Raises:
      InputError: the memory does not grow, because the batches are small relative to the program.
    """
    small, large = sorted(costs, key=lambda cost: cost.batch_size)
    chips, limit = small.num_chips, chip_of(small.topology).memory
    faces = (large.batch_size - small.batch_size) // chips
    per_face = (large.memory - small.memory) / faces
    if per_face <= 0:
        raise InputError(
            f"the step needs no more memory with a batch of {large.batch_size} than with "
            f"{small.batch_size}; give a larger --batch-size"
        )
    fixed = small.memory - per_face * small.batch_size / chips
    return max(0, int((limit - fixed) / per_face)) * chips

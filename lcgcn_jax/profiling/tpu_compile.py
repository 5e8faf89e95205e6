"""The training step, compiled for a TPU slice on a machine that has none.

libtpu's compiler needs no chip: it takes a topology by its name, and says what a step will need there. All
figures are of one chip, since every chip runs the same program on its part of the batch. They are computed,
not measured.
"""

import collections
import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import ml_collections
from jax.experimental import topologies

from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.landmarks import get_scheme
from lcgcn_jax.models.bundles import abstract_weights
from lcgcn_jax.training import sharding
from lcgcn_jax.training.config_checks import check_config
from lcgcn_jax.training.optimizer import make_optimizer, trained_names
from lcgcn_jax.training.state import create_state
from lcgcn_jax.training.steps import make_detect_step, make_train_step
from lcgcn_jax.training.trainer import compute_dtype

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU chip.

    Attributes:
      memory: bytes of its memory that libtpu gives to one program.
      flops_per_second: most bfloat16 operations a second.
      bytes_per_second: most bytes a second between its memory and its cores.
      topology_options: what `get_topology_desc` has to be told to make one device of a chip.
    """

    memory: int
    flops_per_second: float
    bytes_per_second: float
    topology_options: Mapping[str, str] = dataclasses.field(default_factory=dict)


# Memory: the limit in libtpu 0.0.52's own error for a program that is too large; nominal are 32, 16, 95 and
# 32 GiB. Rates: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e. The two cores of a v4 chip are one device
# (megacore) on Cloud TPU, but two in a topology unless asked for.
CHIPS = {
    "v4": Chip(int(30.75 * GIB), 275e12, 1228e9, {"chip_config_name": "megacore"}),
    "v5e": Chip(int(15.75 * GIB), 197e12, 819e9),
    "v5p": Chip(int(95.73 * GIB), 459e12, 2765e9),
    "v6e": Chip(int(31.24 * GIB), 918e12, 1638e9),
}
"""Kinds of chips by the names that Cloud TPU's topologies begin with."""

# Without them libtpu asks a metadata server that is not there, complains that it does not know its machine,
# and refuses to be loaded twice at a time. On a TPU machine they are set, and stay as they are.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(_KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All exchanges of one kind between the chips in a step.

    Attributes:
      count: how many there are.
      size: bytes of their results on one chip, all together.
    """

    count: int
    size: int


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What a compiled training step needs of each chip.

    Attributes:
      topology: for which it was compiled.
      num_chips: chips in it.
      batch_size: faces in a step, over all chips.
      memory: bytes that are taken at once: arguments, results that do not take an argument's place,
        temporaries and the program itself.
      parts: these by name, in bytes.
      flops: operations.
      bytes_accessed: bytes that the program's operations read and write, by the compiler's cost model.
      collectives: exchanges between the chips by kind; one in a loop counts once.
    """

    topology: str
    num_chips: int
    batch_size: int
    memory: int
    parts: Mapping[str, int]
    flops: float
    bytes_accessed: float
    collectives: Mapping[str, Collective]


def chip_of(topology: str) -> Chip:
    """The kind of chip in a topology.

    Raises:
      InputError: none that is known.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise InputError(
            f"{topology}: no such TPU; a topology is one of {', '.join(CHIPS)}, a colon and how many chips "
            "there are in each direction: v5e:4x4, v4:2x2x2"
        )
    return CHIPS[kind]


def tpu_devices(topology: str) -> Sequence[jax.Device]:
    """The chips of a slice, to compile for.

    Args:
      topology: kind and shape, e.g. `v5e:4x4`, `v4:2x2x2`.

    Raises:
      InputError: no such topology, or libtpu is not installed.
    """
    chip = chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "libtpu, TPU's compiler, is not installed; pip install 'lcgcn-jax[tpu]' (it needs no TPU)"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        found = topologies.get_topology_desc(topology, "tpu", **chip.topology_options)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"{topology}: not a topology of it: {one_line(error)}") from error
    return found.devices


def lower_train_step(
    config: ml_collections.ConfigDict, devices: Sequence[jax.Device], batch_size: int
) -> jax.stages.Lowered:
    """The training step of a configuration for given devices; no array is made, and no data is read.

    Args:
      config: as `training.config.default_config` describes; `train.dtype` `auto` is bfloat16.
      devices: all of the slice.
      batch_size: faces in a step, over all devices, in place of the config's.

    Raises:
      InputError: the configuration cannot be used, or the batch does not share out.
    """
    check_config(config)
    mesh = sharding.mesh_of(devices)
    sharding.check_batch_size(batch_size, mesh)
    num_landmarks = get_scheme(config.scheme).num_landmarks
    image_size, train = config.data.image_size, config.train
    graphdef, params, batch_stats = abstract_weights(
        config.model.to_dict(),
        num_landmarks,
        compute_dtype("bfloat16" if train.dtype == "auto" else train.dtype),
        remat=train.remat,
    )
    trained = trained_names(train.mode, params)
    # The length of the training is a constant of the schedule and changes no figure of the program.
    optimizer, _ = make_optimizer(config.optimizer.to_dict(), train.mode, train.steps or 1000)
    state = jax.eval_shape(
        lambda p, b: create_state(p, b, optimizer, trained, with_ema=train.ema_decay > 0),
        params,
        batch_stats,
    )
    images = jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.uint8)
    batch = {
        "landmarks": jax.ShapeDtypeStruct((batch_size, num_landmarks, 2), jnp.float32),
        "visible": jax.ShapeDtypeStruct((batch_size, num_landmarks), jnp.bool_),
    }
    if config.model.visibility.head != "none":
        batch["visibility"] = jax.ShapeDtypeStruct((batch_size, num_landmarks), jnp.int8)
    if train.cache:
        detect = make_detect_step(graphdef)
        batch["graph_inputs"] = jax.eval_shape(detect, params, batch_stats, images)
    else:
        batch["image"] = images
    step = make_train_step(
        graphdef,
        optimizer,
        trained,
        mode=train.mode,
        loss_config=config.loss.to_dict(),
        image_size=image_size,
        ema_decay=train.ema_decay,
    )
    return sharding.compile_train_step(step, mesh).lower(state, batch)


def compile_step(config: ml_collections.ConfigDict, topology: str, batch_size: int) -> StepCost:
    """Compiles the training step for a slice: minutes, for a full-size HRNet on two cores.

    Raises:
      InputError: configuration, topology or batch cannot be used, or the batch does not fit the chips.
    """
    devices = tpu_devices(topology)
    lowered = lower_train_step(config, devices, batch_size)
    try:
        with _uncached():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"a batch of {batch_size} does not fit {topology}; give a smaller --batch-size. The compiler "
            f"says: {str(error).splitlines()[0]}"
        ) from error
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        # The new state takes the place of the old one, which the step donates.
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    return StepCost(
        topology=topology,
        num_chips=len(devices),
        batch_size=batch_size,
        memory=sum(parts.values()),
        parts=parts,
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        collectives=collectives(compiled.as_text()),
    )


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Within, no program goes into JAX's cache: one for absent chips cannot be read from there."""
    name = "jax_persistent_cache_min_compile_time_secs"
    old = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, old)


def least_seconds(cost: StepCost) -> float:
    """The least time of a step at the chip's documented rates: reached only if nothing ever waits."""
    chip = chip_of(cost.topology)
    return max(cost.flops / chip.flops_per_second, cost.bytes_accessed / chip.bytes_per_second)


def collectives(hlo: str) -> dict[str, Collective]:
    """Counts the exchanges between devices in a compiled program.

    Args:
      hlo: its text, as `compiled.as_text()` gives it.

    Returns:
      What there is, by kind.
    """
    counts, sizes = collections.Counter(), collections.Counter()
    for shape, kind, start in _COLLECTIVE.findall(hlo):
        arrays = [_num_bytes(*found.group(2, 3)) for found in _SHAPE.finditer(shape)]
        if start and kind != "all-reduce":
            arrays = arrays[1:2]  # operand, result, and for some of them flags
        counts[kind] += 1
        sizes[kind] += sum(arrays)
    return {kind: Collective(counts[kind], sizes[kind]) for kind in _KINDS if counts[kind]}


def _num_bytes(bits: str | None, dimensions: str) -> int:
    count = 1
    for length in filter(None, dimensions.split(",")):
        count *= int(length)
    return count * int(bits or 8) // 8


def largest_batch(costs: Iterable[StepCost]) -> int:
    """The largest batch whose step fits, from two compiled ones: memory grows nearly linearly with it.

    Args:
      costs: of the same step, in two batch sizes.

    Returns:
      Faces over all chips, a multiple of their number; 0 where not even one a chip fits.

    Raises:
      InputError: the memory does not grow, as with batches so small that the program outweighs them.
    """
    small, large = sorted(costs, key=lambda cost: cost.batch_size)
    chips, room = small.num_chips, chip_of(small.topology).memory
    faces = (large.batch_size - small.batch_size) // chips
    per_face = (large.memory - small.memory) / faces
    if per_face <= 0:
        raise InputError(
            f"the memory at a batch of {large.batch_size} is not above that at {small.batch_size}; give a "
            "larger --batch-size"
        )
    fixed = small.memory - per_face * small.batch_size / chips
    return max(0, int((room - fixed) / per_face)) * chips

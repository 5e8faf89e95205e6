"""Placement of arrays: the state is replicated on every device, batches are split over the devices.

Only this module creates meshes and shardings. The same code runs on one device, several devices, and several
hosts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from lcgcn_jax.accelerators import default_backend, warn_if_gpu_is_unused
from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.cpu_kernels import kernel_prefix, with_cpu_kernels
from lcgcn_jax.errors import InputError


def describe_devices() -> str:
    """Number and kind of the devices of JAX: `4 x TPU v5e (tpu)`, `2 x cpu`."""
    warn_if_gpu_is_unused()
    devices = jax.devices()
    kind, platform = devices[0].device_kind, devices[0].platform
    return f"{len(devices)} x {kind}" + ("" if kind == platform else f" ({platform})")


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh with one axis, `data`, over the first `num_devices` devices (all of them by default)."""
    default_backend()  # its error is one line
    return mesh_of(jax.devices()[:num_devices])


def mesh_of(devices: Sequence[Any]) -> Mesh:
    """A mesh with one axis, `data`, over a list of `jax.Device`."""
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding with the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Sharding with the first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Check that a global batch can be split evenly over the devices.

    Raises:
      InputError: it cannot; the message has the next larger size that can.
    """
    if batch_size < 1 or batch_size % mesh.size:
        fits = max(1, -(-batch_size // mesh.size)) * mesh.size
        raise InputError(
            f"config train.batch_size: {batch_size} cannot be split over {mesh.size} devices; use {fits}"
        )


def put_batch(batch: PyTree[np.ndarray], mesh: Mesh) -> PyTree[jax.Array]:
    """Put this process's part of a batch on its devices, as part of the global batch."""
    sharding = by_batch(mesh)
    return jax.tree.map(
        lambda value: jax.make_array_from_process_local_data(sharding, value), batch
    )


def get_batch(batch: PyTree) -> PyTree[np.ndarray]:
    """Copy this process's part of a global batch to the host; the inverse of `put_batch`.

    The devices of a mesh are in the order of the topology, in which those of a process need not be adjacent.
    """

    def rows(array: Any) -> np.ndarray:
        shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate([np.asarray(shard.data) for shard in shards])

    return jax.tree.map(rows, batch)


def compile_train_step(step: Callable, mesh: Mesh) -> jax.stages.Wrapped:
    """Jit `step(state, batch)` with a replicated, donated state and a batch split over `data`."""
    return jax.jit(
        _traced(step, mesh),
        in_shardings=(replicated(mesh), by_batch(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
        compiler_options=_options(mesh),
    )


def compile_predict_step(step: Callable, mesh: Mesh) -> Callable:
    """Jit `step(params, batch_stats, inputs)` with inputs and results split over `data` (`get_batch`)."""
    whole = replicated(mesh)
    return jax.jit(
        _traced(step, mesh),
        in_shardings=(whole, whole, by_batch(mesh)),
        out_shardings=by_batch(mesh),
        compiler_options=_options(mesh),
    )


def is_one_cpu(mesh: Mesh) -> bool:
    """Whether the only device of a mesh is a CPU."""
    return mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


def _traced(step: Callable, mesh: Mesh) -> Callable:
    platform = mesh.devices.flat[0].platform
    return with_cpu_kernels(step, kernel_prefix(platform, mesh.size, build=True))


def _options(mesh: Mesh) -> dict[str, str]:
    return compiler_options(mesh.devices.flat[0].platform)

"""Where arrays live: the state on every device, batches cut over them.

The one place that knows of meshes. The same code runs on one device, on many, and on many hosts.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from lcgcn_jax.accelerators import warn_if_gpu_is_unused
from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.errors import InputError


def describe_devices() -> str:
    """What JAX computes on here, for people: `4 x TPU v5e (tpu)`, `2 x cpu`."""
    warn_if_gpu_is_unused()
    devices = jax.devices()
    kind, platform = devices[0].device_kind, devices[0].platform
    return f"{len(devices)} x {kind}" + ("" if kind == platform else f" ({platform})")


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh with one axis, `data`, over the first `num_devices` devices (all of them by default)."""
    return mesh_of(jax.devices()[:num_devices])


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh with one axis, `data`, over given devices."""
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """The first axis cut over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Refuses a global batch that cannot be cut evenly.

    Raises:
      InputError: with the next size that can.
    """
    if batch_size < 1 or batch_size % mesh.size:
        fits = max(1, -(-batch_size // mesh.size)) * mesh.size
        raise InputError(
            f"config train.batch_size: {batch_size} does not share out over {mesh.size} devices; "
            f"{fits} would"
        )


def put_batch(batch: PyTree[np.ndarray], mesh: Mesh) -> PyTree[jax.Array]:
    """This process's part of a batch, as part of the global one on the devices."""
    sharding = by_batch(mesh)
    return jax.tree.map(
        lambda value: jax.make_array_from_process_local_data(sharding, value), batch
    )


def compile_train_step(step: Callable, mesh: Mesh) -> Callable:
    """Jits `step(state, batch)`: state replicated and donated, batch cut over `data`."""
    return jax.jit(
        step,
        in_shardings=(replicated(mesh), by_batch(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
        compiler_options=_options(mesh),
    )


def compile_predict_step(step: Callable, mesh: Mesh) -> Callable:
    """Jits `step(params, batch_stats, inputs)`: results on every device, so that any host can read."""
    whole = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, whole, by_batch(mesh)),
        out_shardings=whole,
        compiler_options=_options(mesh),
    )


def _options(mesh: Mesh) -> dict[str, str]:
    return compiler_options(mesh.devices.flat[0].platform)

"""Selection of the platform by JAX: errors, and a warning about an NVIDIA GPU that is not used."""

import functools
import logging
import os
import subprocess
from importlib import metadata
from pathlib import Path

import jax

from lcgcn_jax.errors import InputError, install_command

_LOGGER = logging.getLogger("lcgcn_jax")
_DEVICE_FOLDER = Path("/dev")


def default_backend() -> str:
    """Platform on which JAX computes: `cpu`, `gpu` or `tpu`.

    Raises:
      InputError: `JAX_PLATFORMS` selects a platform that cannot be used.
    """
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        if not platforms:
            raise
        raise InputError(
            f"JAX_PLATFORMS={platforms}: JAX cannot use it on this computer; install the extra for it (cuda, "
            "tpu), or unset the variable"
        ) from error


@functools.cache
def warn_if_gpu_is_unused() -> None:
    """Log one warning per process if an NVIDIA GPU is present but JAX computes on the CPU.

    Initializes JAX's backends if a GPU is present, so call it only where they are needed anyway, and
    never before `jax.distributed.initialize`. Silent if `JAX_PLATFORMS` selects the platforms or
    `CUDA_VISIBLE_DEVICES` hides the GPUs.
    """
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if platforms or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return
    extra = _extra_for_gpu()
    if extra is None or jax.default_backend() != "cpu":
        return
    if _version(f"jax-{extra}-plugin") == _version("jaxlib"):
        fix = f"JAX's plugin for {extra} is installed but does not start; check the driver with nvidia-smi"
    else:
        fix = f"to use the GPU, run {install_command(extra)}"
    _LOGGER.warning(
        "lcgcn: warning: an NVIDIA GPU is present but JAX computes on the CPU; %s; to silence this "
        "warning, set JAX_PLATFORMS=cpu",
        fix,
    )


def _extra_for_gpu() -> str | None:
    """Extra of this package that suits the NVIDIA GPU of this machine; None without a GPU."""
    query = ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            query, capture_output=True, check=True, text=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        # Older drivers do not report the compute capability; containers often lack nvidia-smi.
        return "cuda12" if any(_DEVICE_FOLDER.glob("nvidia[0-9]*")) else None
    if not answer.strip():
        return None
    if _version("jax-cuda12-plugin") is not None and _version("jax-cuda13-plugin") is None:
        return "cuda12"  # upgrade the installed plugin; those of two CUDA releases would conflict
    return "cuda13" if all(map(_supports_cuda13, answer.strip().splitlines())) else "cuda12"


def _supports_cuda13(gpu: str) -> bool:
    """Whether a GPU, given as "580.65.06, 9.0" (driver, compute capability), runs CUDA 13."""
    try:
        driver, capability = gpu.split(",")
        return int(driver.split(".")[0]) >= 580 and float(capability) >= 7.5
    except ValueError:  # "[N/A]"
        return False


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

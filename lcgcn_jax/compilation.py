"""Compiler options of XLA that differ from the defaults."""

import os

import jax

from lcgcn_jax.accelerators import warn_if_gpu_is_unused

_OPTION = "xla_cpu_experimental_ynn_fusion_type"
_FUSIONS = ("LIBRARY_FUSION_TYPE_ELTWISE", "LIBRARY_FUSION_TYPE_REDUCE")


_FAST_COMPILATION = {"xla_cpu_use_fusion_emitters": False}


def inference_options() -> dict[str, str | bool]:
    """Compiler options for `jax.jit` of the programs that predict faces.

    On a CPU, XLA's older emitter of fusions compiles `w300-lcgcn-small` in 23 % less time. The program has
    the same results and takes 1.5 % longer (docs/research/speed.md). Later versions of JAX do not have it.
    """
    is_available = jax.default_backend() == "cpu" and jax.__version_info__ < (0, 11)
    fast = _FAST_COMPILATION if is_available else {}
    return {**compiler_options(), **fast}


def compiler_options(platform: str | None = None) -> dict[str, str]:
    """Compiler options for `jax.jit`.

    On a CPU, operations between the convolutions (sums, ReLUs, means) run in YNNPACK, a library in jaxlib.
    HRNet-W18 then infers and trains nearly twice as fast, and compiles in a quarter of the time
    (docs/research/speed.md). The option is experimental in XLA. In YNNPACK `max(nan, 0)` is 0, so a ReLU
    hides a NaN. Training therefore checks gradients and parameters in addition to the loss, and weights in
    files have to be finite. A value of the option in the environment variable `XLA_FLAGS` takes precedence.

    Args:
      platform: platform of the devices (`jax.Device.platform`); None: that of JAX's default backend.
    """
    on_cpu = (jax.default_backend() if platform is None else platform) == "cpu"
    if on_cpu:
        warn_if_gpu_is_unused()
    if not on_cpu or _OPTION in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {_OPTION: ",".join(_FUSIONS)}

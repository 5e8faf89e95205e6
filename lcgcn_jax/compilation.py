"""What XLA is asked for beyond its defaults."""

import os

import jax

from lcgcn_jax.accelerators import warn_if_gpu_is_unused

_OPTION = "xla_cpu_experimental_ynn_fusion_type"
_FUSIONS = ("LIBRARY_FUSION_TYPE_ELTWISE", "LIBRARY_FUSION_TYPE_REDUCE")


def compiler_options(platform: str | None = None) -> dict[str, str]:
    """Options for `jax.jit`.

    On a CPU what lies between the convolutions (sums, ReLUs, means) goes to YNNPACK, a library within
    jaxlib: HRNet-W18 then infers and trains nearly twice as fast, and compiles in a quarter of the time
    (docs/research/speed.md). XLA calls the option experimental. What it changes: in YNNPACK
    `max(nan, 0)` is 0, so a ReLU hides a NaN. The training loop therefore looks not at the loss alone but
    at gradient and parameters too, and weights that are read have to be finite. Who names the option in
    `XLA_FLAGS` has it as written there.

    Args:
      platform: of the devices (`jax.Device.platform`); JAX's default if None.
    """
    on_cpu = (jax.default_backend() if platform is None else platform) == "cpu"
    if on_cpu:
        warn_if_gpu_is_unused()
    if not on_cpu or _OPTION in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {_OPTION: ",".join(_FUSIONS)}

"""Report of a training step that was compiled for a TPU slice or GPUs."""

from lcgcn_jax.profiling.aot_compile import GIB, StepCost, chip_of, least_seconds
from lcgcn_jax.tables import format_table


def format_step(cost: StepCost) -> str:
    """Table of the cost of a step for one chip."""
    chip, seconds = chip_of(cost.topology), least_seconds(cost)
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in cost.parts.items())
    rows = [
        ["memory", f"{cost.memory / GIB:.2f} of {chip.memory / GIB:.2f} GiB ({parts})"],
        ["operations", f"{cost.flops / 1e9:,.1f} GFLOP"],
        ["bytes accessed", f"{cost.bytes_accessed / GIB:.2f} GiB"],
    ]
    for kind, kernels in cost.kernels.items():
        rows.append([f"{kind} kernels", f"{kernels.count:,} with {kernels.size / GIB:.2f} GiB"])
    for kind, collective in cost.collectives.items():
        total = f"{collective.size / 2**20:.2f} MiB in total"
        rows.append([kind, f"{collective.count} with {total}"])
    if not cost.collectives:
        rows.append(["collectives", "none"])
    speed = f"{1 / seconds:.1f} steps/s, {cost.batch_size / seconds:.0f} faces/s"
    caches = "; more if bytes hit its caches" if cost.kernels else ""
    rows.append(["upper bound", f"{speed} at the documented rates of the chip{caches}"])
    return (
        f"{cost.topology}, {cost.num_chips} chips, batch {cost.batch_size}; per chip, computed by the "
        f"compiler, not measured:\n{format_table(rows, num_left=2)}"
    )

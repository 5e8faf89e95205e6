"""Table of the shipped models, from their bundles and model cards."""

from lcgcn_jax.interop.hub import card_metrics
from lcgcn_jax.models.bundles import CARD, SHIPPED, WEIGHTS, load_bundle, shipped_bundles
from lcgcn_jax.tables import format_table

_HEADER = ("name", "landmarks", "input", "parameters", "size", "NME", "AUROC of visibility", "CPU")
_METRICS = {"nme": "{:.2f} %", "roc_auc": "{:.3f}", "ms_per_face": "{:.1f} ms per face"}


def shipped_model_table() -> str:
    """Table of the shipped models with their size and the metrics of their cards."""
    return format_table([_HEADER, *map(_describe, shipped_bundles())])


def _describe(name: str) -> tuple[str, ...]:
    bundle = load_bundle(name)
    metrics = card_metrics((SHIPPED / name / CARD).read_text(encoding="utf-8"))
    return (
        name,
        f"{bundle.scheme.num_landmarks} ({bundle.scheme.name})",
        f"{bundle.image_size} px",
        f"{sum(weight.size for weight in bundle.weights.values()) / 1e6:.1f} M",
        f"{(SHIPPED / name / WEIGHTS).stat().st_size / 1e6:.1f} MB",
        *(text.format(metrics[k]) if k in metrics else "-" for k, text in _METRICS.items()),
    )

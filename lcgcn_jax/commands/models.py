"""List the models that come with the package.

Use their names wherever a command takes --model. The model card states the conditions of the measurements.

Example: lcgcn predict --model w300-lcgcn-small photo.jpg
"""

import argparse

from lcgcn_jax.accelerators import warn_if_gpu_is_unused
from lcgcn_jax.commands.options import add
from lcgcn_jax.interop.hub import card_metrics
from lcgcn_jax.models.bundles import CARD, SHIPPED, WEIGHTS, load_bundle, shipped_bundles
from lcgcn_jax.tables import format_table

_HEADER = ("name", "landmarks", "input", "parameters", "size", "NME", "AUROC of visibility", "CPU")
_METRICS = {"nme": "{:.2f} %", "roc_auc": "{:.3f}", "ms_per_face": "{:.1f} ms per face"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--card", metavar="NAME", choices=shipped_bundles(), help="show a model card")


def run(args: argparse.Namespace) -> int:
    if args.card is not None:
        print((SHIPPED / args.card / CARD).read_text(encoding="utf-8"), end="")
        return 0
    warn_if_gpu_is_unused()
    rows: list[tuple[str, ...]] = [_HEADER]
    for name in shipped_bundles():
        bundle = load_bundle(name)
        metrics = card_metrics((SHIPPED / name / CARD).read_text(encoding="utf-8"))
        rows.append(
            (
                name,
                f"{bundle.scheme.num_landmarks} ({bundle.scheme.name})",
                f"{bundle.image_size} px",
                f"{sum(weight.size for weight in bundle.weights.values()) / 1e6:.1f} M",
                f"{(SHIPPED / name / WEIGHTS).stat().st_size / 1e6:.1f} MB",
                *(text.format(metrics[k]) if k in metrics else "-" for k, text in _METRICS.items()),
            )
        )
    print(format_table(rows))
    return 0

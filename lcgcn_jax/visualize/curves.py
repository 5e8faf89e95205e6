"""Training curves (figure 4)."""

from collections.abc import Sequence

import matplotlib.figure
import matplotlib.ticker

LOSSES = {
    "loss": "total",
    "focal": "focal",
    "mse": "MSE",
    "adaptive_wing": "Adaptive Wing",
    "bce": "cross entropy",
    "heatmap_coordinate": "coordinates of the heatmaps",
    "l1": "L1 (fraction of the crop)",
    "smooth_l1": "smooth L1",
    "wing": "Wing",
    "normalized_l2": "L2 (fraction of the face)",
    "visibility": "visibility",
}
"""Labels of the training losses, by their names in the metric log (`training.steps.total_loss`)."""


def plot_curves(rows: Sequence[dict[str, int | float]]) -> matplotlib.figure.Figure:
    """Plot the training losses and the validation NME of both stages over the steps (figure 4).

    Args:
      rows: metric log of a run, from `training.metric_writer.read_metrics`.
    """
    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    loss_axes, nme_axes = figure.subplots(1, 2)
    for name, text in LOSSES.items():
        points = [(r["step"], r[f"train/{name}"]) for r in rows if f"train/{name}" in r]
        if points:
            loss_axes.plot(*zip(*points, strict=True), label=text, linewidth=1)
    loss_axes.set(xlabel="step", ylabel="training loss", yscale="log")
    for stage, style in (("heatmap", "o-"), ("graph", "s-")):
        key = f"validation/{stage}_nme"
        points = [(r["step"], r[key]) for r in rows if key in r]
        if points:
            nme_axes.plot(*zip(*points, strict=True), style, label=f"{stage} stage", markersize=4)
    nme_axes.set(xlabel="step", ylabel="validation NME (%)", yscale="log")
    nme_axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    nme_axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    for axes in (loss_axes, nme_axes):
        axes.grid(alpha=0.3, which="both")
        if axes.lines:
            axes.legend()
    return figure

"""Pictures: landmarks on faces, the stages side by side, a graph's edges, training curves."""

from lcgcn_jax.visualize.curves import plot_curves
from lcgcn_jax.visualize.faces import (
    draw_landmarks,
    enlarge,
    label,
    save_image,
    stage_comparison,
)

__all__ = [
    "draw_landmarks",
    "enlarge",
    "label",
    "plot_curves",
    "save_image",
    "stage_comparison",
]

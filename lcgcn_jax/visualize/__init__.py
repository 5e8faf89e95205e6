"""Plots and overlays: landmarks on images, stage comparison, edges of the graph, training curves."""

from lcgcn_jax.visualize.curves import plot_curves
from lcgcn_jax.visualize.edges import edge_threshold, plot_edge_matrices, plot_edges
from lcgcn_jax.visualize.faces import (
    draw_landmarks,
    encode_image,
    enlarge,
    label,
    save_image,
    stage_comparison,
)
from lcgcn_jax.visualize.overlays import draw, draw_faces

__all__ = [
    "draw",
    "draw_faces",
    "draw_landmarks",
    "edge_threshold",
    "encode_image",
    "enlarge",
    "label",
    "plot_curves",
    "plot_edge_matrices",
    "plot_edges",
    "save_image",
    "stage_comparison",
]

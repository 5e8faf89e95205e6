"""Plots and overlays: landmarks on images, stage comparison, edges of the graph, training curves."""

import importlib
from typing import TYPE_CHECKING, Any

from lcgcn_jax.visualize.faces import (
    draw_landmarks,
    encode_image,
    enlarge,
    label,
    save_image,
    stage_comparison,
)
from lcgcn_jax.visualize.overlays import draw, draw_faces

if TYPE_CHECKING:
    from lcgcn_jax.visualize.curves import plot_curves
    from lcgcn_jax.visualize.edges import edge_threshold, plot_edge_matrices, plot_edges

# These modules import Matplotlib, which takes a second and which `lcgcn predict` does not need.
_PLOTS = {
    "plot_curves": "curves",
    "edge_threshold": "edges",
    "plot_edge_matrices": "edges",
    "plot_edges": "edges",
}

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


def __getattr__(name: str) -> Any:
    if name not in _PLOTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLOTS[name]}"), name)

"""Plots and overlays: landmarks on images, stage comparison, edges of the graph, training curves."""

import importlib
from typing import Any

from lcgcn_jax.visualize.faces import (
    draw_landmarks,
    encode_image,
    enlarge,
    label,
    save_image,
    stage_comparison,
)
from lcgcn_jax.visualize.overlays import draw, draw_faces

# These modules import Matplotlib, which takes a second and which `lcgcn predict` does not need.
_PLOTS = {
    "plot_curves": "curves",
    "edge_threshold": "edges",
    "plot_edge_matrices": "edges",
    "plot_edges": "edges",
}

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
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

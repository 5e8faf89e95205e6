"""Plots and overlays: landmarks on images, stage comparison, edges of the graph, training curves."""

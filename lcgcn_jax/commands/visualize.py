"""Plot the stages of a model, the edges of its graph, and training curves.

For faces of a split, writes stages.png (truth, heatmap stage, graph stage),
edges.png (the strongest edges of the graph on each face, and their difference
from the mean) and edge_matrices.png (all edges, grouped by parts of the face).
For a training workdir, writes curves.png (training loss, validation NME).

Example:
  lcgcn visualize --model runs/small --data data/w300 --landmark nose_bridge
"""

import argparse
from pathlib import Path

from lcgcn_jax.arguments import number
from lcgcn_jax.cache import use_compilation_cache
from lcgcn_jax.commands.options import add, add_count
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.errors import InputError, require_absent
from lcgcn_jax.inference.model import load_model
from lcgcn_jax.models.hub import hub_reference
from lcgcn_jax.storage import as_path
from lcgcn_jax.training.api import CURVES, write_curves
from lcgcn_jax.training.metric_writer import LOG, read_metrics
from lcgcn_jax.visualize.stages import plot_faces


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model")
    add(parser, "--data", required=False, help="dataset folder with faces to draw")
    add(parser, "--split", default="validation", help="split of the faces")
    add_count(parser, "--faces", 8, "number of faces")
    add(parser, "--skip", type=number(int, 0), default=0, help="number of faces to skip first")
    text = "draw only the incoming edges of this landmark: its index from 0, its name, or the name "
    text += "of a part of the face such as left_eye (default: all landmarks)"
    add(parser, "--landmark", help=text)
    text = "draw the edges above this weight, 0..1 (default: the strongest edges, one per landmark "
    text += "on average and at least eight, with one threshold for all faces)"
    add(parser, "--edge-threshold", type=float, metavar="WEIGHT", help=text)
    add(parser, "--out", default=Path("plots"), help="output folder")
    add(parser, "--overwrite")


def run(args: argparse.Namespace) -> int:
    rows = [] if hub_reference(args.model) else read_metrics(as_path(args.model))
    if args.data is None and not rows:
        raise InputError(f"{args.model}: no {LOG} to plot; give --data to draw faces")
    if args.data is None and (args.landmark, args.edge_threshold) != (None, None):
        raise InputError("--landmark and --edge-threshold: need faces to draw on; give --data")
    if rows:
        require_absent(args.out / CURVES, overwrite=args.overwrite)
    if args.data is not None:
        use_compilation_cache()
        paths = plot_faces(
            load_model(args.model),
            open_dataset(args.data),
            args.split,
            args.out,
            count=args.faces,
            skip=args.skip,
            landmark=args.landmark,
            threshold=args.edge_threshold,
            overwrite=args.overwrite,
        )
        print(*paths, sep="\n")
        if len(paths) == 1:
            print(f"{args.model}: the model has no graph; no edges are drawn")
    if rows:
        write_curves(as_path(args.model), args.out / CURVES)
        print(args.out / CURVES)
    return 0

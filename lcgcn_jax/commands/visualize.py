"""`lcgcn visualize`: pictures of a model on a split, and of a run's curves."""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from lcgcn_jax import visualize
from lcgcn_jax.commands.main import use_compilation_cache
from lcgcn_jax.data.dataset import open_dataset, require_scheme
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.model import load
from lcgcn_jax.training.metric_writer import LOG, read_metrics
from lcgcn_jax.visualize.stages import compare_stages, predict_faces

STAGES, EDGES, MATRICES, CURVES = "stages.png", "edges.png", "edge_matrices.png", "curves.png"

_EDGES_DPI = 160
_CURVES_DPI = 120


def add_parser(subparsers) -> None:
    """Adds `visualize` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "visualize",
        help="pictures of a run: the stages side by side, the graph's edges, training curves",
        description="For faces of a split writes stages.png (truth, heatmap stage, graph stage), "
        "edges.png (the graph's strongest edges on each face, and how they differ from their mean) "
        "and edge_matrices.png (all edges, by parts of the face); for a training workdir, curves.png "
        "(training loss, validation NME).",
        epilog="example: lcgcn visualize --model runs/small --data data/w300 --split validation "
        "--faces 4 --landmark nose_bridge",
    )
    parser.add_argument("--model", type=Path, required=True, help="bundle or training workdir")
    parser.add_argument("--data", type=Path, help="folder that prepare wrote, to draw faces of")
    parser.add_argument("--split", default="validation", help="whose faces (%(default)s)")
    parser.add_argument("--faces", type=int, default=8, help="how many (%(default)s)")
    parser.add_argument("--skip", type=int, default=0, help="faces to leave out first")
    parser.add_argument(
        "--landmark",
        help="draw the edges into this landmark only: its index from 0, its name, or the name of a "
        "part of the face such as left_eye (all landmarks)",
    )
    parser.add_argument(
        "--edge-threshold",
        type=float,
        metavar="WEIGHT",
        help="draw the edges above this weight, 0..1 (by default the strongest: on average as many a "
        "face as landmarks listen, at least eight; one threshold for all faces)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("pictures"), help="folder for them (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that are there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws what can be drawn of the model.

    Raises:
      InputError: there is nothing to draw, or a picture is there already.
    """
    rows = read_metrics(args.model)
    if args.data is None and not rows:
        raise InputError(f"{args.model}: no {LOG} to draw curves from; give --data to draw faces")
    if args.data is None and (args.landmark, args.edge_threshold) != (None, None):
        raise InputError("--landmark and --edge-threshold draw edges on faces; give --data")
    if args.faces < 1 or args.skip < 0:
        raise InputError(
            f"--faces {args.faces} --skip {args.skip}: at least 1 face, at least 0 skipped"
        )
    if args.edge_threshold is not None and not 0 <= args.edge_threshold < 1:
        raise InputError(f"--edge-threshold {args.edge_threshold:g}: a weight lies in 0..1")
    wanted, has_graph = [CURVES] if rows else [], False
    if args.data is not None:
        use_compilation_cache()
        model, dataset = load(args.model), open_dataset(args.data)
        require_scheme(dataset, model.scheme)
        target_nodes = None if args.landmark is None else model.scheme.find(args.landmark)
        has_graph = model.config["graph"] is not None
        wanted += [STAGES, *([EDGES, MATRICES] if has_graph else [])]
    for path in (args.out / name for name in wanted):
        if path.exists() and not args.overwrite:
            raise InputError(f"{path}: already exists; choose another --out or give --overwrite")
    if args.data is not None:
        faces, output = predict_faces(model, dataset, args.split, args.faces, skip=args.skip)
        args.out.mkdir(parents=True, exist_ok=True)
        visualize.save_image(args.out / STAGES, compare_stages(faces, output, dataset))
        print(args.out / STAGES)
    if has_graph:
        titles = [f"face {record}" for record in faces["record"]]
        figure = visualize.plot_edges(
            faces["image"],
            output.heatmap_landmarks,
            output.edges,
            model.scheme,
            titles,
            target_nodes=target_nodes,
            threshold=args.edge_threshold,
        )
        _save(args.out / EDGES, figure, _EDGES_DPI)
        matrices = visualize.plot_edge_matrices(output.edges, model.scheme, titles)
        _save(args.out / MATRICES, matrices, _EDGES_DPI)
    elif args.data is not None:
        print(f"{args.model}: a model without a graph; no edges to draw")
    if rows:
        args.out.mkdir(parents=True, exist_ok=True)
        _save(args.out / CURVES, visualize.plot_curves(rows), _CURVES_DPI)
    return 0


def _save(path: Path, figure: Figure, dpi: int) -> None:
    figure.savefig(path, dpi=dpi, bbox_inches="tight")
    print(path)

"""`lcgcn visualize`: pictures of a model on a split, and of a run's curves."""

import argparse
from pathlib import Path

import numpy as np

from lcgcn_jax import visualize
from lcgcn_jax.commands.main import use_compilation_cache
from lcgcn_jax.data.dataset import FaceDataset, open_dataset, require_scheme
from lcgcn_jax.data.pipeline import eval_batches
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference import LandmarkModel, load
from lcgcn_jax.training.metric_writer import LOG, read_metrics


def add_parser(subparsers) -> None:
    """Adds `visualize` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "visualize",
        help="pictures of a run: the stages side by side, training curves",
        description="Writes stages.png (truth, heatmap stage, graph stage) for faces of a split "
        "and, for a training workdir, curves.png (training loss, validation NME).",
        epilog="example: lcgcn visualize --model runs/small --data data/w300 --split validation",
    )
    parser.add_argument("--model", type=Path, required=True, help="bundle or training workdir")
    parser.add_argument("--data", type=Path, help="folder that prepare wrote, for stages.png")
    parser.add_argument("--split", default="validation", help="whose faces (%(default)s)")
    parser.add_argument("--faces", type=int, default=8, help="how many (%(default)s)")
    parser.add_argument("--skip", type=int, default=0, help="faces to leave out first")
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
    if args.faces < 1 or args.skip < 0:
        raise InputError(
            f"--faces {args.faces} --skip {args.skip}: at least 1 face, at least 0 skipped"
        )
    stages, curves = args.out / "stages.png", args.out / "curves.png"
    for path, wanted in ((stages, args.data is not None), (curves, bool(rows))):
        if wanted and path.exists() and not args.overwrite:
            raise InputError(f"{path}: already exists; choose another --out or give --overwrite")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.data is not None:
        use_compilation_cache()
        model, dataset = load(args.model), open_dataset(args.data)
        require_scheme(dataset, model.scheme.name)
        picture = compare_stages(model, dataset, args.split, args.faces, skip=args.skip)
        visualize.save_image(stages, picture)
        print(stages)
    if rows:
        visualize.plot_curves(rows).savefig(curves, dpi=120)
        print(curves)
    return 0


def compare_stages(
    model: LandmarkModel, dataset: FaceDataset, split: str, count: int, *, skip: int = 0
) -> np.ndarray:
    """Truth and both stages side by side, for some faces of a split."""
    batches = eval_batches(dataset, split, image_size=model.image_size, batch_size=skip + count)
    batch = next(iter(batches))
    rows = np.flatnonzero(batch["mask"])[skip:]
    output = model.predict_crops(batch["image"][rows])
    stages = {"heatmap stage": output.heatmap_landmarks}
    if output.edges is not None:
        stages["graph stage"] = output.landmarks
    return visualize.stage_comparison(
        batch["image"][rows], batch["landmarks"][rows], stages, dataset.scheme
    )

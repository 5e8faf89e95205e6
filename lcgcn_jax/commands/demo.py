"""`lcgcn demo`: the main job, small, from nothing."""

import argparse
import json
from pathlib import Path

from lcgcn_jax import visualize
from lcgcn_jax.commands import train
from lcgcn_jax.commands.main import use_compilation_cache
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.evaluator import evaluate
from lcgcn_jax.evaluation.mean_face import mean_face_errors
from lcgcn_jax.inference.model import load
from lcgcn_jax.synthetic.dataset import prepare_synthetic
from lcgcn_jax.training.config import load_config
from lcgcn_jax.training.metric_writer import read_metrics
from lcgcn_jax.training.trainer import Trainer
from lcgcn_jax.visualize.stages import compare_stages, predict_faces

_SHOWN = 6


def add_parser(subparsers) -> None:
    """Adds `demo` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "demo",
        help="the main job, small, from nothing: data, training, evaluation, pictures",
        description="Draws synthetic faces, prepares them, trains a small LCGCN, measures it on "
        "faces it never saw, and writes pictures. About six minutes on two CPU cores.",
        epilog="example: lcgcn demo --out runs/demo",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder to make (%(default)s)"
    )
    parser.add_argument("--config", default="demo", help="config to train (%(default)s)")
    parser.add_argument("--faces", type=int, default=1800, help="faces to train and validate with")
    parser.add_argument("--test-faces", type=int, default=200, help="faces to test with")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the demo from start to end; returns 0.

    Raises:
      InputError: the folder is there already.
      Interrupted: SIGINT, SIGTERM or SIGHUP (exit codes 130, 143 and 129) ended the training.
    """
    if args.out.exists() and any(args.out.iterdir()):
        raise InputError(f"{args.out}: already exists; choose another --out or remove it")
    data, workdir = args.out / "data", args.out / "train"
    config = load_config(args.config)
    config.data.dir = str(data)
    use_compilation_cache()

    print(f"1/4 drawing and preparing {args.faces + args.test_faces:,} synthetic faces")
    prepare_synthetic(config.scheme, data, num_train=args.faces, num_test=args.test_faces, seed=0)
    training = Trainer(config, workdir).prepare()
    print(
        f"2/4 training {training.config.train.steps:,} steps (the first compiles, about a minute)"
    )
    if not training.run(on_validation=train.print_figures):
        stop = training.interruption()
        stop.kept = f"remove {args.out}, or choose another --out"
        raise stop

    print("3/4 measuring on faces it never saw")
    dataset, model = open_dataset(data), load(workdir)
    result = evaluate(model, dataset, split="test", batch_size=config.train.batch_size)
    baseline = 100 * float(mean_face_errors(dataset, "train", "test").mean())
    (args.out / "eval.json").write_text(
        json.dumps(result.to_dict() | {"mean_face_nme": baseline}, indent=1) + "\n",
        encoding="utf-8",
    )
    print(result)
    print(f"mean face placed in the ground-truth box: NME {baseline:.3f} %")

    print("4/4 drawing")
    faces, output = predict_faces(model, dataset, "test", _SHOWN)
    visualize.save_image(args.out / "stages.png", compare_stages(faces, output, dataset))
    visualize.plot_curves(read_metrics(workdir)).savefig(args.out / "curves.png", dpi=120)
    print(
        f"{args.out}: stages.png (truth, heatmap stage, graph stage), curves.png, eval.json, "
        "data/, train/best/ (the model)"
    )
    return 0

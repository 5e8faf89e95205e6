"""Demonstration of the whole pipeline on synthetic faces."""

from collections.abc import Callable
from pathlib import Path

import ml_collections

from lcgcn_jax.atomic_io import write_json
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.evaluator import evaluate
from lcgcn_jax.evaluation.mean_face import mean_face_errors
from lcgcn_jax.inference.model import load_model
from lcgcn_jax.interrupts import Interrupted
from lcgcn_jax.synthetic.dataset import prepare_synthetic
from lcgcn_jax.training.api import CURVES, train, write_curves
from lcgcn_jax.visualize.faces import save_image
from lcgcn_jax.visualize.stages import compare_stages, predict_faces


def run_demo(
    config: ml_collections.ConfigDict,
    out: Path,
    *,
    num_train: int,
    num_test: int,
    on_validation: Callable[[int, dict[str, float]], None],
    report: Callable[[str], object],
) -> None:
    """Draw faces, train a model, evaluate it and plot the results in a new folder.

    `on_validation` is that of `train`; `report` is called with a line of text about each stage.

    Raises:
      InputError: the folder is not empty.
      Interrupted: SIGINT, SIGTERM or SIGHUP stopped the training.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: already exists; choose another --out or remove it")
    data, workdir = out / "data", out / "train"
    config = ml_collections.ConfigDict(config.to_dict())
    config.data.dir = str(data)
    report(f"1/4 preparing {num_train + num_test:,} synthetic faces")
    prepare_synthetic(config.scheme, data, num_train=num_train, num_test=num_test, seed=0)
    report("2/4 training (compiling the first step takes about a minute)")
    try:
        train(config, workdir, on_validation=on_validation)
    except Interrupted as stop:
        stop.saved = f"remove {out}, or choose another --out"
        raise
    report("3/4 evaluating on the test faces")
    dataset, model = open_dataset(data), load_model(workdir)
    result = evaluate(model, dataset, split="test", batch_size=config.train.batch_size)
    baseline = 100 * float(mean_face_errors(dataset, "train", "test").mean())
    write_json(out / "eval.json", result.to_dict() | {"mean_face_nme": baseline})
    report(f"{result}\nbaseline, the mean face in the ground-truth box: NME {baseline:.3f} %")
    report("4/4 plotting")
    faces, output = predict_faces(model, dataset, "test", count=6)
    save_image(out / "stages.png", compare_stages(faces, output, dataset))
    write_curves(workdir, out / CURVES)
    report(
        f"{out}: stages.png (truth, heatmap stage, graph stage), {CURVES}, eval.json, data/, "
        "train/best/ (the model)"
    )

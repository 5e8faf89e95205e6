"""Evaluate a model on a split: NME, failure rate, AUC.

NME and the failure rate at 0.1 are in percent; the area under the error curve
up to 0.1 (AUC) is in 0..1. For a model with predicted errors ('lcgcn research
calibrate'), a second table compares them with the measured errors in ten bins,
and gives the area between its sparsification curve and that of an oracle
(AUSE). For a model with a visibility head, on data with visibility labels, a
table shows how well occluded landmarks are detected (AUROC, average precision).

Example: lcgcn eval --model runs/small --data data/w300 --split full --flip-test
"""

import argparse

from lcgcn_jax.arguments import local_path, location
from lcgcn_jax.atomic_io import require_writable, write_json
from lcgcn_jax.cache import use_compilation_cache
from lcgcn_jax.commands.options import add, add_flag
from lcgcn_jax.compat import upgrade_corruption
from lcgcn_jax.data.corruptions import CORRUPTIONS
from lcgcn_jax.data.dataset import open_dataset, require_scheme
from lcgcn_jax.evaluation.evaluator import BOXES, evaluate
from lcgcn_jax.evaluation.face_errors import write_face_errors
from lcgcn_jax.evaluation.reported_results import require_comparable
from lcgcn_jax.evaluation.tables import compare_reported
from lcgcn_jax.inference.model import load_model
from lcgcn_jax.landmarks import EVALUATION_NORMALIZERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model", "--data")
    add(parser, "--split", required=True, help="for example test, common, challenge, full")
    text = "face boxes: of the true landmarks, of the dataset, or of the face detector on the "
    text += "clean image (missed faces get the gt box and are counted)"
    add(parser, "--boxes", choices=BOXES, default="gt", help=text)
    add(parser, "--detector-model", "--flip-test")
    text = "corrupt each crop, seeded by its name: rectangles, Gaussian blur or noise, or low light"
    corruption = {"type": upgrade_corruption, "choices": CORRUPTIONS, "default": "none"}
    add(parser, "--corruption", **corruption, help=text)
    text = "divide errors by the distance between the outer eye corners or the pupils, or by the "
    text += "square root of the area of the true landmarks' box (default: that of the dataset)"
    add(parser, "--normalizer", choices=EVALUATION_NORMALIZERS, help=text)
    text = "remove the annotation offsets in FILE ('lcgcn research fit-offsets') from the landmarks"
    add(parser, "--offsets", type=location, metavar="FILE", help=text)
    text = "compare with results reported in the literature for the test sets of WFLW or 300W"
    add_flag(parser, "--compare-reported", text)
    add(parser, "--batch-size", "--json", "--overwrite")
    text = "output CSV file for the NME of each face in %%: name, heatmap, graph"
    add(parser, "--per-face", type=local_path, metavar="FILE", help=text)


def run(args: argparse.Namespace) -> int:
    require_writable(*filter(None, (args.json, args.per_face)), overwrite=args.overwrite)
    use_compilation_cache()
    model = load_model(args.model)
    dataset = open_dataset(args.data)
    require_scheme(dataset, model.scheme)
    if args.compare_reported:
        require_comparable(dataset, normalizer=args.normalizer, offsets=args.offsets)
    names = ("split", "boxes", "flip_test", "corruption", "normalizer", "offsets", "batch_size")
    settings = {name: getattr(args, name) for name in (*names, "detector_model")}
    result = evaluate(model, dataset, **settings)
    print(result)
    if args.compare_reported:
        print(compare_reported(dataset, args.split, result))
    if args.per_face is not None:
        write_face_errors(args.per_face, dataset, args.split, result.errors)
    if args.json is not None:
        write_json(args.json, result.to_dict())
    return 0

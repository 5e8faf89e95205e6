"""`lcgcn fit-offsets`: fit the offsets of a data set from a model's annotation style."""

import argparse
import json
from pathlib import Path

from lcgcn_jax.atomic_io import require_writable, write_whole, writing
from lcgcn_jax.commands.main import use_compilation_cache
from lcgcn_jax.data.dataset import open_dataset, require_scheme
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.evaluator import with_flip_test
from lcgcn_jax.inference.model import load
from lcgcn_jax.training.fit_offsets import OffsetFit, fit_annotation_offsets


def add_parser(subparsers) -> None:
    """Adds `fit-offsets` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "fit-offsets",
        help="fit where a data set places landmarks differently from the data of a model",
        description="Data sets place the same landmark differently. Fits for each landmark the median "
        "offset of the training faces' annotations from a model's predictions, rotated and scaled with the "
        "face, and writes the offsets to a file. In training, data.sources=[[DIR, WEIGHT, FILE], ...] or "
        "data.offsets=FILE removes them from the annotations; 'lcgcn eval --offsets FILE' and 'lcgcn "
        "calibrate' do so too. Where each face has exactly one attribute, such as its pose, each attribute "
        "has offsets of its own. Train the model on data of the target style only: a model "
        "that has seen the data set has learned a part of its offsets.",
        epilog="example: lcgcn fit-offsets --model w300-lcgcn-small --data data/merl_rav --out merl_rav.json",
    )
    parser.add_argument("--model", required=True, help="bundle or training workdir")
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare wrote")
    parser.add_argument("--out", type=Path, required=True, help="file to write the offsets to")
    parser.add_argument(
        "--flip-test", action="store_true", help="average over the crop and its mirror image"
    )
    parser.add_argument(
        "--min-count",
        type=int,
        default=30,
        help="fit a landmark's offset for a pose only to at least this number of faces, with the mirror "
        "images of the opposite pose; others have the offset of the frontal faces (%(default)s)",
    )
    parser.add_argument(
        "--max-spread",
        type=float,
        default=1.5,
        help="give a pose a constant offset if the distances from the model scatter more than this many "
        "times as far as on frontal faces: the model fails there (%(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="faces at a time (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fits, prints the error before and after, and writes.

    Raises:
      InputError: model or data cannot be used, or the file exists.
    """
    if args.batch_size < 1 or args.min_count < 1 or not args.max_spread > 0:
        raise InputError("--batch-size and --min-count: at least 1; --max-spread: above 0")
    require_writable(args.out, overwrite=args.overwrite)
    use_compilation_cache()
    model = load(args.model)
    dataset = open_dataset(args.data)
    require_scheme(dataset, model.scheme)
    predict = model.predict_crops
    if args.flip_test:
        predict = with_flip_test(predict, model.scheme, model.flip_bias)
    fit = fit_annotation_offsets(
        predict,
        dataset,
        image_size=model.image_size,
        batch_size=args.batch_size,
        min_count=args.min_count,
        max_ratio=args.max_spread,
    )
    print(format_fit(fit))
    text = json.dumps(fit.offsets.to_dict(), indent=1) + "\n"
    with writing(args.out):
        write_whole(args.out, lambda tmp: tmp.write_text(text, encoding="utf-8"))
    print(f"{args.out}: annotation offsets of {args.data} from the style of {args.model}")
    return 0


def format_fit(fit: OffsetFit) -> str:
    """The quality of a fit as a table."""
    width = max(len(group.name) for group in fit.groups)
    k = len(fit.offsets.mean_face)
    lines = [
        "mean distance from the predictions on training faces, in % of the outer eye distance",
        f"{'':{width}}  faces  before   after  fitted landmarks",
    ]
    for group in fit.groups:
        other = f", others {group.fallback}" if group.fallback else ""
        lines.append(
            f"{group.name:{width}}  {group.num_faces:5d}  {group.before:6.2f}  {group.after:6.2f}  "
            f"{group.num_fitted} of {k}{other}"
        )
    note = "" if fit.flip_bias else ", not significant"
    lines.append(
        f"constant in x that mirror images do not share: {fit.flip_bias:.2f} (standard error "
        f"{fit.flip_bias_error:.2f}{note})"
    )
    return "\n".join(lines)

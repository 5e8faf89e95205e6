"""Fit systematic annotation offsets between a dataset and a model.

For each landmark, fits the median offset between the annotations of the
training faces and the predictions of a model, rotated and scaled with the face.
Train the model only on data of the target style. The config fields
data.sources=[[DIR, WEIGHT, FILE], ...] and data.offsets=FILE, 'lcgcn eval
--offsets FILE' and 'lcgcn research calibrate' remove the offsets. If each face
has exactly one attribute, such as its pose, each attribute has separate ones.

Example:
  lcgcn research fit-offsets --model runs/a --data data/b --out b.json
"""

import argparse

from lcgcn_jax.arguments import number
from lcgcn_jax.atomic_io import require_writable, write_json
from lcgcn_jax.cache import use_compilation_cache
from lcgcn_jax.commands.options import add, add_count
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.inference.model import load_model
from lcgcn_jax.training.fit_offsets import fit_offsets_to_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model", "--data", "--flip-test", "--batch-size", "--overwrite")
    add(parser, "--out", help="output file for the offsets")
    text = "minimum number of faces to fit the offset of a landmark for a pose, including mirror "
    text += "images of the opposite pose; otherwise that of frontal faces is used"
    add_count(parser, "--min-count", 30, text)
    text = "use a constant offset for a pose if the distances from the model vary more than this "
    text += "many times as much as on frontal faces"
    ratio = number(float, 0, above=True)
    add(parser, "--max-ratio", type=ratio, default=1.5, help=text)


def run(args: argparse.Namespace) -> int:
    require_writable(args.out, overwrite=args.overwrite)
    use_compilation_cache()
    fit = fit_offsets_to_model(
        load_model(args.model),
        open_dataset(args.data),
        flip_test=args.flip_test,
        batch_size=args.batch_size,
        min_count=args.min_count,
        max_ratio=args.max_ratio,
    )
    print(fit)
    write_json(args.out, fit.offsets.to_dict())
    print(f"{args.out}: annotation offsets of {args.data} from the style of {args.model}")
    return 0

"""Convert a dataset to records for training and evaluation.

Unusable faces are skipped and listed in OUT/report.json; the exit code is 1
then. Annotations refer to the upright image, with its EXIF orientation applied
(JPEG, PNG, WebP, TIFF, AVIF), as the results of 'lcgcn predict' do.

Example: lcgcn prepare 300w --src 300W_FOLDER --out data/w300
The options of a format: lcgcn prepare csv --help
"""

import argparse

from lcgcn_jax.arguments import local_path, number
from lcgcn_jax.commands.options import add, add_count, add_flag
from lcgcn_jax.data import prepare
from lcgcn_jax.landmarks import SCHEMES
from lcgcn_jax.synthetic.dataset import LAYOUTS, prepare_synthetic


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each format."""
    formats = parser.add_subparsers(
        dest="layout", required=True, metavar="FORMAT", title="formats", parser_class=type(parser)
    )
    for name in prepare.OFFICIAL_READERS:
        child = formats.add_parser(name, help=f"official files of {name.upper()}")
        _add_paths(child, "official files")
    text = "keep the three training images of LFPW that are also in its test set"
    add_flag(formats.choices["300w"], "--keep-lfpw-overlap", text)
    formats.choices["merl-rav"].add_argument(
        "--no-validation",
        dest="has_validation",
        action="store_false",
        help="put all training faces into train; for labels too inexact to measure errors",
    )
    for name, custom in prepare.CUSTOM_FORMATS.items():
        child = formats.add_parser(
            name,
            help=f"custom landmarks in {custom.title}",
            description=custom.description,
            epilog=f"example: lcgcn prepare {name} --src images --annotations {custom.example} \\\n"
            "  --scheme landmarks.yaml --out data/custom",
        )
        text = (
            "annotation files, with a split or without: train=a train=b test=c (without validation "
        )
        text += "faces, a tenth of train becomes validation)"
        add(child, "--annotations", nargs="+", required=True, metavar="[SPLIT=]FILE", help=text)
        text = f"landmark scheme: a .yaml or .json file, {' or '.join(SCHEMES)}"
        add(child, "--scheme", required=True, help=text)
        add(child, "--count-from")
        _add_paths(child, "images")
    child = formats.add_parser("synthetic", help="rendered synthetic faces")
    add(child, "--scheme", choices=LAYOUTS, default="wflw98", help="landmark scheme")
    add_count(child, "--faces", 2000, "number of training faces")
    add_count(child, "--test-faces", 500, "number of test faces")
    add(child, "--seed", type=number(int, 0), default=0, help="random seed")
    _add_paths(child)


def _add_paths(parser: argparse.ArgumentParser, source: str = "") -> None:
    if source:
        add(parser, "--src", type=local_path, required=True, help=f"folder of the {source}")
        text = "the annotations refer to the images as stored, without the EXIF orientation"
        add_flag(parser, "--stored-pixels", text)
    add(parser, "--out", help="output folder")
    add(parser, "--overwrite")


def run(args: argparse.Namespace) -> int:
    """Prepare a dataset; returns 1 if faces were skipped, else 0."""
    if args.layout == "synthetic":
        report = prepare_synthetic(
            args.scheme,
            args.out,
            num_train=args.faces,
            num_test=args.test_faces,
            seed=args.seed,
            overwrite=args.overwrite,
        )
    else:
        custom = ("annotations", "scheme", "count_from")
        official = ("keep_lfpw_overlap", "has_validation")
        report = prepare.prepare(
            args.layout,
            args.src,
            args.out,
            overwrite=args.overwrite,
            stored_pixels=args.stored_pixels,
            **{name: getattr(args, name) for name in (*custom, *official) if name in args},
        )
    print(prepare.format_report(report, args.out))
    return 1 if report.bad else 0

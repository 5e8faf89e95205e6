"""`lcgcn prepare`: official layouts in, records for training and evaluation out."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from lcgcn_jax.data import builders, synthetic, w300, wflw
from lcgcn_jax.data.builders import PrepareReport
from lcgcn_jax.data.records import AnnotationList
from lcgcn_jax.errors import InputError

READERS = {"wflw": wflw.read, "300w": w300.read}
SYNTHETIC_LAYOUTS = {
    "wflw98": (synthetic.write_wflw, wflw.read),
    "ibug68": (synthetic.write_300w, w300.read),
}
OFFICIAL = "official"
"""Where below `--out` the synthetic faces lie in an official layout."""

_BAD_SHOWN = 20


def add_parser(subparsers) -> None:
    """Adds `prepare` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "prepare",
        help="write a dataset's official files as records",
        description="Writes the faces of a dataset as records that train and eval read. Faces that "
        "cannot be used are left out and listed in OUT/report.json; the exit code is then 1.",
        epilog="example: lcgcn prepare 300w --src 300W_FOLDER --out data/w300; for the options of a "
        "layout: lcgcn prepare 300w --help",
    )
    parser.set_defaults(run=run)
    layouts = parser.add_subparsers(dest="layout", required=True, metavar="{wflw,300w,synthetic}")
    for layout in READERS:
        official = layouts.add_parser(layout, help=f"the official files of {layout.upper()}")
        official.add_argument(
            "--src", type=Path, required=True, help="folder of the official files"
        )
        _add_output(official)
    drawn = layouts.add_parser("synthetic", help="procedural faces, drawn here")
    drawn.add_argument(
        "--scheme", choices=SYNTHETIC_LAYOUTS, default="wflw98", help="which points (%(default)s)"
    )
    drawn.add_argument(
        "--faces", type=int, default=2000, help="faces to train and validate with (%(default)s)"
    )
    drawn.add_argument(
        "--test_faces", type=int, default=500, help="faces to test with (%(default)s)"
    )
    drawn.add_argument("--seed", type=int, default=0, help="which faces (%(default)s)")
    _add_output(drawn)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a dataset that is there already"
    )


def run(args: argparse.Namespace) -> int:
    """Prepares a dataset; returns 1 if records were left out, else 0.

    Raises:
      InputError: nothing was written, and why.
    """
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
        _check_source(args.src, args.out)
        report = builders.prepare(
            READERS[args.layout](args.src), args.out, overwrite=args.overwrite
        )
    _print_report(report, args.out)
    return 1 if report.bad else 0


def prepare_synthetic(
    scheme: str, out: Path, *, num_train: int, num_test: int, seed: int, overwrite: bool = False
) -> PrepareReport:
    """Draws faces in the official layout of a scheme, and prepares them like real ones.

    Raises:
      InputError: `out` is there already, or there would be no faces.
    """
    if min(num_train, num_test) < 1:
        raise InputError("--faces and --test_faces must be at least 1")
    write, read = SYNTHETIC_LAYOUTS[scheme]
    with builders.fresh_folder(out, overwrite=overwrite) as folder:
        official = folder / OFFICIAL
        write(official, num_train=num_train, num_test=num_test, seed=seed)
        annotations: AnnotationList = dataclasses.replace(read(official), kind="synthetic")
        return builders.write_records(annotations, folder)


def _check_source(src: Path, out: Path) -> None:
    if not src.is_dir():
        raise InputError(f"{src}: no such folder; --src names the folder of the official files")
    # Overwriting `out` would take the source with it.
    if src.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{out}: --src lies within it; choose another --out")


def _print_report(report: PrepareReport, out: Path) -> None:
    total = sum(report.num_faces.values())
    subsets = {name: count for name, count in report.subsets.items() if name}
    line = f"{report.kind}: {total:,} faces"
    print(f"{line}: {_counts(subsets)}" if subsets else line)
    if report.absent:
        print(f"absent: {', '.join(report.absent)}")
    for bad in report.bad[:_BAD_SHOWN]:
        print(f"bad: {bad}")
    if len(report.bad) > _BAD_SHOWN:
        print(f"... and {len(report.bad) - _BAD_SHOWN:,} more in {builders.REPORT}")
    print(f"{out}: {_counts(report.num_faces)}")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())

"""`lcgcn prepare`: official layouts or anyone's own points in, records for training and evaluation out."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from lcgcn_jax.data import records
from lcgcn_jax.data.formats import custom, cvat, dlib, label_studio, labelme, merl_rav, w300, wflw
from lcgcn_jax.data.records import PrepareReport
from lcgcn_jax.errors import InputError, printable
from lcgcn_jax.landmarks import SCHEMES, LandmarkScheme, get_scheme
from lcgcn_jax.synthetic.dataset import LAYOUTS, prepare_synthetic

READERS = {"wflw": wflw.read, "300w": w300.read, "merl-rav": merl_rav.read}
OWN_READERS = {
    "csv": custom.read_csv,
    "coco": custom.read_coco,
    "cvat": cvat.read,
    "dlib": dlib.read,
    "label-studio": label_studio.read,
    "labelme": labelme.read,
}

_OWN_FORMS = {
    "csv": (
        "in a CSV",
        """\
Reads a CSV with a header and a row a face. Columns, in any order:

  image           path of the image below --src
  x_NAME, y_NAME  for each landmark of the scheme (or x_0, y_0, counting from 0);
                  both empty, NA, nan or None, or both 0 or both -1: the point is missing
  x0, y0, x1, y1  optional: a face box, tight around the face
  split           optional: train, validation or test
  group           optional: e.g. the person; validation keeps a group together
  subset          optional: a part of the data that eval measures for itself
  normalizer      pixels that NME divides by; where the scheme says `normalizer: given`

The separator is a comma, semicolon, tab or vertical bar; names are found in any case, and as NAME_x,
too. Other columns are ignored. Coordinates are pixels; paths may have backslashes, or be full paths
of files below --src.

HRNet-Facial's lists (image_name, scale, center_w, center_h, original_0_x, ...) are read too.""",
        "points.csv",
    ),
    "coco": (
        "in COCO's keypoints JSON",
        """\
Reads COCO's keypoints JSON; every annotation with labeled keypoints is a face. A keypoint of
visibility 0, or at (0, 0) or (-1, -1), is missing. bbox (x, y, width, height) is the face box, and a
field `normalizer` what NME divides by, where the scheme says `normalizer: given`. Keypoints are found
by the names of their category, or count in order. Crowds are skipped, and so are other categories
than the one that names the landmarks.""",
        "train=train.json test=test.json",
    ),
    "cvat": (
        "in CVAT's XML",
        """\
Reads the export "CVAT for images 1.1". A face is a skeleton, or the points of an image or of one
group_id, each labeled with the name of a landmark, or one points shape with all landmarks in order.
A point that is `outside` is missing. The subsets Train, Validation and Test of a project are splits.""",
        "annotations.xml",
    ),
    "dlib": (
        "in dlib's XML (imglab)",
        """\
Reads the XML of dlib's imglab; every box with parts is a face. Parts go by the names of the scheme,
or by number (00 to 67). Boxes with ignore='1' and boxes without parts are skipped.""",
        "train=train.xml test=test.xml",
    ),
    "label-studio": (
        "in Label Studio's JSON",
        """\
Reads the exports JSON and JSON-MIN with key points (KeyPointLabels). The key points of a task are one
face; of several faces, each is a box (RectangleLabels) with its key points as children or inside.""",
        "project.json",
    ),
    "labelme": (
        "in LabelMe's JSON files",
        """\
Reads LabelMe's JSON, a file per image; FILE is also a folder of them, or a pattern in quotes. The point
shapes of a file are one face, or, with a group_id, those of each group; a rectangle of the same group
is the face box. Flags of an image are attributes of its faces.""",
        "train=labels_train/ test=labels_test/",
    ),
}
"""Layout of own points -> in words, in the help, and an example of its files."""

_BAD_SHOWN = 20


def add_parser(subparsers) -> None:
    """Adds `prepare` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "prepare",
        help="write a dataset's official files, or your own points, as records",
        description="Writes the faces of a dataset as records that train and eval read. Faces that "
        "cannot be used are left out and listed in OUT/report.json; the exit code is then 1. Annotations "
        "refer to the image as shown upright, with its EXIF orientation applied (JPEG, PNG, WebP, TIFF, "
        "AVIF), as predict writes them; --stored-pixels is for points in the pixels as stored.",
        epilog="example: lcgcn prepare 300w --src 300W_FOLDER --out data/w300; for the options of a "
        "layout: lcgcn prepare 300w --help",
    )
    parser.set_defaults(run=run)
    layouts = parser.add_subparsers(
        dest="layout",
        required=True,
        metavar=f"{{{','.join((*READERS, *_OWN_FORMS, 'synthetic'))}}}",
    )
    for layout in READERS:
        official = layouts.add_parser(layout, help=f"the official files of {layout.upper()}")
        official.add_argument(
            "--src", type=Path, required=True, help="folder of the official files"
        )
        if layout == "300w":
            official.add_argument(
                "--keep-lfpw-overlap",
                action="store_true",
                help="keep the three LFPW training images that LFPW's test set also holds",
            )
        if layout == "merl-rav":
            official.add_argument(
                "--no-validation",
                action="store_true",
                help="keep all training faces in train; for faces whose labels are not exact, which "
                "no error should be measured on",
            )
        _add_orientation(official)
        _add_output(official)
    for layout, form in _OWN_FORMS.items():
        own = layouts.add_parser(
            layout,
            help=f"your own points, {form[0]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            description=form[1],
            epilog=f"example: lcgcn prepare {layout} --src photos --annotations {form[2]} "
            "--scheme points.yaml --out data/own",
        )
        own.add_argument("--src", type=Path, required=True, help="folder of the images")
        own.add_argument(
            "--annotations",
            nargs="+",
            required=True,
            metavar="[SPLIT=]FILE",
            help="the file, or one for each split: train=a test=b; where no face is said to be of "
            "validation, a tenth of train becomes it",
        )
        own.add_argument(
            "--scheme",
            required=True,
            help=f"what the points mean: a .yaml or .json file, {' or '.join(SCHEMES)}",
        )
        own.add_argument(
            "--count-from",
            type=int,
            choices=(0, 1),
            default=0,
            help="what the file's pixels count from (%(default)s)",
        )
        _add_orientation(own)
        _add_output(own)
    drawn = layouts.add_parser("synthetic", help="procedural faces, drawn here")
    drawn.add_argument(
        "--scheme", choices=LAYOUTS, default="wflw98", help="which points (%(default)s)"
    )
    drawn.add_argument(
        "--faces", type=int, default=2000, help="faces to train and validate with (%(default)s)"
    )
    drawn.add_argument(
        "--test-faces", type=int, default=500, help="faces to test with (%(default)s)"
    )
    drawn.add_argument("--seed", type=int, default=0, help="which faces (%(default)s)")
    _add_output(drawn)


def _add_orientation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stored-pixels",
        action="store_true",
        help="the points refer to the images as stored; without it, to the images as shown upright, with "
        "their EXIF orientation applied",
    )


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
    elif args.layout in OWN_READERS:
        _check_source(args.src, args.out)
        parse = parse_folders if args.layout == "labelme" else parse_annotations
        scheme, files = get_scheme(args.scheme), parse(args.annotations)
        for paths in files.values():
            for path in [paths] if isinstance(paths, Path) else paths:
                _check_apart("--annotations", path, args.out)
        read = OWN_READERS[args.layout]
        annotations = read(args.src, files, scheme, count_from=args.count_from)
        report = records.prepare(
            annotations, args.out, overwrite=args.overwrite, stored_pixels=args.stored_pixels
        )
        _warn_of_scheme(scheme)
    else:
        _check_source(args.src, args.out)
        if args.layout == "300w":
            annotations = w300.read(args.src, keep_lfpw_overlap=args.keep_lfpw_overlap)
        elif args.layout == "merl-rav":
            annotations = merl_rav.read(args.src, has_validation=not args.no_validation)
        else:
            annotations = READERS[args.layout](args.src)
        report = records.prepare(
            annotations, args.out, overwrite=args.overwrite, stored_pixels=args.stored_pixels
        )
    _print_report(report, args.out)
    return 1 if report.bad else 0


def parse_annotations(texts: Sequence[str]) -> dict[str, Path]:
    """`FILE`, or `SPLIT=FILE` for each split, as files by split.

    Raises:
      InputError: a split is there twice, or a file has none beside others.
    """
    files: dict[str, Path] = {}
    for text in texts:
        split, equals, path = text.partition("=")
        if not (equals and split in custom.SPLITS):
            split, path = custom.UNSTATED, text
        if split in files or (files and custom.UNSTATED in (split, *files)):
            raise InputError(
                f"--annotations {' '.join(texts)}: of several files each is of one split; give "
                f"{' '.join(f'{name}=FILE' for name in custom.SPLITS)}"
            )
        files[split] = Path(path)
    return files


def parse_folders(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Parse `SPLIT=FOLDER` for each split, or any number of folders and files without a split.

    Raises:
      InputError: a split occurs twice, or some have a split and others not.
    """
    if any(text.startswith(tuple(f"{split}=" for split in custom.SPLITS)) for text in texts):
        return {split: [path] for split, path in parse_annotations(texts).items()}
    return {custom.UNSTATED: [Path(text) for text in texts]}


def _warn_of_scheme(scheme: LandmarkScheme) -> None:
    """Speaks of what cannot be right for a face with two sides."""
    if scheme.mirror == tuple(range(scheme.num_landmarks)):
        print(
            f"note: {scheme.name} has no mirror pairs, so left and right points keep their names in "
            "mirrored faces; add `mirror_pairs` to the scheme, or train with "
            "--config.data.augment.mirror=0"
        )


def _check_source(src: Path, out: Path) -> None:
    if not src.is_dir():
        raise InputError(f"{src}: no such folder; --src names the folder of the faces")
    _check_apart("--src", src, out)


def _check_apart(option: str, source: Path, out: Path) -> None:
    # Overwriting `out` would take the source with it.
    if source.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{out}: {option} lies within it; choose another --out")


def _print_report(report: PrepareReport, out: Path) -> None:
    total = sum(report.num_faces.values())
    subsets = {name: count for name, count in report.subsets.items() if name}
    line = f"{report.kind}: {total:,} faces"
    print(f"{line}: {_counts(subsets)}" if subsets else line)
    if report.absent:
        print(f"absent: {', '.join(report.absent)}")
    for note in report.notes:
        print(f"note: {printable(note)}")
    for bad in report.bad[:_BAD_SHOWN]:
        print(f"bad: {bad}")
    if len(report.bad) > _BAD_SHOWN:
        print(f"... and {len(report.bad) - _BAD_SHOWN:,} more in {records.REPORT}")
    print(f"{out}: {_counts(report.num_faces)}")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())

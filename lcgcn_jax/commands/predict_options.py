"""Options of `lcgcn predict`."""

import argparse
from pathlib import Path

from lcgcn_jax.arguments import local_path, number
from lcgcn_jax.commands.options import add, add_flag
from lcgcn_jax.geometry import BOX_FORMATS
from lcgcn_jax.inference.large_jobs import Shard
from lcgcn_jax.inference.result_files import FORMATS, ResultFiles
from lcgcn_jax.inference.tracking import DETECT_EVERY
from lcgcn_jax.landmarks import SCHEMES


def add_face_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for boxes, detected faces and landmarks."""
    boxes = parser.add_mutually_exclusive_group()
    text = "face box in pixels, from chin to eyebrows; repeat it for each face of the input"
    boxes.add_argument("--box", action="append", metavar="X0,Y0,X1,Y1", help=text)
    add(boxes, "--boxes", type=local_path, metavar="FILE", help="file of face boxes, see above")
    add_flag(boxes, "--whole-image", "each image is the crop of one face")
    add(boxes, "--detector-model")
    text = "format of the boxes, for example xywh for x,y,width,height"
    add(parser, "--box-format", choices=BOX_FORMATS, default="xyxy", help=text)
    text = "minimum score of a detected face, 0 to 1 (default: 0.6)"
    fraction = number(float, 0, 1)
    add(parser, "--min-score", type=fraction, metavar="SCORE", help=text)
    text = "leave out faces whose landmarks have a lower mean confidence"
    add(parser, "--min-confidence", type=fraction, default=0.0, metavar="VALUE", help=text)
    text = "scheme of the landmarks: ibug68 converts those of a model with the 98 of WFLW"
    add(parser, "--scheme", choices=SCHEMES, help=text)
    add_flag(parser, "--stored-pixels", "ignore the EXIF orientation of images")


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for result files."""
    add(parser, "--out", default=Path("predictions"), help="folder of the results")
    add(parser, "--format", choices=FORMATS, default="json", help="format of the landmarks")
    add_flag(parser, "--geometry", "JSON: add head pose, eye openness and mouth openness")
    add(parser, "--count-from")
    add(parser, "--overwrite")
    add_flag(parser, "--draw-edges", "draw the strongest edges of the graph")


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for videos."""
    add_flag(parser, "--smooth", "videos: smooth the landmarks (One Euro filter)")
    text = "videos: frames per second, if the rate in the file is wrong"
    add(parser, "--fps", type=number(float, 0.01, 1000), metavar="RATE", help=text)
    text = "videos: maximum number of frames from one face detection to the next"
    count = number(int, 1)
    add(parser, "--detect-every", type=count, default=DETECT_EVERY, metavar="N", help=text)
    add(parser, "--max-frames", type=count, metavar="N", help="videos: stop after N frames")


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for large jobs."""
    text = "predict only the part I of N, for one of N processes, for example 1/8 to 8/8"
    parser.add_argument("--shard", default="1/1", metavar="I/N", help=text)
    text = "continue an interrupted job: keep complete results, and replace damaged ones"
    add_flag(parser, "--skip-existing", text)
    add_flag(parser, "--no-overlay", "write no overlays and no annotated videos")


def result_files(args: argparse.Namespace, shard: Shard) -> ResultFiles:
    """Result files from the arguments."""
    return ResultFiles(
        args.out,
        args.format,
        args.overwrite,
        not args.no_overlay,
        args.skip_existing,
        shard,
        geometry=args.geometry,
        count_from=args.count_from,
    )

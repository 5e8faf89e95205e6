"""Predict landmarks of the faces in images, videos, cameras and streams.

Coordinates are pixels of the upright image, with its EXIF orientation applied;
the center of the top-left pixel is (0, 0). Files in .pts format count from 1.
Those for labeling tools count from --count-from, as 'lcgcn prepare' reads them.

  image   OUT/NAME.json (or .csv, or NAME_face1.pts ...), overlay OUT/NAME.png
          of at most 8192 px; NAME has its suffix if two inputs differ only in it;
          with --format jsonl, one line of OUT/predictions.jsonl; with coco, cvat
          and label-studio, all images in files for a labeling tool: OUT/coco.json,
          OUT/cvat.xml and OUT/cvat_labels.json, or OUT/label_studio.json and
          OUT/label_studio_config.xml
  video   OUT/NAME.jsonl with one line per frame and its time stamp, and the
          annotated OUT/NAME.mp4 at a constant frame rate
  stream  (camera:N, rtsp://..., http://...) as a video, until --max-frames

OpenCV's YuNet detects the faces, unless you give boxes; in videos, every
--detect-every frames and when a face is lost. A file of boxes (--boxes) is
JSON, {"photo.jpg": [[x0, y0, x1, y1], ...], ...}, or CSV with the header
image,x0,y0,x1,y1. An image without a face has an empty list or four empty
cells. With --box-format xywh, the numbers are x, y, width and height, and the
header is image,x,y,width,height.

Unusable files are listed at the end, and the exit code is 1. Ctrl-C keeps the
finished images, the frames of a stream in its usual files, and those of another
video in NAME.interrupted.*. The same command with --skip-existing continues.
--shard divides a job among processes, which have to get the same inputs.

Examples:
  lcgcn predict photo.jpg
  lcgcn predict photo.jpg --model runs/small --box 120,80,260,240
  lcgcn predict holiday/ 'party/*.jpg' --format csv --out landmarks
  lcgcn predict clip.mp4 --smooth
  lcgcn predict faces/ --format cvat --no-overlay --out labels
  lcgcn predict camera:0 --max-frames 250
  lcgcn predict faces/ --format jsonl --no-overlay --shard 1/8 --skip-existing
"""

import argparse
import sys

from lcgcn_jax.cache import use_compilation_cache
from lcgcn_jax.commands import predict_options as options
from lcgcn_jax.commands.options import add
from lcgcn_jax.errors import InputError, printable
from lcgcn_jax.inference.batch_predict import BatchPredictor
from lcgcn_jax.inference.box_sources import find_box_source
from lcgcn_jax.inference.face_detector import quiet_opencv
from lcgcn_jax.inference.large_jobs import Shard
from lcgcn_jax.inference.model import load_model
from lcgcn_jax.inference.sources import find_inputs
from lcgcn_jax.inference.video_predict import VideoOptions
from lcgcn_jax.models.bundles import DEFAULT_MODEL
from lcgcn_jax.visualize.overlays import draw_faces


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image, video, folder, quoted pattern, or stream"
    )
    add(parser, "--model", default=DEFAULT_MODEL)
    options.add_face_options(parser)
    options.add_result_options(parser)
    options.add_video_options(parser)
    options.add_job_options(parser)


def run(args: argparse.Namespace) -> int:
    """Predict and write; returns 1 if an input was skipped or no face was found at all, else 0."""
    shard = Shard.parse(args.shard)
    inputs = find_inputs(args.inputs, args.out)
    video = VideoOptions(args.fps, args.smooth, args.detect_every, args.max_frames)
    video.require_video(inputs.files)
    box_source, box_warning = find_box_source(
        inputs.files,
        boxes=args.box,
        file=args.boxes,
        whole_image=args.whole_image,
        box_format=args.box_format,
        min_score=args.min_score,
    )
    files = options.result_files(args, shard)
    selected = shard.select(inputs.files)
    files.check(selected, [args.boxes, args.detector_model])
    with quiet_opencv():
        use_compilation_cache()
        model = load_model(args.model, detector_model=args.detector_model, scheme=args.scheme)
        if args.draw_edges and model.config["graph"] is None:
            raise InputError(f"--draw-edges: {args.model} has no graph; leave out the option")
        predictor = BatchPredictor(
            model,
            files,
            box_source,
            draw=draw_faces,
            draw_edges=args.draw_edges,
            upright=not args.stored_pixels,
            video=video,
            box_format=args.box_format,
            min_score=args.min_score,
            min_confidence=args.min_confidence,
        )
        summary = predictor.run(selected)
    for warning in filter(None, [*summary.warnings, *inputs.describe_unread(), box_warning]):
        print(printable(warning), file=sys.stderr)
    return summary.exit_code or int(bool(inputs.locked))

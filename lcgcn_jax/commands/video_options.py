"""Options for videos."""

import argparse
from collections.abc import Sequence

from lcgcn_jax.commands.options import add, add_flag, number
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.sources import InputFile
from lcgcn_jax.inference.tracking import DETECT_EVERY
from lcgcn_jax.inference.video_predict import VideoOptions


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for videos to a parser."""
    add_flag(parser, "--smooth", "videos: smooth the landmarks (One Euro filter)")
    text = "videos: frames per second, if the rate in the file is wrong"
    add(parser, "--fps", type=number(float, 0, above=True), metavar="RATE", help=text)
    text = "videos: maximum number of frames from one face detection to the next"
    count = number(int, 1)
    add(parser, "--detect-every", type=count, default=DETECT_EVERY, metavar="N", help=text)
    add(parser, "--max-frames", type=count, metavar="N", help="videos: stop after N frames")


def video_options(args: argparse.Namespace, inputs: Sequence[InputFile]) -> VideoOptions:
    """Options for videos from the arguments.

    Raises:
      InputError: there are such options, but no video.
    """
    options = VideoOptions(args.fps, args.smooth, args.detect_every, args.max_frames)
    if options != VideoOptions() and not any(file.is_video for file in inputs):
        names = "--smooth, --fps, --detect-every and --max-frames"
        raise InputError(f"{names} apply to videos, but no input is a video")
    return options

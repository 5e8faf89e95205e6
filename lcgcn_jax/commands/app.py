"""Serve a web page to try models on images, videos and a webcam.

Needs the extra app: pip install '.[app]' in a clone. The page works offline, and
accepts connections from this computer only, unless you give --host or --share.
Ctrl-C stops it.

Example: lcgcn app --model runs/w300_small --port 8000
"""

import argparse
import contextlib

from lcgcn_jax.app.server import LOCALHOST, launch_app
from lcgcn_jax.arguments import number
from lcgcn_jax.cache import use_compilation_cache
from lcgcn_jax.commands.options import add, add_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "model to choose from, besides the shipped ones; can be repeated, the first is selected"
    add(parser, "--model", required=False, action="append", help=text)
    add(parser, "--host", default=LOCALHOST, help="address of the server; 0.0.0.0: all networks")
    add(
        parser,
        "--port",
        type=number(int, 1, 65535),
        metavar="N",
        help="port (default: a free one from 7860)",
    )
    add_flag(parser, "--share", "make the page public, through a server of Gradio")
    add(parser, "--detector-model")


def run(args: argparse.Namespace) -> int:
    use_compilation_cache()
    app = launch_app(
        args.model or (),
        host=args.host,
        port=args.port,
        share=args.share,
        detector_model=args.detector_model,
    )
    with contextlib.closing(app):
        print(f"{app.url} (Ctrl-C stops the page)", flush=True)
        app.wait()
    return 0

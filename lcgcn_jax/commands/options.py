"""Options that several subcommands share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lcgcn_jax.geometry import BOX_FORMATS
from lcgcn_jax.landmarks import SCHEMES


def number(kind: type, minimum: int | float, *, above: bool = False) -> Callable:
    """Type of a numeric option of at least `minimum`, or above it."""

    def parse(text: str) -> int | float:
        value = kind(text)
        if not (value > minimum if above else value >= minimum):
            bound = f"{'above' if above else 'at least'} {minimum}"
            raise argparse.ArgumentTypeError(f"{text} has to be {bound}")
        return value

    parse.__name__ = kind.__name__  # for the message of argparse
    return parse


def fraction(text: str) -> float:
    """Type of an option with a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} has to be from 0 to 1")
    return value


def integers(text: str) -> tuple[int, ...]:
    """Type of an option with integers of at least 0, separated by commas."""
    return tuple(number(int, 0)(part) for part in text.split(","))


_SHARED: dict[str, dict[str, Any]] = {
    "--model": {
        "required": True,
        "help": "shipped model, bundle, training workdir, or hf://OWNER/REPO",
    },
    "--data": {"type": Path, "required": True, "help": "dataset folder ('lcgcn prepare')"},
    "--out": {"type": Path, "required": True},
    "--json": {"type": Path, "metavar": "FILE", "help": "output file for the results"},
    "--overwrite": {"action": "store_true", "help": "replace existing output files"},
    "--batch-size": {"type": number(int, 1), "default": 32, "help": "faces per batch"},
    "--flip-test": {"action": "store_true", "help": "average over the crop and its mirror image"},
    "--detector-model": {
        "type": Path,
        "metavar": "FILE",
        "help": "ONNX file of the YuNet face detector (default: downloaded once from the OpenCV zoo)",
    },
    "--count-from": {
        "type": float,
        "choices": (0, 0.5, 1),
        "default": 0,
        "help": "coordinate of the center of the first pixel; 0.5 if the corner of the image is 0",
    },
    "--config": {
        "required": True,
        "metavar": "FILE[:ARGUMENT]",
        "help": "config file or name of a shipped config; set its fields with --config.NAME=VALUE",
    },
}


def add(parser: "argparse._ActionsContainer", *options: str, **fields: Any) -> None:
    """Add options with a value: shared ones by name, and others with the arguments of `add_argument`.

    An option with a default is not required, and its help shows the default. With `--config`, the command
    also takes `--config.NAME=VALUE`; these words are in `args.overrides`.
    """
    for option in options:
        arguments = _SHARED.get(option, {}) | fields
        if arguments.get("default") is not None:
            arguments["help"] += " (default: %(default)s)"
            arguments.pop("required", None)
        parser.add_argument(option, **arguments)
    if "--config" in options:
        parser.set_defaults(has_overrides=True)


def add_flag(parser: "argparse._ActionsContainer", option: str, help: str) -> None:
    """Add an option without a value."""
    parser.add_argument(option, action="store_true", help=help)


def add_face_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `predict` for boxes, detected faces and landmarks."""
    text = "format of the boxes, for example xywh for x,y,width,height"
    add(parser, "--box-format", choices=BOX_FORMATS, default="xyxy", help=text)
    text = "minimum score of a detected face, 0 to 1 (default: 0.6)"
    add(parser, "--min-score", type=fraction, metavar="SCORE", help=text)
    text = "leave out faces whose landmarks have a lower mean confidence"
    add(parser, "--min-confidence", type=fraction, default=0.0, metavar="VALUE", help=text)
    text = "scheme of the landmarks: ibug68 converts those of a model with the 98 of WFLW"
    add(parser, "--scheme", choices=SCHEMES, help=text)


def add_count(parser: argparse.ArgumentParser, option: str, default: int, help: str) -> None:
    """Add an option with a positive integer."""
    add(parser, option, type=number(int, 1), default=default, help=help)


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lcgcn predict` for large jobs."""
    text = "predict only the part I of N, for one of N processes, for example 1/8 to 8/8"
    parser.add_argument("--shard", default="1/1", metavar="I/N", help=text)
    text = "continue an interrupted job: keep complete results, and replace damaged ones"
    add_flag(parser, "--skip-existing", text)
    add_flag(parser, "--no-overlay", "write no overlays of images")

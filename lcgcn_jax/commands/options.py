"""Options that several subcommands share."""

import argparse
from typing import Any

from lcgcn_jax.arguments import local_path, location, number

_SHARED: dict[str, dict[str, Any]] = {
    "--model": {
        "required": True,
        "help": "shipped model, bundle, training workdir (also gs://BUCKET/PATH), or hf://OWNER/REPO",
    },
    "--data": {
        "type": location,
        "required": True,
        "help": "dataset folder ('lcgcn prepare'), or gs://BUCKET/PATH",
    },
    "--out": {"type": local_path, "required": True},
    "--json": {"type": local_path, "metavar": "FILE", "help": "output file for the results"},
    "--overwrite": {"action": "store_true", "help": "replace existing output files"},
    "--batch-size": {"type": number(int, 1), "default": 32, "help": "faces per batch"},
    "--flip-test": {"action": "store_true", "help": "average over the crop and its mirror image"},
    "--detector-model": {
        "type": local_path,
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


def add_count(parser: argparse.ArgumentParser, option: str, default: int, help: str) -> None:
    """Add an option with a positive integer."""
    add(parser, option, type=number(int, 1), default=default, help=help)


def add_datasets(parser: argparse.ArgumentParser) -> None:
    """Add `--data`, which can be repeated, and `--offsets`, for `data.dataset.open_datasets`."""
    add(parser, "--data", action="append", help="dataset folder; repeat it for several datasets")
    parser.add_argument(
        "--offsets",
        nargs=2,
        action="append",
        default=[],
        metavar=("DIR", "FILE"),
        help="remove the annotation offsets in FILE ('lcgcn research fit-offsets') from the faces "
        "of --data DIR",
    )

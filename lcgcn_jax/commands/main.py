"""The command `lcgcn`: finds the subcommand, and turns users' mistakes into one line each."""

import argparse
import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lcgcn_jax.cache import cache_folder
from lcgcn_jax.errors import InputError, printable

COMMANDS = {
    "demo": "the main job, small, from nothing: data, training, evaluation, pictures",
    "prepare": "write a dataset's official files, or your own points, as records",
    "train": "train a model from a config file, or go on with a run",
    "eval": "measure a model on a split: NME, failure rate, AUC",
    "predict": "landmarks of the faces in photographs and videos",
    "models": "the models that come with the package",
    "visualize": "pictures of a run: the stages side by side, the graph's edges, training curves",
    "ablation": "graphs against each other on one heatmap model (the paper's Table 3)",
    "fit-shape": "put a last turn behind a trained graph, fitted in closed form",
    "calibrate": "fit how far off each landmark is to be expected, and put it into the model",
    "calibrate-detector": "fit the map from the face detector's boxes to the landmarks' boxes",
    "import-torch": "make a bundle of PyTorch weights",
    "compile": "what a training step would need of a TPU slice, without one",
    "export": "write a model in the format of other tools",
    "bench": "measure speed: the model and its parts, a training step, the input pipeline",
}

DETECTOR_MODEL_OPTION = {
    "type": Path,
    "metavar": "FILE",
    "help": "YuNet's ONNX file; without it, it is fetched once from the OpenCV zoo into the cache",
}
"""Fields of the option `--detector_model`, wherever faces are detected."""


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `lcgcn`; returns the exit code: 0, 1 where something was left out, 2 for a mistake."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As standard error does it: what is told of a file must not fail for its name.
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = _Parser(
        prog="lcgcn",
        description="Facial landmarks with LCGCN, in JAX.",
        epilog="lcgcn COMMAND --help tells the options of one, with an example. To begin with: lcgcn demo, "
        "or lcgcn predict --model w300-lcgcn-small photo.jpg",
    )
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    if chosen is not None and chosen not in COMMANDS:
        near = difflib.get_close_matches(chosen, COMMANDS, n=1, cutoff=0.0)[0]
        parser.error(f"unknown command {chosen!r}; did you mean {near!r}?")
    for name, summary in COMMANDS.items():
        if name == chosen:
            # Only now, since these import JAX or the data tools, and --help should not wait.
            _import(name).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    args, rest = parser.parse_known_args(arguments)
    takes_overrides = chosen is not None and hasattr(_import(chosen), "run_with_overrides")
    if rest and not takes_overrides:
        parser.error(f"unrecognised: {' '.join(rest)}")
    try:
        if takes_overrides:
            return _import(chosen).run_with_overrides(args, rest)
        return args.run(args)
    except InputError as error:
        print(f"lcgcn: error: {printable(error)}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"lcgcn: stopped: {error}", file=sys.stderr)
        return 1


def use_compilation_cache() -> None:
    """Lets JAX keep compiled programs: HRNet takes a minute to compile, and seconds from there."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jit"))


def _import(command: str):
    return importlib.import_module(f"lcgcn_jax.commands.{command.replace('-', '_')}")

"""The command `lcgcn`: finds the subcommand, and turns users' mistakes into one line each."""

import argparse
import difflib
import errno
import importlib
import io
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lcgcn_jax import compat, interrupts
from lcgcn_jax.cache import cache_folder
from lcgcn_jax.errors import InputError, printable

COMMANDS = {
    "demo": "the main job, small, from nothing: data, training, evaluation, pictures",
    "prepare": "write a dataset's official files, or your own points, as records",
    "train": "train a model from a config file, or go on with a run",
    "eval": "measure a model on a split: NME, failure rate, AUC",
    "predict": "landmarks of the faces in images and videos",
    "models": "the models that come with the package",
    "visualize": "pictures of a run: the stages side by side, the graph's edges, training curves",
    "ablation": "graphs against each other on one heatmap model (the paper's Table 3)",
    "fit-shape": "put a last turn behind a trained graph, fitted in closed form",
    "fit-offsets": "fit where a data set places landmarks differently from the data of a model",
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
"""Fields of the option `--detector-model`, wherever faces are detected."""


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """Accepts former option names, and underscores in place of dashes."""
        if args is not None:
            args = compat.upgrade_arguments(list(args), set(self._option_string_actions))
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `lcgcn`; returns the exit code.

    It is 0, 1 where something was left out, 2 for a mistake, and 128 and the signal's number where a
    signal stopped the command: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As standard error does it: what is told of a file must not fail for its name.
        sys.stdout.reconfigure(errors="backslashreplace")
    _quiet_libraries()
    try:
        with interrupts.raised_as_exceptions():
            code = _run(arguments)
            sys.stdout.flush()
            return code
    except InputError as error:
        # Ending the work after a signal may fail as well: on a full disk, for example.
        if (number := interrupts.received()) is not None:
            return _stop(number, str(error))
        return _fail(f"error: {printable(error)}", 2)
    except FloatingPointError as error:
        return _fail(f"stopped: {error}", 1)
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        if isinstance(sys.stdout, io.TextIOWrapper):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt as error:
        number = interrupts.received() or getattr(error, "number", signal.SIGINT)
        return _stop(number, getattr(error, "kept", ""))
    except Exception as error:
        # Some libraries turn the exception of a signal into one of their own.
        if (number := interrupts.received()) is not None:
            return _stop(number)
        if isinstance(error, OSError) and error.errno in _FULL_OR_READ_ONLY:
            name = f"{printable(error.filename)}: " if error.filename else ""
            return _fail(f"error: {name}cannot be written: {error.strerror}; {_FREE_SPACE}", 2)
        raise


_BROKEN_PIPE = 141  # as a shell shows SIGPIPE
_FULL_OR_READ_ONLY = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_FREE_SPACE = "free some space or choose another folder"


def _fail(message: str, code: int) -> int:
    print(f"lcgcn: {message}", file=sys.stderr)
    return code


def _stop(number: signal.Signals, kept: str = "") -> int:
    interrupts.finish()
    return _fail(f"stopped by {number.name}{kept and f'; {printable(kept)}'}", 128 + number)


def _quiet_libraries() -> None:
    """Keeps notices off standard error that no user of a command can act on."""
    # A temporary folder for its font cache serves as well, where the home folder is read-only.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # Damaged metadata of images; pixels that cannot be read are an error.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # The cache of compiled programs saves time and is not needed.
    cache_failures = "Error (reading|writing) persistent compilation cache"
    warnings.filterwarnings("ignore", message=cache_failures)


def _run(arguments: list[str]) -> int:
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
        parser.error(f"unrecognized: {' '.join(rest)}")
    if takes_overrides:
        return _import(chosen).run_with_overrides(args, rest)
    return args.run(args)


def use_compilation_cache() -> None:
    """Lets JAX keep compiled programs: HRNet takes a minute to compile, and seconds from there."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder() / "jit"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        print(
            f"lcgcn: {folder}: cannot be written: {error.strerror}; each command compiles its "
            "programs again; set XDG_CACHE_HOME to a folder that can be written",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _import(command: str):
    return importlib.import_module(f"lcgcn_jax.commands.{command.replace('-', '_')}")

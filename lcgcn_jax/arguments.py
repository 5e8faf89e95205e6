"""Command-line arguments: parser with errors in one line, and types of options."""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lcgcn_jax import compat
from lcgcn_jax.errors import InputError
from lcgcn_jax.storage import as_path


class Parser(argparse.ArgumentParser):
    """Parser that reports an error in one line and prints descriptions as written."""

    def __init__(self, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)
        # Otherwise `-10,-10,200,200` would be an unknown option.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride] typeshed has overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Accept former option names, and underscores instead of dashes."""
        if args is not None:
            args = compat.upgrade_arguments(list(args), set(self._option_string_actions))
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and the message in one line."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def number(
    kind: type, minimum: int | float, maximum: int | float = math.inf, *, above: bool = False
) -> Callable:
    """Type of a numeric option of at least `minimum`, or above it, and at most `maximum`."""

    def parse(text: str) -> int | float:
        value = kind(text)
        if value == math.inf:
            raise argparse.ArgumentTypeError(f"{text} has to be a finite number")
        if not (value > minimum if above else value >= minimum):
            bound = f"{'above' if above else 'at least'} {minimum}"
            raise argparse.ArgumentTypeError(f"{text} has to be {bound}")
        if value > maximum:
            raise argparse.ArgumentTypeError(f"{text} has to be at most {maximum}")
        return value

    parse.__name__ = kind.__name__  # for the message of argparse
    return parse


def location(text: str) -> Path:
    """Type of an option with a folder on a disk or in a bucket."""
    try:
        return as_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def local_path(text: str) -> Path:
    """Type of an option with a file or folder that has to be on a disk."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: not a path on a disk")
    return Path(text)


def integers(text: str) -> tuple[int, ...]:
    """Type of an option with integers of at least 0, separated by commas."""
    return tuple(number(int, 0)(part) for part in text.split(","))


def names(text: str) -> list[str]:
    """Type of an option with names separated by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name; separate names by one comma")
    return list(dict.fromkeys(parts))

"""Entry point of the command `lcgcn`."""

import io
import logging
import sys
import warnings
from collections.abc import Sequence

from lcgcn_jax.commands.parsing import build_parser, parse_arguments
from lcgcn_jax.exit_codes import exit_code_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lcgcn`.

    Returns:
      Exit code: 0; 1 if inputs were skipped; or that of an error (`exit_code_of`).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Escape file names that cannot be encoded, as standard error does.
        sys.stdout.reconfigure(errors="backslashreplace")
    _quiet_libraries()
    if not arguments:
        build_parser(()).print_help(sys.stderr)
        return 2

    def run() -> int:
        args = parse_arguments(arguments)
        return args.run(args)

    return exit_code_of(run)


def _quiet_libraries() -> None:
    """Suppress messages of libraries that the user of a command cannot act on."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # temporary font cache
    warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged metadata of images
    cache_failures = "Error (reading|writing) persistent compilation cache"
    warnings.filterwarnings("ignore", message=cache_failures)

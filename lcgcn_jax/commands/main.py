"""Entry point of the command `lcgcn`: runs a subcommand and reports user errors in one line."""

import errno
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from lcgcn_jax import interrupts
from lcgcn_jax.commands.parsing import build_parser, parse_arguments
from lcgcn_jax.errors import InputError, printable

_BROKEN_PIPE = 141  # exit code that a shell shows for SIGPIPE
_FULL_OR_READ_ONLY = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lcgcn`.

    Returns:
      Exit code: 0; 1 if inputs were skipped; 2 for a user error; 128 plus the number of a signal that
      stopped the command (130 for Ctrl-C).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Escape file names that cannot be encoded, as standard error does.
        sys.stdout.reconfigure(errors="backslashreplace")
    _quiet_libraries()
    if not arguments:
        build_parser(()).print_help(sys.stderr)
        return 2
    try:
        with interrupts.raised_as_exceptions():
            args = parse_arguments(arguments)
            code = args.run(args)
            sys.stdout.flush()
            return code
    except InputError as error:
        # The cleanup after a signal may fail too, for example on a full disk.
        if (number := interrupts.received()) is not None:
            return _stop(number, str(error))
        return _fail(f"error: {printable(error)}", 2)
    except FloatingPointError as error:
        return _fail(f"stopped: {error}", 1)
    except BrokenPipeError:  # the reader of the output has ended, for example `head`
        if isinstance(sys.stdout, io.TextIOWrapper):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt as error:
        number = interrupts.received() or getattr(error, "number", signal.SIGINT)
        return _stop(number, getattr(error, "saved", ""))
    except Exception as error:
        # Some libraries raise their own exception when a signal interrupts them.
        if (number := interrupts.received()) is not None:
            return _stop(number)
        if isinstance(error, OSError) and error.errno in _FULL_OR_READ_ONLY:
            name = f"{printable(error.filename)}: " if error.filename else ""
            fix = "free some space or choose another folder"
            return _fail(f"error: {name}cannot be written: {error.strerror}; {fix}", 2)
        raise


def _fail(message: str, code: int) -> int:
    print(f"lcgcn: {message}", file=sys.stderr)
    return code


def _stop(number: signal.Signals, saved: str = "") -> int:
    interrupts.finish()
    return _fail(f"stopped by {number.name}{saved and f'; {printable(saved)}'}", 128 + number)


def _quiet_libraries() -> None:
    """Suppress messages of libraries that the user of a command cannot act on."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # temporary font cache
    warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged metadata of images
    cache_failures = "Error (reading|writing) persistent compilation cache"
    warnings.filterwarnings("ignore", message=cache_failures)

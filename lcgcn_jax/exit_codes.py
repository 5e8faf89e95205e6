"""Exit codes of commands: user errors and signals are reported in one line."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable

from lcgcn_jax import interrupts
from lcgcn_jax.errors import InputError, printable

_BROKEN_PIPE = 141  # exit code that a shell shows for SIGPIPE
_FULL_OR_READ_ONLY = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_UNUSABLE_PATH = {
    errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE, errno.ENOTCONN,
}  # fmt: skip


def exit_code_of(function: Callable[[], int]) -> int:
    """Call the function of a command, and report its errors on standard error.

    Returns:
      The exit code of the function; 1 for a loss that is not finite; 2 for a user error, a full disk, or a
      path without permission; 128 plus the number of a signal that stopped the function (130 for Ctrl-C).
    """
    try:
        with interrupts.raised_as_exceptions():
            code = function()
            sys.stdout.flush()
        # Code in C++ may have discarded the exception of a signal.
        number = interrupts.received()
        return code if number is None else _stop(number)
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
        if isinstance(error, OSError) and error.errno in _UNUSABLE_PATH and error.filename:
            text = f"{printable(error.filename)}: cannot be used: {error.strerror}"
            return _fail(f"error: {text}; check the path and its permissions", 2)
        if isinstance(error, FileNotFoundError) and not _has_working_folder():
            return _fail("error: the current folder was deleted; change to another one", 2)
        raise


def _has_working_folder() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # a full disk
        print(f"lcgcn: {message}", file=sys.stderr)
    return code


def _stop(number: signal.Signals, saved: str = "") -> int:
    interrupts.finish()
    return _fail(f"stopped by {number.name}{saved and f'; {printable(saved)}'}", 128 + number)

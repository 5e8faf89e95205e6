"""Signals that stop a command: Ctrl-C (SIGINT), SIGTERM and SIGHUP."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_MAX_LATE_SIGNALS = 3  # during the cleanup; the last one kills the process


class Interrupted(KeyboardInterrupt):
    """A signal stopped the command.

    Attributes:
      saved: what was saved of the work in progress, or how to clean up, for the message; may be empty.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = signal.Signals(number)
        self.saved = ""


class _State:
    """State of the signal handler, one per process."""

    first: int | None = None
    finishing = False
    late = 0
    deferrals = 0
    pending: int | None = None


@contextlib.contextmanager
def raised_as_exceptions() -> Iterator[None]:
    """Raise `Interrupted` in the main thread when a signal arrives within the block.

    Signals that are ignored (`nohup`) or already have a handler are not changed. After a signal the
    handlers remain installed, because the process is about to end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    handlers = {number: handler for number, handler in handlers.items() if handler in defaults}
    _State.first, _State.finishing, _State.late = None, False, 0
    _State.deferrals, _State.pending = 0, None
    for number in handlers:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        if _State.first is None:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def received() -> signal.Signals | None:
    """Return the first signal that arrived, or None."""
    return None if _State.first is None else signal.Signals(_State.first)


def finish() -> None:
    """Mark the start of the cleanup: two more signals are ignored, the third one kills the process."""
    _State.finishing = True


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Defer signals to the end of the block, which has to be short.

    Has no effect outside the main thread, where signals are handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.deferrals += 1
    try:
        yield
    finally:
        _State.deferrals -= 1
        if _State.pending is not None and _State.deferrals == 0:
            number, _State.pending = _State.pending, None
            raise Interrupted(number)


def _handle(number: int, frame: object) -> None:
    if _State.first is None:
        _State.first = number
    if _State.finishing:
        _State.late += 1
        if _State.late >= _MAX_LATE_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
    elif _State.deferrals:
        _State.pending = number
    else:
        raise Interrupted(number)

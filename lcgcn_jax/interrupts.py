"""Signals that stop a command: Ctrl-C (SIGINT), SIGTERM and SIGHUP."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_IMPATIENT = 3  # signals during the last steps, after which the process ends at once


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to stop.

    Attributes:
      number: the signal.
      kept: what was kept of the work in progress, for the message; empty if there is nothing to say.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = signal.Signals(number)
        self.kept = ""


class _State:
    """What is known about signals so far; one for the process, as signals are."""

    first: int | None = None
    finishing = False
    late = 0
    deferrals = 0
    pending: int | None = None


@contextlib.contextmanager
def raised_as_exceptions() -> Iterator[None]:
    """Within, a signal raises `Interrupted` in the main thread.

    Signals that are ignored (`nohup`) or have a handler already stay as they are. After a signal the
    handlers stay, for the process is about to end.
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
    """The first signal that came, or None."""
    return None if _State.first is None else signal.Signals(_State.first)


def finish() -> None:
    """From here on the process ends by itself: two more signals are ignored, the third one kills it."""
    _State.finishing = True


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within, a signal waits until the end of the block, which has to be short.

    In other threads than the main one this does nothing: signals are handled in the main thread.
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
        if _State.late >= _IMPATIENT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
    elif _State.deferrals:
        _State.pending = number
    else:
        raise Interrupted(number)

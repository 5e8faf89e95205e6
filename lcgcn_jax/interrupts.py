"""Signals that stop a command: Ctrl-C (SIGINT), SIGTERM and SIGHUP."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_IMPATIENT = 3  # signals after which the process ends without cleaning up


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

    received = 0
    deferrals = 0
    pending: int | None = None


@contextlib.contextmanager
def raised_as_exceptions() -> Iterator[None]:
    """Within, the first signal raises `Interrupted` in the main thread.

    Further signals do not disturb the cleanup; a third one ends the process at once. Signals that are
    ignored (`nohup`) or have a handler already stay as they are. After an `Interrupted` the handlers
    stay, for the process is about to end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    handlers = {number: handler for number, handler in handlers.items() if handler in defaults}
    _State.received, _State.deferrals, _State.pending = 0, 0, None
    for number in handlers:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        if not _State.received:
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within, a signal waits until the end of the block, which has to be short."""
    _State.deferrals += 1
    try:
        yield
    finally:
        _State.deferrals -= 1
        if _State.pending is not None and _State.deferrals == 0:
            number, _State.pending = _State.pending, None
            raise Interrupted(number)


def _handle(number: int, frame: object) -> None:
    _State.received += 1
    if _State.received >= _IMPATIENT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    elif _State.received == 1:
        if _State.deferrals:
            _State.pending = number
        else:
            raise Interrupted(number)

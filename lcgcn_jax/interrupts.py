"""Signals that stop a command: Ctrl-C (SIGINT), SIGTERM and SIGHUP."""

import contextlib
import functools
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_RETRY_SECONDS = 0.02
_IMPORT_SECONDS = 10.0  # a script that is itself imported can still be stopped
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
    time = 0.0  # of the first signal
    finishing = False
    late = 0
    deferrals = 0
    pending: int | None = None


@contextlib.contextmanager
def raised_as_exceptions() -> Iterator[None]:
    """Raise `Interrupted` in the main thread when a signal arrives within the block.

    Signals that are ignored (`nohup`) or already have a handler are not changed. After a signal the
    handlers remain installed, because the process is about to end.

    An exception during the import of a library in C++ such as jaxlib can crash the process, and Python
    discards exceptions in destructors and callbacks of the garbage collector. A signal that arrives there is
    raised again a little later.
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
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_raise_again, hook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
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


def _raise_again(hook: Callable[[Any], object], unraisable: Any) -> None:
    error = unraisable.exc_value
    if not isinstance(error, Interrupted):
        hook(unraisable)
    elif not _State.finishing:
        _raise_later(error.number)  # here it would be discarded again


def _raise_later(number: int) -> None:
    timer = threading.Timer(_RETRY_SECONDS, _send, [number])
    timer.daemon = True
    timer.start()


def _send(number: int) -> None:
    thread = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and thread is not None:
        signal.pthread_kill(thread, number)  # also ends a system call of the main thread
    else:  # Windows
        signal.raise_signal(number)


def _is_importing(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _handle(number: int, frame: types.FrameType | None) -> None:
    if _State.first is None:
        _State.first, _State.time = number, time.monotonic()
    if _State.finishing:
        _State.late += 1
        if _State.late >= _MAX_LATE_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
    elif _State.deferrals:
        _State.pending = number
    elif time.monotonic() - _State.time < _IMPORT_SECONDS and _is_importing(frame):
        _raise_later(number)
    else:
        raise Interrupted(number)

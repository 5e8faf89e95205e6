"""Deferral of signals."""

import contextlib
import importlib
import os
import signal
import threading
import time

import pytest

from lcgcn_jax import interrupts
from lcgcn_jax.exit_codes import exit_code_of


def test_deferral_in_another_thread_does_not_affect_the_main_thread():
    entered, leave = threading.Event(), threading.Event()
    errors = []

    def work():
        try:
            with interrupts.deferred():
                entered.set()
                leave.wait(5)
        except BaseException as error:
            errors.append(error)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    raised = []
    try:
        with interrupts.raised_as_exceptions():
            thread.start()
            entered.wait(5)
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except interrupts.Interrupted as stop:
                raised.append(stop.number)
            leave.set()
            thread.join()
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert (raised, errors) == ([signal.SIGTERM], [])


@pytest.fixture
def restored_handlers():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


class RaisesSignal:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("restored_handlers")
def test_signal_in_a_destructor_is_raised_again():
    def work():
        with interrupts.raised_as_exceptions():
            RaisesSignal()
            time.sleep(10)

    with pytest.raises(interrupts.Interrupted):
        work()


@pytest.mark.usefixtures("restored_handlers")
def test_signal_during_an_import_is_raised_after_it(tmp_path, monkeypatch):
    text = (
        "import signal, time\nsignal.raise_signal(signal.SIGTERM)\ntime.sleep(0.1)\ncomplete = 1\n"
    )
    (tmp_path / "interrupted_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    complete = []

    def work():
        with interrupts.raised_as_exceptions():
            complete.append(importlib.import_module("interrupted_module").complete)
            time.sleep(10)

    with pytest.raises(interrupts.Interrupted):
        work()
    assert complete == [1]


@pytest.mark.usefixtures("restored_handlers")
def test_discarded_signal_sets_the_exit_code(capsys):
    def discards_the_signal():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        return 0

    assert exit_code_of(discards_the_signal) == 143
    assert capsys.readouterr().err == "lcgcn: stopped by SIGTERM\n"

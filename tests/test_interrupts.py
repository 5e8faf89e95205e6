"""Deferral of signals."""

import os
import signal
import threading

from lcgcn_jax import interrupts


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

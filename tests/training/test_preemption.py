"""Signals that ask many processes to stop."""

import os
import signal

import jax
import pytest

from lcgcn_jax.distributed import multihost_utils, preemption_guard

SIGNALS = [signal.SIGINT, signal.SIGHUP]


@pytest.fixture
def two_processes(monkeypatch):
    """Pretends to be one of two processes; gives the SIGTERMs that came, as JAX's service sees them."""
    noted = []
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGTERM)}
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: bool(noted) and step == 5
    )
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    yield noted
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_to_one_of_many_stops_all_at_a_common_step(two_processes, number):
    with preemption_guard() as stop_after:
        os.kill(os.getpid(), number)
        assert two_processes == [signal.SIGTERM]
        assert [stop_after(4), stop_after(5)] == [None, signal.SIGTERM]
    assert signal.getsignal(number) is signal.default_int_handler


def test_hang_up_that_is_ignored_stays_ignored_in_many_processes(two_processes):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with preemption_guard() as stop_after:
        os.kill(os.getpid(), signal.SIGHUP)
        assert two_processes == []
        assert stop_after(5) is None

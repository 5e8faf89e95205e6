"""Signals in distributed training."""

import os
import signal

import jax
import pytest

from lcgcn_jax.distributed import multihost_utils, preemption_guard

SIGNALS = [signal.SIGINT, signal.SIGHUP]


@pytest.fixture
def two_processes(monkeypatch):
    """Simulates one of two processes; returns the SIGTERMs that JAX's preemption service would get."""
    received = []
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGTERM)}
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: bool(received) and step == 5
    )
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    yield received
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_to_one_process_stops_all_at_the_same_step(two_processes, number):
    with preemption_guard() as stop_after:
        os.kill(os.getpid(), number)
        assert two_processes == [signal.SIGTERM]
        assert [stop_after(4), stop_after(5)] == [None, signal.SIGTERM]
    assert signal.getsignal(number) is signal.default_int_handler


def test_ignored_hangup_stays_ignored(two_processes):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with preemption_guard() as stop_after:
        os.kill(os.getpid(), signal.SIGHUP)
        assert two_processes == []
        assert stop_after(5) is None

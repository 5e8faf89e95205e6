"""Tests of `profiling.timing`."""

import itertools

from lcgcn_jax.profiling.timing import Timing, measure


def test_measurements_are_interleaved_after_the_warm_up():
    calls = []
    clock = itertools.count().__next__
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = measure(functions, repetitions=3, warmup=2, clock=clock)
    assert "".join(calls) == "aabb" + "ababab"
    assert times == {"a": Timing((1, 1, 1)), "b": Timing((1, 1, 1))}


def test_statistics_of_a_timing():
    timing = Timing((4.0, 1.0, 2.0, 3.0, 10.0))
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)
    assert timing.per(2).median == 1.5

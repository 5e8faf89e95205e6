"""Tests of `profiling.timing`."""

import itertools

from lcgcn_jax.profiling.measurements import BenchmarkResult
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


def test_time_of_zero_has_no_rate():
    assert BenchmarkResult("a", Timing((0.0, 0.0)), 8).to_dict()["faces_per_second"] is None
    assert BenchmarkResult("a", Timing((2.0, 2.0)), 8).to_dict()["faces_per_second"] == 4
    assert BenchmarkResult("a", Timing((2.0, 2.0))).to_dict()["faces_per_second"] is None

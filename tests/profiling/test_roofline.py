"""Tests of `profiling.roofline`."""

import jax
import jax.numpy as jnp
import pytest

from lcgcn_jax.profiling import roofline
from lcgcn_jax.profiling.roofline import Cost, Peaks


def test_cost_of_a_matrix_product():
    a, b = jnp.ones((32, 48)), jnp.ones((48, 16))
    cost = Cost.of(jax.jit(jnp.matmul).lower(a, b).compile())
    assert cost.flops == 2 * 32 * 48 * 16
    assert cost.bytes == 4 * (32 * 48 + 48 * 16 + 32 * 16)


@pytest.mark.parametrize(
    ("peaks", "bound"), [((10.0, 1e9), (8.0, "flops")), ((1e9, 10.0), (2.0, "bytes"))]
)
def test_roofline_is_the_larger_of_both_times(peaks, bound):
    assert Cost(80.0, 20.0).roofline(Peaks(*peaks)) == bound


def test_peaks_are_positive(monkeypatch):
    monkeypatch.setattr(roofline, "_MATRIX", {"cpu": 64})
    monkeypatch.setattr(roofline, "_COPIED", {"cpu": 1 << 16})
    peaks = roofline.measure_peaks(jnp.dtype(jnp.float32))
    assert min(peaks.flops, peaks.bandwidth) > 0

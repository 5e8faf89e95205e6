"""Benchmark of the growth of time and memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "growth.py"
CONFIG = ROOT / "tests" / "training" / "tiny.py"


@pytest.mark.slow
def test_growth_with_tiny_sizes(tmp_path):
    """Every table, with the tiny heatmap model at 64 px."""
    out = tmp_path / "growth.json"
    options = "--batch 1,2 --landmarks 68,136 --size 64 --devices 2 --train-batch 2 --repetitions 1"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--config", CONFIG, *options.split(), "--json", out],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(out.read_text())["rows"]
    kinds = [(row["axis"], row["kind"], row[row["axis"]]) for row in rows]
    assert kinds == [
        ("batch", "inference", 1), ("batch", "inference", 2),
        ("landmarks", "inference", 68), ("landmarks", "inference", 136),
        ("landmarks", "graph", 68), ("landmarks", "graph", 136),
        ("size", "inference", 64), ("devices", "training", 2),
    ]  # fmt: skip
    assert all(row["seconds"] > 0 and row["peak"] > row["temporaries"] for row in rows)
    one, two = (row["bytes"] for row in rows if row["axis"] == "batch")
    assert two < 2.2 * one
    small, large = (row["bytes"] for row in rows if row["kind"] == "graph")
    assert large < 4.4 * small  # quadratic
    for title in ("inference by batch; landmarks 68", "graph by landmarks", "training by devices"):
        assert title in done.stdout

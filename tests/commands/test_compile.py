import dataclasses
import json

import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.commands.research import compile as command
from lcgcn_jax.profiling.aot_compile import GIB, Collective, StepCost
from lcgcn_jax.profiling.gpu_program import Kernels
from lcgcn_jax.profiling.step_report import format_step

ARGUMENTS = ["compile", "--config", "w300_lcgcn_best", "--topology", "v5e:4x4"]


@pytest.fixture
def compiled(monkeypatch):
    """Replaces the compiler: a chip needs 1 GiB, and a quarter of a GiB for each of its faces."""
    asked = []

    def compile_step(config, topology, batch_size):
        asked.append((config.seed, topology, batch_size))
        parts = {"arguments": GIB, "temporaries": GIB * batch_size // 64}
        collectives = {"all-reduce": Collective(7, 3 * 2**20)}
        return StepCost(
            topology, 16, batch_size, sum(parts.values()), parts, 2e12, 81.9e9, collectives
        )

    monkeypatch.setattr(command, "compile_step", compile_step)
    return asked


def test_output_has_the_cost_per_chip_and_the_largest_batch(compiled, capsys, tmp_path):
    file = tmp_path / "new" / "figures.json"
    options = ["--largest-batch", "--json", str(file), "--config.seed=5"]
    assert main([*ARGUMENTS, *options]) == 0
    assert compiled == [(5, "v5e:4x4", 64), (5, "v5e:4x4", 128)]
    output = capsys.readouterr().out
    assert "not measured" in output
    assert "2.00 of 15.75 GiB (arguments 1.00, temporaries 1.00)" in output
    assert "2,000.0 GFLOP" in output
    assert "76.28 GiB" in output
    assert "7 with 3.00 MiB in total" in output
    assert "10.0 steps/s, 640 faces/s" in output
    assert "largest batch   944," in output  # 59 quarters on each of 16 chips
    figures = json.loads(file.read_text())
    assert figures["largest_batch"] == 944
    assert figures["least_seconds"] == pytest.approx(0.1)
    fields = {field.name for field in dataclasses.fields(StepCost)}
    assert fields < figures.keys()


def test_other_batch_size_compiles_once(compiled, capsys):
    assert main([*ARGUMENTS, "--batch-size", "32"]) == 0
    assert compiled == [(0, "v5e:4x4", 32)]
    assert "largest" not in capsys.readouterr().out


def test_invalid_output_is_an_error_before_the_compilation(compiled, error_line, tmp_path):
    existing = tmp_path / "existing.json"
    existing.write_text("{}")
    assert "already exists" in error_line(*ARGUMENTS, "--json", existing)
    assert "is a folder" in error_line(*ARGUMENTS, "--json", tmp_path, "--overwrite")
    assert "cannot be written" in error_line(*ARGUMENTS, "--json", existing / "below.json")
    assert "unrecognized" in error_line(*ARGUMENTS, "--batch", "3")
    assert compiled == []


def test_unknown_topology_is_an_error(error_line):
    assert "v7:4x4: no such chip" in error_line(*ARGUMENTS[:-1], "v7:4x4")


def test_kernels_of_a_gpu_are_listed_by_kind():
    kernels = {"reduction": Kernels(1_234, 3 * GIB), "convolution": Kernels(7, GIB // 2)}
    cost = StepCost("h200:1", 1, 64, GIB, {"arguments": GIB}, 1e12, 3.5 * GIB, {}, kernels)
    lines = format_step(cost).splitlines()
    assert any(
        line.split() == ["reduction", "kernels", "1,234", "with", "3.00", "GiB"] for line in lines
    )
    assert any(
        line.split() == ["convolution", "kernels", "7", "with", "0.50", "GiB"] for line in lines
    )
    assert "more if bytes hit its caches" in lines[-1]

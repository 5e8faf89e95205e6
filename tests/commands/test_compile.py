import dataclasses
import json

import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.commands.research import compile as command
from lcgcn_jax.profiling.tpu_compile import GIB, Collective, StepCost

ARGUMENTS = ["compile", "--config", "w300_lcgcn_best", "--topology", "v5e:4x4"]


@pytest.fixture
def compiled(monkeypatch):
    """In place of the compiler: a chip takes 1 GiB and a quarter for each of its faces."""
    asked = []

    def compile_step(config, topology, batch_size):
        asked.append((config.seed, topology, batch_size))
        parts = {"arguments": GIB, "temporaries": GIB * batch_size // 64}
        found = {"all-reduce": Collective(7, 3 * 2**20)}
        return StepCost(topology, 16, batch_size, sum(parts.values()), parts, 2e12, 81.9e9, found)

    monkeypatch.setattr(command, "compile_step", compile_step)
    return asked


def test_prints_a_chips_needs_and_the_largest_batch(compiled, capsys, tmp_path):
    file = tmp_path / "new" / "figures.json"
    options = ["--largest-batch", "--json", str(file), "--config.seed=5"]
    assert main([*ARGUMENTS, *options]) == 0
    assert compiled == [(5, "v5e:4x4", 64), (5, "v5e:4x4", 128)]
    said = capsys.readouterr().out
    assert "not measured" in said
    assert "2.00 of 15.75 GiB (arguments 1.00, temporaries 1.00)" in said
    assert "2,000.0 GFLOP" in said
    assert "76.28 GiB" in said
    assert "7 of 3.00 MiB together" in said
    assert "at the most    10.0 steps/s, 640 faces/s" in said
    assert "largest batch  944," in said  # 59 quarters on each of 16 chips
    figures = json.loads(file.read_text())
    assert figures["largest_batch"] == 944
    assert figures["least_seconds"] == pytest.approx(0.1)
    fields = {field.name for field in dataclasses.fields(StepCost)}
    assert fields < figures.keys()


def test_takes_another_batch_and_compiles_once(compiled, capsys):
    assert main([*ARGUMENTS, "--batch-size", "32"]) == 0
    assert compiled == [(0, "v5e:4x4", 32)]
    assert "largest" not in capsys.readouterr().out


def test_mistakes_are_told_before_anything_is_compiled(compiled, refused, tmp_path):
    there = tmp_path / "there.json"
    there.write_text("{}")
    assert "already exists" in refused(*ARGUMENTS, "--json", there)
    assert "is a folder" in refused(*ARGUMENTS, "--json", tmp_path, "--overwrite")
    assert "cannot be written" in refused(*ARGUMENTS, "--json", there / "below.json")
    assert "unrecognized" in refused(*ARGUMENTS, "--batch", "3")
    assert compiled == []


def test_the_topology_and_the_batch_are_checked(refused):
    assert "v7:4x4: no such TPU" in refused(*ARGUMENTS[:-1], "v7:4x4")

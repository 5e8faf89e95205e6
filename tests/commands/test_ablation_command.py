import json

import pytest

from lcgcn_jax.commands.main import main


@pytest.mark.slow
def test_second_run_only_writes_the_table(
    small_run, small_run_config, synthetic98, tmp_path, capsys
):
    arguments = [
        "ablation", "--model", str(small_run), "--out", str(tmp_path / "table3"),
        "--rows", "paper,subpixel", "--seeds", "1", "--config", small_run_config,
        f"--config.data.dir={synthetic98}", "--config.train.mode=frozen",
        "--config.train.cache=true", "--config.data.views=1", "--config.train.steps=1",
    ]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    table = (tmp_path / "table3" / "table.md").read_text()
    assert shown == table + "\n"
    summary = json.loads((tmp_path / "table3" / "table.json").read_text())
    for name, row in summary["rows"].items():
        assert f"| `{name}`: " in table
        assert f" {row['blur']['nme']:.3f} " in table
    assert [(p["row"], p["against"]) for p in summary["pairs"]] == []
    runs = tmp_path / "table3" / "paper" / "seed0" / "metrics.jsonl"
    before = runs.stat().st_mtime_ns
    assert main(arguments) == 0
    assert runs.stat().st_mtime_ns == before


def test_unknown_rows_and_zero_seeds_are_errors(error_line, small_run, tmp_path):
    arguments = ("--model", small_run, "--out", tmp_path / "table3")
    assert "did you mean 'paper-static'" in error_line(
        "ablation", *arguments, "--rows", "paper-statik"
    )
    assert "--rows: ',' has an empty name" in error_line("ablation", *arguments, "--rows", ",")
    assert "--seeds: 0 has to be at least 1" in error_line("ablation", *arguments, "--seeds", "0")
    assert not (tmp_path / "table3").exists()

import json
import textwrap

import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.profiling import benchmark, measurements, roofline
from lcgcn_jax.profiling.measurements import BENCHMARKS

CONFIG = """
    from lcgcn_jax.training.config import default_config

    def get_config():
        config = default_config()
        config.model.heatmap = {"name": "toy"}
        config.data.image_size = 32
        config.train.batch_size = 8
        config.data.num_threads = 1
        return config
    """

ROWS = [
    "train step: trace",
    "train step: compile",
    "train step: compile, cached",
    "forward",
    "decode",
    "graph head",
    "predict: latency",
    "predict: throughput",
    "train step",
    "train, end to end",
    "input: read, decode",
    "input: warp, augment",
    "input: batch",
    "input: 0 workers",
    "input: 1 workers",
]
PROGRAMS = ("forward", "decode", "graph head", "train step")


@pytest.fixture
def config(tmp_path, toy, monkeypatch):
    """Config of a toy model; the peaks of the device are measured in little time."""
    monkeypatch.setattr(roofline, "_MATRIX", {"cpu": 64})
    monkeypatch.setattr(roofline, "_COPIED", {"cpu": 1 << 16})
    monkeypatch.setattr(measurements, "PREDICT_BATCH_SIZE", 4)
    path = tmp_path / "toy.py"
    path.write_text(textwrap.dedent(CONFIG))
    return path


@pytest.mark.slow
def test_all_results_are_present_and_positive(config, synthetic98, tmp_path, capsys):
    out = tmp_path / "new" / "bench.json"
    options = ["--data", synthetic98, "--workers", "0,1", "--repetitions", 2, "--json", out]
    assert main(["bench", "--config", *map(str, [config, *options])]) == 0
    result = json.loads(out.read_text())
    assert set(result) == {
        "config", "image_size", "batch_size", "dtype", "data", "devices", "cores", "versions", "peaks",
        "rows", "shares",
    }  # fmt: skip
    assert (result["image_size"], result["batch_size"]) == (32, 8)
    assert list(result["rows"]) == ROWS
    for name, row in result["rows"].items():
        low, high = row["quartiles"]
        # This row is the difference of two medians, which can be 0.
        assert row["median"] > 0 or name == "input: warp, augment"
        assert low <= row["median"] <= high
        assert (row["roofline"] is not None) == (name in PROGRAMS)
    for name in PROGRAMS:
        row = result["rows"][name]
        assert min(row["flops"], row["bytes"], row["roofline"]) > 0
        assert row["bound"] in ("flops", "bytes")
        assert row["faces_per_second"] == pytest.approx(8 / row["median"])
    assert result["rows"]["predict: latency"]["faces"] == 1
    assert result["peaks"]["float32"].keys() == {"flops", "bandwidth"}
    assert min(result["shares"].values()) > 0
    assert result["shares"].keys() == {"graph_and_decode", "end_to_end"}
    output = capsys.readouterr().out
    assert all(name in output for name in ROWS)
    assert max(len(line) for line in output.splitlines() if line != str(config)) <= 100


@pytest.mark.slow
def test_two_benchmarks_on_a_dataset(config, synthetic98, tmp_path):
    out = tmp_path / "bench.json"
    options = ["--data", synthetic98, "--only", "forward,decode", "--repetitions", 2, "--json", out]
    assert main(["bench", "--config", *map(str, [config, *options])]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert list(rows) == ["forward", "decode"]
    for row in rows.values():
        low, high = row["quartiles"]
        assert 0 < low <= row["median"] <= high
        assert min(row["flops"], row["bytes"], row["roofline"]) > 0
        assert row["faces_per_second"] == pytest.approx(8 / row["median"])


def test_one_benchmark_on_synthetic_faces(config, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "_MIN_SYNTHETIC", 20)
    assert main(["bench", "--config", str(config), "--only", "stages", "--repetitions", "2"]) == 0
    output = capsys.readouterr().out
    assert "drawing 20 synthetic faces" in output
    assert "input: batch" in output
    assert "forward" not in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "forwrd"], "unknown value 'forwrd'; did you mean 'forward'?"),
        (["--only", "graph,"], "--only: 'graph,' has an empty name; separate names by one comma"),
        (["--workers", "two"], "--workers: invalid integers value: 'two'"),
        (["--repetitions", "0"], "--repetitions: 0 has to be at least 1"),
        (["--config", "demos"], "demos: no such config file"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--json", __file__], "already exists; choose another path or give --overwrite"),
    ],
)
def test_invalid_option_is_an_error(error_line, options, message):
    assert message in error_line("bench", *options)


def test_help_lists_the_benchmarks(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    output = capsys.readouterr().out
    assert all(f"\n  {part} " in output for part in BENCHMARKS)

import json
import textwrap

import pytest

from lcgcn_jax.commands import bench
from lcgcn_jax.commands.main import main
from lcgcn_jax.profiling import measurements, roofline
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
    """The smallest model there is, on a device whose peaks take no time to find."""
    monkeypatch.setattr(roofline, "_MATRIX", {"cpu": 64})
    monkeypatch.setattr(roofline, "_COPIED", {"cpu": 1 << 16})
    monkeypatch.setattr(measurements, "PREDICT_BATCH_SIZE", 4)
    path = tmp_path / "toy.py"
    path.write_text(textwrap.dedent(CONFIG))
    return path


@pytest.mark.slow
def test_every_row_is_there_and_positive(config, synthetic98, tmp_path, capsys):
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
        # Between two medians the subtraction of the decoding may leave nothing.
        assert row["median"] > 0 or name == "input: warp, augment"
        assert low <= row["median"] <= high
        assert (row["floor"] is not None) == (name in PROGRAMS)
    for name in PROGRAMS:
        row = result["rows"][name]
        assert min(row["flops"], row["bytes"], row["floor"]) > 0
        assert row["bound"] in ("flops", "bytes")
        assert row["faces_per_second"] == pytest.approx(8 / row["median"])
    assert result["rows"]["predict: latency"]["faces"] == 1
    assert result["peaks"]["float32"].keys() == {"flops", "bandwidth"}
    assert min(result["shares"].values()) > 0
    assert result["shares"].keys() == {"graph_and_decode", "end_to_end"}
    said = capsys.readouterr().out
    assert all(name in said for name in ROWS)
    assert max(len(line) for line in said.splitlines() if line != str(config)) <= 100


def test_rows_of_two_parts_on_given_faces(config, synthetic98, tmp_path):
    out = tmp_path / "bench.json"
    options = ["--data", synthetic98, "--only", "forward,decode", "--repetitions", 2, "--json", out]
    assert main(["bench", "--config", *map(str, [config, *options])]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert list(rows) == ["forward", "decode"]
    for row in rows.values():
        low, high = row["quartiles"]
        assert 0 < low <= row["median"] <= high
        assert min(row["flops"], row["bytes"], row["floor"]) > 0
        assert row["faces_per_second"] == pytest.approx(8 / row["median"])


def test_parts_of_choice_on_faces_of_its_own(config, monkeypatch, capsys):
    monkeypatch.setattr(bench, "_SYNTHETIC_FACES", 20)
    assert main(["bench", "--config", str(config), "--only", "stages", "--repetitions", "2"]) == 0
    said = capsys.readouterr().out
    assert "drawing 20 synthetic faces" in said
    assert "input: batch" in said
    assert "forward" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "forwrd"], "unknown field 'forwrd'; did you mean 'forward'?"),
        (["--workers", "two"], "--workers two: give numbers from 0"),
        (["--repetitions", "0"], "--repetitions 0: at least 1"),
        (["--config", "demos"], "demos: no such config file"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--json", __file__], "already exists; choose another file or give --overwrite"),
    ],
)
def test_mistake_is_told(refused, options, message):
    assert message in refused("bench", *options)


def test_parts_are_told_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    said = capsys.readouterr().out
    assert all(f"\n  {part} " in said for part in BENCHMARKS)

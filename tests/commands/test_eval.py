import csv
import json

import numpy as np
import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.data.dataset import open_dataset

SUBSETS = ["pose", "expression", "illumination", "make_up", "occlusion", "blur"]


@pytest.fixture(scope="module")
def evaluated(small_run, synthetic98, tmp_path_factory):
    path = tmp_path_factory.mktemp("eval") / "new" / "eval.json"
    arguments = ["--model", small_run, "--data", synthetic98, "--split", "test", "--json", path]
    assert main(["eval", *map(str, arguments), "--batch-size", "8"]) == 0
    return path, json.loads(path.read_text())


def test_json_holds_both_stages_and_the_six_subsets(evaluated):
    _, result = evaluated
    assert result["num_faces"] == 24
    assert result["boxes"] == "gt"
    assert list(result["subsets"]) == SUBSETS
    for row in [result["stages"], *result["subsets"].values()]:
        for stage in ("heatmap", "graph"):
            assert set(row[stage]) == {"nme", "nme_ci95", "fr10", "auc10"}
            assert 0 < row[stage]["nme"] < 1000


def test_table_shows_what_the_json_holds(evaluated, small_run, synthetic98, capsys):
    _, result = evaluated
    arguments = ["--model", small_run, "--data", synthetic98, "--split", "test"]
    assert main(["eval", *map(str, arguments), "--batch-size", "8"]) == 0
    output = capsys.readouterr().out
    assert f"{result['stages']['graph']['nme']:.3f}" in output
    for name in SUBSETS:
        assert name in output


def test_flip_test_and_provided_boxes_change_the_result(
    evaluated, small_run, synthetic98, tmp_path
):
    _, plain = evaluated
    base = ["--model", small_run, "--data", synthetic98, "--split", "test", "--batch-size", 8]
    results = []
    for i, extra in enumerate((["--flip-test"], ["--boxes", "rect"])):
        path = tmp_path / f"{i}.json"
        assert main(["eval", *map(str, [*base, "--json", path, *extra])]) == 0
        results.append(json.loads(path.read_text()))
    assert results[1]["boxes"] == "rect"
    figures = {round(r["stages"]["graph"]["nme"], 6) for r in [plain, *results]}
    assert len(figures) == 3


@pytest.mark.slow
def test_corruption_is_reported(evaluated, small_run, synthetic98, tmp_path, capsys):
    _, plain = evaluated
    assert "corruption" not in plain
    base = ["--model", small_run, "--data", synthetic98, "--split", "test", "--batch-size", 8]
    figures = [plain["stages"]["graph"]["nme"]]
    for i, extra in enumerate(([], ["--flip-test"])):
        path = tmp_path / f"{i}.json"
        assert (
            main(["eval", *map(str, [*base, "--corruption", "occlude", "--json", path, *extra])])
            == 0
        )
        result = json.loads(path.read_text())
        assert result["corruption"] == "occlude"
        assert set(result) == set(plain) | {"corruption"}
        figures.append(result["stages"]["graph"]["nme"])
    assert "corrupted: occlude" in capsys.readouterr().out
    assert len({round(value, 6) for value in figures}) == 3


def test_mean_of_the_errors_per_face_is_the_reported_nme(
    evaluated, small_run, synthetic98, tmp_path
):
    _, result = evaluated
    path = tmp_path / "new" / "faces.csv"
    arguments = ["--model", small_run, "--data", synthetic98, "--split", "test"]
    arguments += ["--batch-size", 8, "--per-face", path]
    assert main(["eval", *map(str, arguments)]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "heatmap", "graph"]
    source = open_dataset(synthetic98).source("test")
    assert [row["name"] for row in rows] == [source[i]["name"] for i in range(24)]
    for stage in ("heatmap", "graph"):
        mean = np.mean([float(row[stage]) for row in rows])
        assert mean == pytest.approx(result["stages"][stage]["nme"], rel=1e-5)


@pytest.fixture(scope="module")
def wflw_layout(synthetic98, tmp_path_factory):
    """Synthetic faces, prepared from the layout of WFLW."""
    out = tmp_path_factory.mktemp("data") / "wflw"
    assert main(["prepare", "wflw", "--src", str(synthetic98 / "official"), "--out", str(out)]) == 0
    return out


def test_results_are_compared_with_reported_ones(evaluated, small_run, wflw_layout, capsys):
    _, result = evaluated
    arguments = ["--model", small_run, "--data", wflw_layout, "--split", "test", "--batch-size", 8]
    assert main(["eval", *map(str, arguments), "--compare-reported"]) == 0
    output = capsys.readouterr().out
    comparison = output[output.index("Comparison with results reported by others") :]
    assert "Measured here: wflw test, boxes: gt, flip test: no" in comparison
    assert "Incomplete sets: test 24 of 2,500" in comparison
    rows = {line.split("  ")[0]: line.split() for line in comparison.splitlines()}
    for stage in ("heatmap", "graph"):
        subsets = [result["subsets"][name][stage]["nme"] for name in SUBSETS]
        whole = result["stages"][stage]
        expected = [f"{whole['nme']:.2f}", f"{whole['fr10']:.2f}", f"{whole['auc10']:.3f}"]
        expected += [f"{nme:.2f}" for nme in subsets]
        assert rows[f"measured here: {stage} stage"][-9:] == expected
    paper = ["2022", "4.24", "2.68", "0.589", "7.57", "4.47", "4.20", "4.01", "5.03", "4.83"]
    (reported,) = (words for name, words in rows.items() if name.startswith("reported: LCGCN"))
    assert reported[-10:] == paper
    assert f"{reported[2]} IEEE Access" in comparison


def test_training_split_has_no_reported_results(small_run, wflw_layout, capsys):
    arguments = ["--model", small_run, "--data", wflw_layout, "--split", "train"]
    assert main(["eval", *map(str, arguments), "--compare-reported"]) == 0
    output = capsys.readouterr().out
    assert "No reported results for train: those for wflw are for its test sets" in output
    assert "reported:" not in output


def test_comparison_for_other_datasets_is_an_error(error_line, small_run, synthetic98):
    arguments = ["--model", small_run, "--data", synthetic98, "--split", "test"]
    error = error_line("eval", *arguments, "--compare-reported")
    assert (
        f"{synthetic98}: synthetic data, and there are reported results for wflw and 300w" in error
    )


def test_wflw_model_on_300w_data_is_an_error(error_line, small_run, synthetic68):
    error = error_line("eval", "--model", small_run, "--data", synthetic68, "--split", "common")
    assert f"{synthetic68}: 68 points (ibug68)" in error
    assert "98 (wflw98)" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "nowhere"}, "nowhere: no such bundle or training workdir"),
        ({"--data": "nowhere"}, "nowhere: no such folder"),
        ({"--split": "tset"}, "no split 'tset'; available: train, validation, test"),
        ({"--split": "full"}, "no split 'common'"),
        ({"--batch-size": "0"}, "has to be at least 1"),
        ({"--corruption": "fog"}, "invalid choice: 'fog'"),
    ],
)
def test_invalid_input_is_an_error(error_line, small_run, synthetic98, changes, message):
    arguments = {"--model": small_run, "--data": synthetic98, "--split": "test"} | changes
    assert message in error_line("eval", *[word for pair in arguments.items() for word in pair])


def test_results_are_not_overwritten_unless_asked(error_line, evaluated, small_run, synthetic98):
    path, result = evaluated
    arguments = [
        "--model",
        small_run,
        "--data",
        synthetic98,
        "--split",
        "validation",
        "--json",
        path,
    ]
    assert f"{path}: already exists" in error_line("eval", *arguments)
    arguments[-2] = "--per-face"
    assert f"{path}: already exists" in error_line("eval", *arguments)
    assert json.loads(path.read_text()) == result


def test_run_without_validation_has_no_model(error_line, small_run, synthetic98, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    error = error_line(
        "eval", "--model", tmp_path / "run", "--data", synthetic98, "--split", "test"
    )
    assert "has not been validated yet" in error


def test_detected_boxes(evaluated, small_run, synthetic98, detector_model, tmp_path, capsys):
    _, plain = evaluated
    path = tmp_path / "eval.json"
    arguments = ["--model", small_run, "--data", synthetic98, "--split", "test", "--json", path]
    arguments += ["--batch-size", 8, "--boxes", "detector", "--detector-model", detector_model]
    assert main(["eval", *map(str, arguments)]) == 0
    result = json.loads(path.read_text())
    assert set(result) == set(plain) | {"missed"}
    assert result["boxes"] == "detector"
    assert 0 <= result["missed"] < result["num_faces"] == 24
    assert f"boxes: detector ({result['missed']} faces missed)" in capsys.readouterr().out
    assert result["stages"]["graph"]["nme"] != plain["stages"]["graph"]["nme"]


def test_detected_boxes_need_a_detector(error_line, small_run, synthetic98, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = ["--model", small_run, "--data", synthetic98, "--split", "test"]
    error = error_line("eval", *arguments, "--boxes", "detector")
    assert "give --detector-model FILE" in error

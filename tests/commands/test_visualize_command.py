import dataclasses
import errno

import cv2
import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.models.bundles import load_bundle, save_bundle


def draw(model, data, out, *more):
    arguments = ["--model", model, "--data", data, "--out", out, *more]
    return main(["visualize", *map(str, arguments)])


@pytest.mark.slow
def test_stages_edges_and_curves_of_a_run(small_run, synthetic98, tmp_path, capsys):
    out = tmp_path / "p"
    assert draw(small_run, synthetic98, out, "--faces", 3) == 0
    stages = cv2.imread(str(out / "stages.png"))
    assert stages.shape == (2 * 256, 2 * 3 * 256, 3), "two faces per row, three images each"
    names = ["stages.png", "edges.png", "edge_matrices.png", "curves.png"]
    assert capsys.readouterr().out.splitlines() == [str(out / name) for name in names]
    assert all(cv2.imread(str(out / name)) is not None for name in names)


@pytest.mark.slow
def test_edges_of_one_part_above_a_threshold(small_run, synthetic98, tmp_path):
    options = {
        "all": [],
        "part": ["--landmark", "left_eye"],
        "none": ["--landmark", "left_eye", "--edge-threshold", 0.99],
    }
    plots = []
    for name, more in options.items():
        assert draw(small_run, synthetic98, tmp_path / name, "--faces", 2, *more) == 0
        plots.append((tmp_path / name / "edges.png").read_bytes())
    assert len(set(plots)) == 3


def test_model_without_a_graph_has_no_edges(small_run, synthetic98, tmp_path, capsys):
    bundle = load_bundle(small_run)
    weights = {n: w for n, w in bundle.weights.items() if not n.startswith("graph.")}
    bundle = dataclasses.replace(bundle, model={**bundle.model, "graph": None}, weights=weights)
    save_bundle(tmp_path / "bundle", bundle, "heatmap model\n")
    assert draw(tmp_path / "bundle", synthetic98, tmp_path / "p", "--faces", 2) == 0
    assert "the model has no graph; no edges are drawn" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["stages.png"]


def test_plot_that_cannot_be_written_leaves_no_file(
    small_run, synthetic98, tmp_path, monkeypatch, error_line
):
    def fail(figure, path, **_):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    out = tmp_path / "p"
    words = ("--model", small_run, "--data", synthetic98, "--out", out, "--faces", 2)
    assert f"{out}: cannot be written: No space left" in error_line("visualize", *words)
    assert [path.name for path in out.iterdir()] == ["stages.png"]


def test_bundle_without_metrics_needs_data(error_line, small_run, tmp_path):
    error = error_line("visualize", "--model", small_run / "best", "--out", tmp_path / "p")
    assert "give --data" in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--landmark", "left_eyes"], "did you mean 'left_eye'?"),
        (["--landmark", "98"], "wflw98 has the landmarks 0 to 97"),
        (
            ["--edge-threshold", "1.5"],
            "--edge-threshold 1.5: an edge weight is at least 0 and below 1",
        ),
        (
            ["--edge-threshold", "nan"],
            "--edge-threshold nan: an edge weight is at least 0 and below 1",
        ),
        (["--faces", "0"], "--faces: 0 has to be at least 1"),
        (["--skip", "1000"], "skip fewer"),
    ],
)
def test_invalid_options_are_errors_and_nothing_is_written(
    error_line, small_run, synthetic98, tmp_path, more, message
):
    arguments = ["--model", small_run, "--data", synthetic98, "--out", tmp_path / "p", *more]
    assert message in error_line("visualize", *arguments)
    assert not (tmp_path / "p").exists()


def test_edges_need_faces(error_line, small_run, tmp_path):
    error = error_line(
        "visualize", "--model", small_run, "--landmark", "3", "--out", tmp_path / "p"
    )
    assert "give --data" in error


@pytest.mark.parametrize("name", ["stages.png", "edges.png", "edge_matrices.png", "curves.png"])
def test_plots_are_not_overwritten(error_line, small_run, synthetic98, tmp_path, name):
    (tmp_path / name).write_text("precious")
    arguments = ["--model", small_run, "--data", synthetic98, "--out", tmp_path]
    assert f"{name}: already exists" in error_line("visualize", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"

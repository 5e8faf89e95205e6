import json

import cv2
import pytest


@pytest.mark.slow
def test_demo_runs_the_whole_pipeline(journey):
    out = journey / "demo"
    result = json.loads((out / "eval.json").read_text())
    assert result["num_faces"] == 24
    assert result["mean_face_nme"] > 0
    output = (journey / "stdout").read_text()
    assert f"{result['mean_face_nme']:.3f}" in output
    assert f"{result['stages']['graph']['nme']:.3f}" in output
    for name in ("stages.png", "curves.png"):
        assert cv2.imread(str(out / name)).std() > 5
    assert (out / "train" / "best" / "model.safetensors").is_file()
    assert (out / "data" / "official" / "WFLW_images").is_dir()


def test_demo_does_not_overwrite_files(error_line, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    assert f"{tmp_path}: already exists" in error_line("demo", "--out", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"

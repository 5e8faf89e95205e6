import cv2

from lcgcn_jax.commands.main import main


def test_stages_and_curves_of_a_run(small_run, synthetic98, tmp_path):
    arguments = ["--model", small_run, "--data", synthetic98, "--faces", 3, "--out", tmp_path / "p"]
    assert main(["visualize", *map(str, arguments)]) == 0
    stages = cv2.imread(str(tmp_path / "p" / "stages.png"))
    assert stages.shape == (2 * 256, 2 * 3 * 256, 3), "two faces a row, three pictures each"
    assert cv2.imread(str(tmp_path / "p" / "curves.png")) is not None


def test_bundle_without_log_needs_data(refused, small_run, tmp_path):
    said = refused("visualize", "--model", small_run / "best", "--out", tmp_path / "p")
    assert "give --data" in said


def test_pictures_are_not_overwritten(refused, small_run, tmp_path):
    (tmp_path / "curves.png").write_text("precious")
    assert "already exists" in refused("visualize", "--model", small_run, "--out", tmp_path)
    assert (tmp_path / "curves.png").read_text() == "precious"

from pathlib import Path

import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.result_files import ResultFiles
from lcgcn_jax.inference.sources import InputFile


def test_only_numbered_pts_files_are_those_of_an_image(tmp_path):
    for name in ("a_face1.pts", "a_face12.pts", "a_face_truth.pts", "a_faces.pts", "a_face0.pts"):
        (tmp_path / name).touch()
    (tmp_path / "_face1.pts").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a_face2_face1.pts").touch()
    earlier = ResultFiles(tmp_path, "pts")._earlier_pts
    assert earlier == {
        tmp_path / "a": [tmp_path / "a_face1.pts", tmp_path / "a_face12.pts"],
        tmp_path / "b" / "a_face2": [tmp_path / "b" / "a_face2_face1.pts"],
    }


@pytest.mark.parametrize(
    ("format", "name"),
    [("json", "a.json"), ("csv", "a.png"), ("jsonl", "predictions.jsonl"), ("coco", "coco.json")],
)
def test_folder_with_the_name_of_a_result_is_found_before_the_work(tmp_path, format, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    files = ResultFiles(tmp_path / "out", format, overwrite=True)
    with pytest.raises(InputError, match=rf"{name}: is a folder, and a result has this name"):
        files.check([InputFile(tmp_path / "a.jpg", Path("a"))])


def test_name_too_long_for_pts_files_is_found_before_the_work(tmp_path):
    name = tmp_path / ("x" * 240)
    files = ResultFiles(tmp_path / "out", "pts", overlays=False)
    with pytest.raises(InputError, match="the file name is too long"):
        files.check([InputFile(name.with_suffix(".jpg"), Path(name.name))])

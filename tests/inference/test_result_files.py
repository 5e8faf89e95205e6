import os
from pathlib import Path

import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.annotation_files import AnnotationFiles
from lcgcn_jax.inference.result_files import ResultFiles
from lcgcn_jax.inference.sources import InputFile
from lcgcn_jax.landmarks import IBUG68


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


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("csv", "photo.csv"),
        ("json", "photo.json"),
        ("jsonl", "predictions.jsonl"),
        ("coco", "coco.json"),
    ],
)
def test_other_inputs_are_not_overwritten(tmp_path, format, name):
    (tmp_path / name).touch()
    files = ResultFiles(tmp_path, format, overwrite=True, overlays=False)
    image = InputFile(tmp_path / "in/photo.jpg", Path("photo"))
    with pytest.raises(InputError, match=f"{name}: is one of the inputs; choose another --out"):
        files.check([image], [None, tmp_path / name])


def test_folder_of_a_video_that_is_not_utf_8_is_found_before_the_work(tmp_path):
    files = ResultFiles(tmp_path / os.fsdecode(b"\xff"), "json")
    with pytest.raises(InputError, match="a video needs a path in UTF-8"):
        files.check([InputFile(tmp_path / "a.mp4", Path("a"))])


def test_annotations_of_another_process_are_kept(tmp_path):
    files = []
    for name in ("a", "b"):
        annotations = AnnotationFiles(tmp_path, "cvat")
        image = InputFile(tmp_path / f"{name}.jpg", Path(name))
        annotations.add(image, 40, 30, [], IBUG68)
        annotations.finish(image)
        files.append(annotations)
    assert files[0].write() == ""
    other = tmp_path / "cvat-2.xml"
    message = f"{tmp_path}/cvat.xml: another process has written it; these images are in {other}"
    assert files[1].write() == message
    assert 'name="a.jpg"' in (tmp_path / "cvat.xml").read_text()
    assert 'name="b.jpg"' in (tmp_path / "cvat-2.xml").read_text()
    assert (tmp_path / "cvat_labels-2.json").exists()

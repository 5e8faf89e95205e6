import os
import re
import shutil

import pytest

from lcgcn_jax.data.formats.image_paths import ImageFinder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg", "a.jpg"),
        ("./one//b.jpg", "one/b.jpg"),
        (r"one\b.jpg", "one/b.jpg"),
        ("one/c%20d.jpg", "one/c d.jpg"),
        ("one/c d.jpg", "one/c d.jpg"),
        ("/home/me/photos/one/b.jpg", "one/b.jpg"),
        (r"C:\photos\one\b.jpg", "one/b.jpg"),
        (r"\\server\share\one\b.jpg", "one/b.jpg"),
        ("../images/one/b.jpg", "one/b.jpg"),
        ("b.jpg", "one/b.jpg"),
        ("batch/two/p.jpg", "two/p.jpg"),
        ("one/b", "one/b.jpg"),
        ("ONE/B.JPG", "one/b.jpg"),
        ("one/\u00e9.jpg", "one/e\u0301.jpg"),
        ("two/e\u0301.jpg", "two/\u00e9.jpg"),
    ],
)
def test_path_of_another_machine_is_matched(images, text, expected):
    for name in ("one/e\u0301.jpg", "two/\u00e9.jpg"):  # decomposed and composed
        shutil.copy(images / "a.jpg", images / name)
    assert ImageFinder(images).find(text) == images / expected


def test_absolute_path_below_the_folder(images):
    (images / "copies").mkdir()
    shutil.copy(images / "a.jpg", images / "copies/a.jpg")
    assert ImageFinder(images).find(str(images / "copies/a.jpg")) == images / "copies/a.jpg"


def test_folder_of_the_annotation_file_has_priority(images):
    finder = ImageFinder(images)
    assert finder.find("p.jpg", relative_to=images / "two") == images / "two/p.jpg"
    assert finder.find("../three/p.jpg", relative_to=images / "two") == images / "three/p.jpg"
    assert finder.find("a.jpg", relative_to=images.parent) == images / "a.jpg"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nothing.jpg", "no image 'nothing.jpg' in images/ or below"),
        ("../outside.jpg", "no image '../outside.jpg'"),
        ("p.jpg", "'three/p.jpg' or 'two/p.jpg'"),
        ("link.jpg", "a link that leaves images/"),
        ("", "no image path"),
        ("a\0.jpg", "no image"),
    ],
)
def test_missing_or_ambiguous_image_raises(images, text, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        ImageFinder(images).find(text)


def test_same_case_has_priority(images):
    shutil.copy(images / "a.jpg", images / "two/B.jpg")
    assert ImageFinder(images).find("b.jpg") == images / "one/b.jpg"
    with pytest.raises(ValueError, match=r"'one/b\.jpg' or 'two/B\.jpg'"):
        ImageFinder(images).find("B.JPG")


def test_two_paths_cannot_match_one_image(images):
    finder = ImageFinder(images)
    assert finder.find("job_1/a.jpg") == images / "a.jpg"
    assert finder.find("job_1/a.jpg") == images / "a.jpg"
    with pytest.raises(ValueError, match=r"'job_2/a\.jpg' and 'job_1/a\.jpg' both fit 'a\.jpg'"):
        finder.find("job_2/a.jpg")


def test_macos_system_files_are_not_images(images):
    (images / "two/._b.jpg").write_bytes(b"")
    assert ImageFinder(images).find("b.jpg") == images / "one/b.jpg"


def test_pipe_is_not_an_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for text in ("pipe.jpg", "elsewhere/pipe.jpg", "C:\\faces\\pipe.jpg"):
        with pytest.raises(ValueError, match="no image"):
            ImageFinder(tmp_path).find(text)


@pytest.mark.parametrize(
    ("text", "is_noted"),
    [
        ("trainset/b.jpg", True),
        ("one/b.jpg", False),
        ("images/one/b.jpg", False),
        ("Images/One/b.jpg", False),
        ("../images/one/b.jpg", False),
        ("images\\one\\b.jpg", False),
        ("trainset\\b.jpg", True),
        ("b.jpg", False),
        ("/data/upload/b.jpg", False),
    ],
)
def test_relative_path_of_another_folder_is_noted(tmp_path, text, is_noted):
    path = tmp_path / "images/one/b.jpg"
    path.parent.mkdir(parents=True)
    path.touch()
    finder = ImageFinder(tmp_path / "images")
    assert finder.find(text) == path
    note = (
        f"1 image found in another folder than stated, such as {text!r} = 'one/b.jpg'; check that --src is "
        "the folder that the paths start from"
    )
    assert finder.notes() == ([note] if is_noted else [])

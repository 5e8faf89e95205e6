from pathlib import Path

import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.inputs import find_inputs


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "clip.mp4", "sub/c.tif", "sub/deep/a.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(inputs):
    return [file.name.as_posix() for file in inputs]


def test_folder_stands_for_what_is_in_it_and_below(folder):
    inputs = find_inputs([str(folder)])
    assert names(inputs) == ["a", "b", "clip", "sub/c", "sub/deep/a"]
    assert [file.is_video for file in inputs] == [False, False, True, False, False]
    assert inputs[3].path == folder / "sub/c.tif"


def test_pattern_and_named_files(folder):
    assert names(find_inputs([str(folder / "*.png")])) == ["a"]
    assert names(find_inputs([str(folder / "**/c.*"), str(folder / "notes.txt")])) == ["c", "notes"]


def test_name_that_looks_like_a_pattern_is_a_name(tmp_path):
    path = tmp_path / "me[1].jpg"
    path.touch()
    assert find_inputs([str(path)])[0].path == path


def test_file_that_is_named_twice_is_taken_once(folder):
    assert names(find_inputs([str(folder / "a.png"), str(folder / "sub/../a.png")])) == ["a"]


def test_missing_file_is_left_to_its_reader(tmp_path):
    (file,) = find_inputs([str(tmp_path / "missing.jpg")])
    assert file.name == Path("missing")


def test_results_of_files_that_differ_in_their_suffix_keep_it(folder):
    (folder / "a.jpg").touch()
    assert names(find_inputs([str(folder)]))[:3] == ["a.jpg", "a.png", "b"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["*.webp"], "no file matches this pattern"),
        (["empty"], "no photograph or video in this folder"),
        (["a.png", "sub/deep/a.png"], "run them apart"),
    ],
)
def test_mistakes_name_the_file(folder, texts, message):
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        find_inputs([str(folder / text) for text in texts])
    assert str(caught.value).startswith(str(folder))

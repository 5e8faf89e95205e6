import os
from pathlib import Path

import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.sources import find_inputs


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "clip.mp4", "sub/c.tif", "sub/deep/a.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(inputs):
    return [file.name.as_posix() for file in inputs.files]


def test_folder_stands_for_what_is_in_it_and_below(folder):
    inputs = find_inputs([str(folder)])
    assert names(inputs) == ["a", "b", "clip", "sub/c", "sub/deep/a"]
    assert [file.is_video for file in inputs.files] == [False, False, True, False, False]
    assert inputs.files[3].path == folder / "sub/c.tif"


def test_pattern_and_named_files(folder):
    assert names(find_inputs([str(folder / "*.png")])) == ["a"]
    assert names(find_inputs([str(folder / "**/c.*"), str(folder / "notes.txt")])) == ["c", "notes"]


def test_name_that_looks_like_a_pattern_is_a_name(tmp_path):
    path = tmp_path / "me[1].jpg"
    path.touch()
    assert find_inputs([str(path)]).files[0].path == path


def test_file_that_is_named_twice_is_taken_once(folder):
    assert names(find_inputs([str(folder / "a.png"), str(folder / "sub/../a.png")])) == ["a"]


def test_missing_file_is_left_to_its_reader(tmp_path):
    (file,) = find_inputs([str(tmp_path / "missing.jpg")]).files
    assert file.name == Path("missing")


def test_results_of_files_that_differ_in_their_suffix_keep_it(folder):
    (folder / "a.jpg").touch()
    assert names(find_inputs([str(folder)]))[:3] == ["a.jpg", "a.png", "b"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["*.webp"], "no file matches this pattern"),
        (["empty"], "no image or video in this folder"),
        (["a.png", "sub/deep/a.png"], "run them apart"),
    ],
)
def test_mistakes_name_the_file(folder, texts, message):
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        find_inputs([str(folder / text) for text in texts])
    assert str(caught.value).startswith(str(folder))


def touch(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return str(folder)


def test_files_that_cannot_be_read_are_counted(tmp_path):
    folder = touch(
        tmp_path, "1.jpg", "2.HEIC", "a/3.heic", "4.jfif", "5.tga", "6.3gp", "7.MPO", "8"
    )
    inputs = find_inputs([folder, folder, str(tmp_path / "*.tga")])
    assert names(inputs) == ["1", "4", "7", "5"], "a file that is named is taken"
    assert inputs.describe_unread() == (
        "left out 4 files that cannot be read: 2 .heic, 1 without a suffix, 1 .3gp; "
        "convert HEIC to JPEG first"
    )


def test_one_line_names_few_suffixes(tmp_path):
    folder = touch(tmp_path, "a.png", *(f"{i}.x{i}" for i in range(9)))
    line = find_inputs([folder]).describe_unread()
    assert line.startswith("left out 9 files")
    assert line.endswith(", 1 .x5, 3 others")


def test_nothing_is_said_where_all_is_read(tmp_path):
    folder = touch(
        tmp_path, "a.png", ".DS_Store", "._a.png", "._b.heic", ".clip.7.partial.mp4", "a.pts"
    )
    inputs = find_inputs([folder])
    assert names(inputs) == ["a"]
    assert inputs.describe_unread() == ""


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["1.heic"], "only 1 .heic; convert HEIC to JPEG first"),
        (["1.HIF", "2.txt"], "only 1 .hif, 1 .txt; convert HEIC"),
        (["2.txt"], "only 1 .txt"),
        (["._1.jpg"], "no image or video in this folder"),
    ],
)
def test_folder_without_a_file_that_can_be_read(tmp_path, files, message):
    folder = touch(tmp_path, *files)
    with pytest.raises(InputError) as caught:
        find_inputs([folder])
    assert str(caught.value).startswith(f"{folder}: no image or video in this folder")
    assert str(caught.value).endswith(message) or "HEIC" in message


@pytest.mark.parametrize(
    "text",
    [
        "0", "12", "-", "rtsp://camera/1", "https://example.com//face.jpg?size=1", "camera:0", "s3://b/k",
        "HTTP://EXAMPLE.COM/a", "file:///tmp/a.jpg", "data:image/png;base64,AAAA",
    ],
)  # fmt: skip
def test_streams_and_urls_are_refused_as_given(text):
    with pytest.raises(InputError) as caught:
        find_inputs([text])
    assert str(caught.value).startswith(f"{text}: only files and folders are read")


def test_long_urls_are_shortened():
    with pytest.raises(InputError) as caught:
        find_inputs(["data:image/png;base64," + "A" * 100_000])
    assert len(str(caught.value)) < 300


def test_files_with_names_like_streams_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "0", "camera:0")
    assert names(find_inputs(["0", "camera:0"])) == ["0", "camera:0"]


def test_devices_and_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for text in (str(tmp_path / "pipe.jpg"), "/dev/null"):
        with pytest.raises(
            InputError, match="is a device or pipe; only files and folders are read"
        ):
            find_inputs([text])


def test_windows_paths(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert names(find_inputs(["sub\\deep\\a.png", "sub\\*.tif"])) == ["a", "c"]
    assert find_inputs(["sub\\deep"]).files[0].path == Path("sub/deep/a.png")


def test_path_in_folder(folder):
    files = find_inputs([str(folder / "sub")]).files
    assert [file.path_in_folder for file in files] == [Path("c.tif"), Path("deep/a.png")]

import os
from pathlib import Path

import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.folders import files_below
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


def test_folder_selects_files_in_all_subfolders(folder):
    inputs = find_inputs([str(folder)])
    assert names(inputs) == ["a", "b", "clip", "sub/c", "sub/deep/a"]
    assert [file.is_video for file in inputs.files] == [False, False, True, False, False]
    assert inputs.files[3].path == folder / "sub/c.tif"


def test_patterns_and_file_paths(folder):
    assert names(find_inputs([str(folder / "*.png")])) == ["a"]
    assert names(find_inputs([str(folder / "**/c.*"), str(folder / "notes.txt")])) == ["c", "notes"]


def test_existing_file_has_priority_over_a_pattern(tmp_path):
    path = tmp_path / "me[1].jpg"
    path.touch()
    assert find_inputs([str(path)]).files[0].path == path


def test_duplicate_files_are_removed(folder):
    assert names(find_inputs([str(folder / "a.png"), str(folder / "sub/../a.png")])) == ["a"]


def test_missing_file_is_listed(tmp_path):
    (file,) = find_inputs([str(tmp_path / "missing.jpg")]).files
    assert file.name == Path("missing")


def test_names_of_files_that_differ_in_the_suffix_include_it(folder):
    (folder / "a.jpg").touch()
    assert names(find_inputs([str(folder)]))[:3] == ["a.jpg", "a.png", "b"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["*.webp"], "no file matches this pattern"),
        (["empty"], "no image or video in this folder"),
        (["a.png", "sub/deep/a.png"], "run them separately"),
    ],
)
def test_unusable_input_is_an_error(folder, texts, message):
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        find_inputs([str(folder / text) for text in texts])
    assert str(caught.value).startswith(str(folder))


def touch(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return str(folder)


def test_linked_folders_are_searched_once_and_loops_end(tmp_path):
    folder = touch(tmp_path / "photos", "b/2.png", "3.png")
    touch(tmp_path / "other", "1.png", "deep/4.png")
    (tmp_path / "photos" / "a").symlink_to(tmp_path / "other")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "other" / "deep")
    (tmp_path / "photos" / "itself").symlink_to(tmp_path / "photos" / "b")
    (tmp_path / "other" / "up").symlink_to(tmp_path)
    (tmp_path / "photos" / "nowhere").symlink_to(tmp_path / "absent")
    assert names(find_inputs([folder])) == ["3", "b/2", "a/1", "a/deep/4"]


def test_results_in_a_linked_folder_are_not_inputs(tmp_path):
    folder = touch(tmp_path / "photos", "1.png")
    touch(tmp_path / "other", "2.png", "results/1.png", "results/a/2.png")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "other")
    out = tmp_path / "photos" / "link" / "results"
    assert names(find_inputs([folder], out)) == ["1", "link/2"]
    assert names(find_inputs([str(out)], tmp_path / "other")) == ["1", "a/2"], (
        "out contains the input"
    )


def test_unreadable_files_are_counted(tmp_path):
    folder = touch(
        tmp_path, "1.jpg", "2.HEIC", "a/3.heic", "4.jfif", "5.tga", "6.3gp", "7.MPO", "8"
    )
    inputs = find_inputs([folder, folder, str(tmp_path / "*.tga")])
    assert names(inputs) == ["1", "4", "7", "5"], "a file path is used whatever its suffix"
    assert inputs.describe_unread() == [
        "left out 4 files that cannot be read: 2 .heic, 1 without a suffix, 1 .3gp; "
        "convert HEIC to JPEG first"
    ]


def test_number_of_listed_suffixes_is_limited(tmp_path):
    folder = touch(tmp_path, "a.png", *(f"{i}.x{i}" for i in range(9)))
    (line,) = find_inputs([folder]).describe_unread()
    assert line.startswith("left out 9 files")
    assert line.endswith(", 1 .x5, 3 others")


def test_ignored_files_are_not_reported(tmp_path):
    folder = touch(
        tmp_path, "a.png", ".DS_Store", "._a.png", "._b.heic", ".clip.7.partial.mp4", "a.pts"
    )
    inputs = find_inputs([folder])
    assert names(inputs) == ["a"]
    assert inputs.describe_unread() == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["1.heic"], "only 1 .heic; convert HEIC to JPEG first"),
        (["1.HIF", "2.txt"], "only 1 .hif, 1 .txt; convert HEIC"),
        (["2.txt"], "only 1 .txt"),
        (["._1.jpg"], "no image or video in this folder"),
    ],
)
def test_folder_without_readable_files_is_an_error(tmp_path, files, message):
    folder = touch(tmp_path, *files)
    with pytest.raises(InputError) as caught:
        find_inputs([folder])
    assert str(caught.value).startswith(f"{folder}: no image or video in this folder")
    assert str(caught.value).endswith(message) or "HEIC" in message


@pytest.mark.parametrize(
    "text",
    [
        "0", "12", "-", "https://example.com//face.jpg?size=1", "camera:", "camera:front", "s3://b/k",
        "file:///tmp/a.jpg", "data:image/png;base64,AAAA", "rtmp://host/live",
    ],
)  # fmt: skip
def test_other_urls_are_errors(text):
    with pytest.raises(InputError) as caught:
        find_inputs([text])
    assert str(caught.value).startswith(f"{text}: only files and folders are read")


def test_streams_are_videos():
    texts = ["camera:0", "rtsp://user:secret@cam1:554/live/ch1?x=1", "HTTP://EXAMPLE.COM/a"]
    files = find_inputs([*texts, "camera:0"]).files
    assert [file.stream for file in files] == texts
    assert names(find_inputs(texts)) == ["camera0", "cam1_live_ch1", "EXAMPLE.COM_a"]
    assert all(file.is_video for file in files)
    assert files[1].label == "rtsp://cam1:554/live/ch1?x=1"


def test_streams_with_results_of_one_name_are_an_error():
    with pytest.raises(InputError, match="same name as those of http://a/clip"):
        find_inputs(["http://a/clip", "http://u:p@a/clip.mp4"])


def test_long_urls_are_shortened():
    with pytest.raises(InputError) as caught:
        find_inputs(["data:image/png;base64," + "A" * 100_000])
    assert len(str(caught.value)) < 300


def test_existing_file_has_priority_over_a_stream(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "0", "camera:0")
    assert names(find_inputs(["0", "camera:0"])) == ["0", "camera:0"]


def test_devices_and_pipes_are_errors(tmp_path):
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


def test_links_to_one_file_are_several_inputs(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/x.jpg").touch()
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).symlink_to("../store/x.jpg")
    assert names(find_inputs([str(folder), str(folder / "b.jpg")])) == ["a", "b"]
    (tmp_path / "linked").symlink_to(folder)
    assert names(find_inputs([str(folder), str(tmp_path / "linked/a.jpg")])) == ["a", "b"]


def test_system_folders_are_left_out(folder):
    for name in ("lost+found", "System Volume Information"):
        (folder / name).mkdir()
        (folder / name / "x.jpg").touch()
    assert names(find_inputs([str(folder)])) == ["a", "b", "clip", "sub/c", "sub/deep/a"]


def test_empty_input_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").touch()
    with pytest.raises(InputError, match="an input is empty"):
        find_inputs([""])


@pytest.fixture
def locked(folder, monkeypatch):
    """A subfolder that cannot be listed; the permissions of files do not apply to root."""
    scandir = os.scandir

    def refuse(path="."):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return folder / "sub/deep"


def test_folders_that_cannot_be_read_are_reported(folder, locked):
    inputs = find_inputs([str(folder), str(folder)])
    assert names(inputs) == ["a", "b", "clip", "sub/c"]
    assert inputs.describe_unread() == [f"left out: {locked}: cannot be read: Permission denied"]
    with pytest.raises(InputError, match="deep: cannot be read: Permission denied; change its"):
        find_inputs([str(locked)])
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no image or video in this folder"):
        find_inputs([str(folder), str(folder / "empty")])
    assert find_inputs([str(folder)], locked.parent).locked == [], "the results are no inputs"


def test_folder_without_the_permission_to_open_files(folder, monkeypatch):
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != str(folder / "sub") and access(path, mode)
    )
    inputs = find_inputs([str(folder)])
    assert names(inputs) == ["a", "b", "clip"]
    assert inputs.locked == [f"{folder}/sub: cannot be read: Permission denied"]


def test_other_searches_of_a_folder_that_cannot_be_read_are_errors(folder, locked):
    with pytest.raises(InputError, match="deep: cannot be read: Permission denied"):
        list(files_below(folder))

"""Files in a bucket of an emulator of Cloud Storage."""

import contextlib
import errno
import pickle
import re
import sys
from pathlib import Path

import pytest
from emulator import bucket, emulator  # noqa: F401

from lcgcn_jax import storage
from lcgcn_jax.atomic_io import checksums, replacing, write_all, write_json
from lcgcn_jax.errors import InputError, install_command
from lcgcn_jax.storage import BucketPath, GrowingFolder, StorageError, as_path, check_access


def test_local_paths_stay_local():
    for location in ("runs/a", Path("runs/a"), "/runs:1/a", "a:b"):
        assert type(as_path(location)) is type(Path())
    assert str(as_path("runs/a")) == "runs/a"


def test_path_keeps_its_url():
    path = as_path("gs://faces/runs/a.json")
    assert as_path(Path("gs://faces/runs/a.json")) == path  # `Path` drops a slash
    assert str(path) == f"{path}" == path.__fspath__() == "gs://faces/runs/a.json"
    assert str(path.parent) == "gs://faces/runs"
    assert str(path.with_name("b.txt") / "c") == "gs://faces/runs/b.txt/c"
    assert pickle.loads(pickle.dumps(path)) == path
    assert path.relative_to(path.parent).as_posix() == "a.json"
    assert (path.key, path.parents[1].key) == ("runs/a.json", "")


@pytest.mark.parametrize("location", ["s3://faces/a", "gs://", "https://example.com/a"])
def test_other_urls_are_errors(location):
    with pytest.raises(InputError, match="gs://BUCKET/PATH"):
        as_path(location)


@pytest.mark.parametrize("location", ["", None, 5])
@pytest.mark.usefixtures("without_type_checks")
def test_other_values_than_paths_are_errors(location):
    with pytest.raises(InputError, match="is not a path; give a file or folder"):
        as_path(location)


def test_objects_behave_like_files(bucket, tmp_path):  # noqa: F811
    """The same calls have the same results on a disk and in a bucket."""

    def results(folder):
        assert not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a b").mkdir(parents=True, exist_ok=True)
        (folder / "a b" / "ü#?%.txt").write_text("é\n", encoding="utf-8")
        (folder / "x.1.json").write_bytes(b"")
        (folder / "x.json").write_bytes(bytes(range(256)))
        with (folder / "x.json").open("rb") as file:
            assert file.read(3) == b"\0\1\2"
        with pytest.raises(FileNotFoundError) as missing:
            (folder / "none").read_text(encoding="utf-8")
        with pytest.raises(FileNotFoundError):
            (folder / "none").unlink()
        with pytest.raises(FileNotFoundError):
            (folder / "none").stat()
        (folder / "none").unlink(missing_ok=True)
        (folder / "y").write_text("y")
        (folder / "y").unlink()
        return {
            "is": [
                (path.exists(), path.is_file(), path.is_dir())
                for path in (folder, folder / "x.json", folder / "x", folder / "a b")
            ],
            "text": (folder / "a b" / "ü#?%.txt").read_text(encoding="utf-8"),
            "bytes": (folder / "x.json").read_bytes(),
            "size": (folder / "x.json").stat().st_size,
            "names": sorted(path.name for path in folder.iterdir()),
            "glob": sorted(path.name for path in folder.glob("x.*.json")),
            "error": (missing.value.errno, missing.value.filename == str(folder / "none")),
            "sizes": storage.file_sizes(folder),
            "checksums": checksums(folder),
        }

    on_disk, in_bucket = results(tmp_path / "folder"), results(bucket)
    assert in_bucket == on_disk
    assert in_bucket["sizes"] == {"a b/ü#?%.txt": 3, "x.1.json": 0, "x.json": 256}


def test_many_objects_are_all_listed(bucket, monkeypatch):  # noqa: F811
    request = storage._request
    monkeypatch.setattr(  # pages of 3 objects
        storage,
        "_request",
        lambda *args, **params: request(*args, **{"maxResults": 3} | params),
    )
    names = sorted(f"{number:02}" for number in range(10))
    for name in names:
        (bucket / name).write_text(name)
    assert sorted(path.name for path in bucket.iterdir()) == names
    assert list(storage.file_sizes(bucket)) == names


def test_files_are_replaced_whole(bucket):  # noqa: F811
    path = bucket / "a.json"
    write_json(path, [1])
    with contextlib.suppress(ZeroDivisionError), replacing(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "[\n 1\n]\n"
    assert not partial.exists()
    write_all({path: b"1", bucket / "b": b"2"})
    assert [file.read_bytes() for file in (path, bucket / "b")] == [b"1", b"2"]


def test_only_one_process_creates_or_replaces_a_generation(bucket):  # noqa: F811
    path = bucket / "lock"
    first = path.write(b"1", generation=0)
    with pytest.raises(FileExistsError):
        path.write(b"2", generation=0)
    second = path.write(b"2", generation=first)
    with pytest.raises(FileExistsError):
        path.write(b"3", generation=first)
    assert (path.read_bytes(), path.metadata()["generation"]) == (b"2", second)


def test_growing_folder_is_uploaded(bucket, monkeypatch):  # noqa: F811
    folder = GrowingFolder(bucket)
    with (folder.local / "log").open("w") as file:
        (folder.local / "board").mkdir()
        (folder.local / "board" / "events").write_text("1")
        file.write("a")
        file.flush()
        folder.sync()
        assert (bucket / "log").read_text() == "a"
        file.write("b")
        file.flush()
        folder.sync(now=False)  # too early
        assert (bucket / "log").read_text() == "a"
        monkeypatch.setattr(storage, "_SYNC_SECONDS", 0)
        folder.sync(now=False)
        assert (bucket / "log").read_text() == "ab"
        with monkeypatch.context() as patch:
            patch.setattr(BucketPath, "write", fail)
            file.write("c")
            file.flush()
            folder.sync(now=False)  # the network may return
            with pytest.raises(StorageError):
                folder.sync()
    folder.close()
    assert (bucket / "log").read_text() == "abc"
    assert (bucket / "board" / "events").read_text() == "1"
    assert not folder.local.exists()


def test_removed_files_and_excluded_folders_are_not_uploaded(bucket, monkeypatch):  # noqa: F811
    folder = GrowingFolder(bucket, excluded=("wandb",))
    (folder.local / "wandb" / "run").mkdir(parents=True)
    (folder.local / "wandb" / "run" / "log").write_text("1")
    (folder.local / "removed").write_text("1")
    (folder.local / "x").write_text("1")
    files = GrowingFolder._files

    def files_before_removal(self):
        for file in list(files(self)):
            (folder.local / "removed").unlink(missing_ok=True)
            yield file

    monkeypatch.setattr(GrowingFolder, "_files", files_before_removal)
    folder.close()
    assert storage.file_sizes(bucket) == {"x": 1}


def test_lost_folder_is_not_uploaded(bucket, monkeypatch):  # noqa: F811
    def lost():
        raise InputError("taken over")

    monkeypatch.setattr(storage, "_SYNC_SECONDS", 0)
    folder = GrowingFolder(bucket, lost)
    (folder.local / "x").write_text("1")
    for now in (True, False):
        with pytest.raises(InputError, match="taken over"):
            folder.sync(now=now)
    with pytest.raises(InputError, match="taken over"):
        folder.close()
    assert storage.file_sizes(bucket) == {}
    assert not folder.local.exists()


def test_requests_have_time_limits_that_grow_with_their_content(monkeypatch):
    calls = []

    class Files:
        _location = "http://none"

        def call(self, method, *_, timeout, **__):
            calls.append((method, timeout))
            return {"Date": ""}, b'{"size": "7000000", "generation": "1"}'

        def cat_file(self, _, *, timeout, **__):
            calls.append(("read", timeout))
            return b""

    monkeypatch.setattr(storage, "_filesystem", Files)
    path = as_path("gs://faces/a")
    path.write_bytes(bytes(2_000_000))
    path.read_range(1_000_000, 4_000_000)
    path.read_bytes()
    assert calls == [("POST", 62), ("read", 63), ("GET", 60), ("read", 67)]


def fail(self, *_, **__):
    raise StorageError(errno.EIO, "cannot be reached", str(self))


def test_unusable_buckets_are_errors(emulator):  # noqa: F811
    check_access(as_path("gs://faces/a"))
    check_access(Path("none"))
    with pytest.raises(InputError, match="gs://nobucket/a: no bucket 'nobucket'; create it"):
        check_access(as_path("gs://nobucket/a"))


class HttpError(Exception):
    code = 401


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError("Forbidden: b/faces/o\nno access"),
            "no permission (Forbidden: b/faces/o no access); run",
        ),
        (HttpError("Anonymous caller"), "no permission (Anonymous caller); run `gcloud auth"),
        (TimeoutError(), "no answer in time; check the network"),
        (RuntimeError("a\nb"), "a b"),
    ],
)
def test_errors_have_one_line(error, message):
    path = as_path("gs://faces/a")
    with pytest.raises(StorageError) as raised, storage.errors_of(path):
        raise error
    assert isinstance(raised.value, InputError)
    assert str(raised.value).startswith(f"gs://faces/a: {message}")
    assert str(raised.value).count("\n") == 0
    with pytest.raises(type(error)), storage.errors_of(Path("a")):
        raise error


def test_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs.core", None)
    storage._filesystem.cache_clear()
    with pytest.raises(
        InputError, match=f"^gs:// needs gcsfs; {re.escape(install_command('gcs'))}$"
    ):
        as_path("gs://faces/a").is_dir()

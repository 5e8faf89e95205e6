"""Copies of folders of a bucket in the cache folder."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from emulator import bucket, emulator  # noqa: F401

from lcgcn_jax import bucket_copy
from lcgcn_jax.bucket_copy import local_copy
from lcgcn_jax.errors import InputError
from lcgcn_jax.storage import BucketPath, StorageError, as_path, file_sizes

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bucket_copy, "_CHUNK", 4096)
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch):
    """Names and first bytes of the ranges that are read."""
    calls = []
    read_range = BucketPath.read_range

    def counted(self, start=None, end=None):
        calls.append((self.name, start))
        return read_range(self, start, end)

    monkeypatch.setattr(BucketPath, "read_range", counted)
    return calls


def files(folder):
    sizes = file_sizes(folder)
    return {name: (folder / name).read_bytes() for name in sizes}


def test_folder_on_a_disk_is_not_copied(tmp_path):
    assert local_copy(tmp_path) is tmp_path


def test_files_are_copied_once(bucket, reads, cache):  # noqa: F811
    (bucket / "a" / "x.bin").write_bytes(CONTENT)
    (bucket / "empty").write_bytes(b"")
    copy = local_copy(bucket)
    assert copy == cache / "lcgcn_jax" / "gs" / "faces" / bucket.name
    assert files(copy) == {"a/x.bin": CONTENT, "empty": b""}
    assert reads == [("x.bin", 0), ("x.bin", 4096), ("x.bin", 8192)]
    local_copy(bucket)
    assert len(reads) == 3
    (bucket / "empty").write_bytes(b"changed")
    (bucket / "a" / "x.bin").unlink()
    (bucket / "y").write_bytes(b"new")
    assert files(local_copy(bucket)) == {"empty": b"changed", "y": b"new"}
    (copy / "y").unlink()
    assert files(local_copy(bucket)) == {"empty": b"changed", "y": b"new"}


def objects_named(monkeypatch, *names):
    items = [{"name": f"a/{name}", "size": "1", "md5Hash": ""} for name in names]
    monkeypatch.setattr(bucket_copy, "check_access", lambda _: None)
    monkeypatch.setattr(BucketPath, "objects", lambda self: items)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/x", "outside of this folder; rename it"),
        ("../../.bashrc", "outside of this folder; rename it"),
        ("b/../../x", "outside of this folder; rename it"),
        ("b//x", "which cannot be the path of a file; rename it"),
    ],
)
def test_names_that_are_no_paths_in_the_folder_are_errors(name, message, monkeypatch, cache):
    objects_named(monkeypatch, "good", name)
    with pytest.raises(InputError) as raised:
        local_copy(as_path("gs://faces/a"))
    assert str(raised.value).startswith(f"gs://faces/a: has an object {name!r}")
    assert str(raised.value).endswith(message)
    assert not cache.exists()


def test_deleted_object_is_an_error(monkeypatch):
    def read_range(self, start, end):
        raise FileNotFoundError(2, "No such file", str(self))

    objects_named(monkeypatch, "x")
    monkeypatch.setattr(BucketPath, "read_range", read_range)
    with pytest.raises(
        StorageError, match=r"^gs://faces/a/x: was deleted while it was copied; run"
    ):
        local_copy(as_path("gs://faces/a"))


def test_any_file_name_is_copied(bucket):  # noqa: F811
    contents = {name: name.encode() for name in (".lock", ".copied.json", "x", "x.partial", "lock")}
    for name, content in contents.items():
        (bucket / name).write_bytes(content)
    assert files(local_copy(bucket)) == contents
    assert files(local_copy(bucket)) == contents


def test_interrupted_copy_resumes(bucket, reads):  # noqa: F811
    (bucket / "x.bin").write_bytes(CONTENT)
    copy_partly(bucket, 2)
    assert reads == [("x.bin", 0), ("x.bin", 4096)]
    assert files(local_copy(bucket)) == {"x.bin": CONTENT}
    assert reads[2:] == [("x.bin", 8192)]


def test_object_that_changes_is_copied_again(bucket, reads):  # noqa: F811
    (bucket / "x.bin").write_bytes(CONTENT)
    copy_partly(bucket, 1)
    (bucket / "x.bin").write_bytes(CONTENT[::-1])
    assert files(local_copy(bucket)) == {"x.bin": CONTENT[::-1]}


def copy_partly(folder, number):
    """Copies a folder until it is interrupted after some reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BucketPath, "read_range", stops_after(BucketPath.read_range, number))
        with pytest.raises(KeyboardInterrupt):
            local_copy(folder)


def stops_after(read_range, number):
    calls = []

    def read(self, start=None, end=None):
        if len(calls) == number:
            raise KeyboardInterrupt
        calls.append(start)
        return read_range(self, start, end)

    return read


@pytest.mark.parametrize(
    "sums", [("md5Hash", "crc32c"), ("crc32c",)]
)  # composed objects have no MD5
def test_copy_is_compared_with_its_checksum(bucket, monkeypatch, sums):  # noqa: F811
    (bucket / "x.bin").write_bytes(CONTENT)
    listed = BucketPath.objects

    def objects(self):
        dropped = {"md5Hash", "crc32c"} - set(sums)
        return [{k: v for k, v in item.items() if k not in dropped} for item in listed(self)]

    monkeypatch.setattr(BucketPath, "objects", objects)
    with monkeypatch.context() as patch:
        patch.setattr(BucketPath, "read_range", lambda self, start, end: bytes(end - start))
        with pytest.raises(StorageError, match=r"x\.bin: its copy has another checksum"):
            local_copy(bucket)
    assert files(local_copy(bucket)) == {"x.bin": CONTENT}


def test_large_copies_are_reported_and_need_room(bucket, monkeypatch, capsys):  # noqa: F811
    (bucket / "x.bin").write_bytes(CONTENT)
    monkeypatch.setattr(bucket_copy, "_QUIET_BYTES", 100)
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(len(CONTENT) - 1))
        with pytest.raises(InputError, match=r"0\.0 GB do not fit into .*; set XDG_CACHE_HOME to"):
            local_copy(bucket)
    local_copy(bucket)
    assert f"lcgcn: {bucket}: copying 0.0 GB in 1 file to " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://nobucket/a", "no bucket 'nobucket'"),
        ("gs://faces/none", "no such folder in the bucket"),
    ],
)
def test_missing_folders_are_errors(emulator, url, message):  # noqa: F811
    with pytest.raises(InputError, match=f"{url}: {message}"):
        local_copy(as_path(url))


def test_cache_that_cannot_be_written_is_an_error(bucket, monkeypatch, tmp_path):  # noqa: F811
    (bucket / "x.bin").write_bytes(CONTENT)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot be written: .*; set XDG_CACHE_HOME"):
        local_copy(bucket)
    assert Path(tmp_path / "file").is_file()

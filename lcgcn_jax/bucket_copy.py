"""Copies of bucket folders in the cache folder, for readers that need files on a disk."""

import base64
import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lcgcn_jax.atomic_io import lock_file, write_whole
from lcgcn_jax.cache import cache_folder
from lcgcn_jax.errors import InputError, count_of
from lcgcn_jax.storage import BucketPath, StorageError, check_access

_CHUNK = 32 << 20  # bytes of a request
_LIST = "copied.json"  # name -> size and checksum of the files that were copied and checked
_QUIET_BYTES = 64 << 20  # smaller copies are not reported


def local_copy(folder: Path) -> Path:
    """Folder on a disk with the files of a folder, which is the folder itself unless it is in a bucket.

    Files are copied once per machine, and again when they change. An interrupted copy continues where
    it ended. Each file is compared with its size and checksum in the bucket.

    Raises:
      InputError: the bucket cannot be read, or the copy does not fit on the disk.
    """
    if not isinstance(folder, BucketPath):
        return folder
    check_access(folder)
    copy = cache_folder().joinpath("gs", *folder.parts[1:])
    items = {item["name"].removeprefix(f"{folder.key}/"): item for item in folder.objects()}
    items = {name: item for name, item in items.items() if not name.endswith("/") and name}
    if not items:
        raise InputError(f"{folder}: no such folder in the bucket; check the path")
    for name in items:
        _require_inside(folder, name)
    # Outside of the copy, so that no object has the name of one of these files.
    state = cache_folder() / "gs-state" / hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    try:
        copy.mkdir(parents=True, exist_ok=True)
        state.mkdir(parents=True, exist_ok=True)
        with _locked(state):
            _copy(folder, items, copy, state)
    except StorageError:
        raise
    except OSError as error:
        raise InputError(
            f"{copy}: cannot be written: {error.strerror}; set XDG_CACHE_HOME to a folder with room"
        ) from error
    return copy


def _require_inside(folder: BucketPath, name: str) -> None:
    path = Path(name)
    if path.anchor or ".." in path.parts:
        raise InputError(f"{folder}: has an object {name!r} outside of this folder; rename it")
    if path.as_posix() != name:  # `a//b` and `./a`, and `a\\b` on Windows
        raise InputError(
            f"{folder}: has an object {name!r}, which cannot be the path of a file; rename it"
        )


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Let the other processes of this machine wait until one has copied."""
    with (state / "lock").open("w") as file:
        lock_file(file, wait=True)
        yield


def _copy(
    folder: BucketPath, items: Mapping[str, Mapping[str, Any]], copy: Path, state: Path
) -> None:
    copied = _read_list(state)
    for name in copied.keys() - items.keys():
        (copy / name).unlink(missing_ok=True)
    current = {name: _checksum(item) for name, item in items.items()}
    missing = {
        name: items[name]
        for name, checksum in current.items()
        if copied.get(name) != checksum or not _has_size(copy / name, int(items[name]["size"]))
    }
    parts = sum(_size(_part(state, name)) for name in missing)
    total = sum(int(item["size"]) for item in missing.values())
    _require_room(folder, copy, total - parts)
    if total > _QUIET_BYTES:
        size = f"{total / 1e9:,.1f} GB in {count_of(len(missing), 'file')}"
        print(f"lcgcn: {folder}: copying {size} to {copy}", file=sys.stderr)
    copied = {name: copied[name] for name in copied.keys() & items.keys() - missing.keys()}
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="copy", disable=total <= _QUIET_BYTES
    ) as bar:
        for name, item in missing.items():
            part, target = _part(state, name), copy / name
            _copy_file(BucketPath(folder / name), item, part, bar)
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
            copied[name] = current[name]
            _write_list(state, copied)
    _write_list(state, copied)


def _copy_file(source: BucketPath, item: Mapping[str, Any], part: Path, bar: tqdm) -> None:
    size, resumed = int(item["size"]), _size(part)
    bar.update(resumed)
    with part.open("ab") as file:
        while (start := file.tell()) < size:
            try:
                chunk = source.read_range(start, min(start + _CHUNK, size))
            except FileNotFoundError as error:
                reason = "was deleted while it was copied; run the command again"
                raise StorageError(errno.ENOENT, reason, str(source)) from error
            file.write(chunk)
            bar.update(len(chunk))
            if not chunk:
                break
        os.fsync(file.fileno())
    if not _has_size(part, size) or not _is_equal(part, item):
        part.unlink()
        if resumed:  # the object has changed since
            return _copy_file(source, item, part, bar)
        reason = "its copy has another checksum; the same command copies it again"
        raise StorageError(errno.EIO, reason, str(source))
    return None


def _part(state: Path, name: str) -> Path:
    """Incomplete copy of an object."""
    return state / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.partial"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _checksum(item: Mapping[str, Any]) -> str:
    """Size and checksum of an object; objects that were composed of parts have no MD5."""
    return f"{item['size']} {item.get('md5Hash') or item.get('crc32c')}"


def _is_equal(path: Path, item: Mapping[str, Any]) -> bool:
    """Whether a file has the checksum of an object."""
    if "md5Hash" in item:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").digest()
        return base64.b64encode(digest).decode() == item["md5Hash"]
    import google_crc32c  # a dependency of gcsfs

    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        for _ in checksum.consume(file, _CHUNK):
            pass
    return base64.b64encode(checksum.digest()).decode() == item["crc32c"]


def _require_room(folder: BucketPath, copy: Path, size: int) -> None:
    free = shutil.disk_usage(copy).free
    if size > free:
        raise InputError(
            f"{folder}: {size / 1e9:,.1f} GB do not fit into {copy} ({free / 1e9:,.1f} GB free); set "
            "XDG_CACHE_HOME to a folder on a larger disk"
        )


def _read_list(state: Path) -> dict[str, str]:
    try:
        return dict(json.loads((state / _LIST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _write_list(state: Path, copied: Mapping[str, str]) -> None:
    write_whole(
        state / _LIST, lambda partial: partial.write_text(json.dumps(copied), encoding="utf-8")
    )

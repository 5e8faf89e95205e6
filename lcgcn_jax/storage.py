"""Files and folders on a disk, or in a Cloud Storage bucket: `gs://BUCKET/PATH`.

`as_path` returns a path with the methods of pathlib for both. Buckets have no renaming, no appending and no
locks. The functions of this module, `bucket_copy` and `folder_lock` have one implementation for disks and one
for buckets.

Buckets are read and written with gcsfs, by Orbax through `etils.epath`, and by TensorStore. All of them find
the credentials of `gcloud auth application-default login`, of `GOOGLE_APPLICATION_CREDENTIALS`, and of
machines in Google Cloud, and the emulator in `STORAGE_EMULATOR_HOST`.
"""

import base64
import contextlib
import errno
import fnmatch
import functools
import hashlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PosixPath
from typing import Any

from lcgcn_jax.errors import InputError, install_command, one_line

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/{1,2}")  # `Path` drops one of the slashes
_BOUNDARY = "==lcgcn=="
_REQUEST_SECONDS = 60  # limit for a request, with its repetitions
_BYTES_PER_SECOND = 1e6  # the content of a request extends its limit
_NUM_REQUESTS = 8  # at the same time
_SYNC_SECONDS = 30  # between two uploads of a growing file; buckets limit the rate for each object


class StorageError(OSError, InputError):
    """A bucket cannot be used; `strerror` is the reason."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def as_path(location: str | Path) -> Path:
    """Path of a file or folder; a `BucketPath` if the location starts with `gs://`.

    Raises:
      InputError: the text is empty, the value is not a path, the URL has another scheme or no bucket, or the
        system is Windows.
    """
    if not (isinstance(location, str | os.PathLike) and str(location)):
        raise InputError(f"{location!r} is not a path; give a file or folder")
    match = _URL.match(str(location))
    if match is None:
        return Path(location)
    if match["scheme"] != "gs":
        raise InputError(f"{location}: not supported; give a folder, or gs://BUCKET/PATH")
    if os.name == "nt":
        raise InputError(f"{location}: buckets cannot be used on Windows; give a folder")
    path = BucketPath(location)
    if len(path.parts) < 2:
        raise InputError(f"{location}: has no bucket; give gs://BUCKET/PATH")
    return path


class BucketPath(PosixPath):
    """Object or folder in a bucket, with those methods of `pathlib.Path` that the package uses.

    A folder exists if it has objects. All methods raise `StorageError` if the bucket cannot be used.
    """

    def __str__(self) -> str:
        return re.sub("^gs:/(?!/)", "gs://", super().__str__())

    @property
    def key(self) -> str:
        """Name of the object in its bucket."""
        return "/".join(self.parts[2:])

    def metadata(self) -> dict[str, Any] | None:
        """Metadata of the object; None if there is none. `date` is the time of the server."""
        if not self.key:
            return None
        try:
            with errors_of(self):
                headers, content = _request("GET", "b/{}/o/{}", self.parts[1], self.key)
        except FileNotFoundError:
            return None
        return json.loads(content) | {"date": headers["Date"]}

    def objects(self) -> list[dict[str, Any]]:
        """Metadata of all objects in the folder and below it."""
        return self._list()[0]

    def exists(self, **_: Any) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        return self.metadata() is not None

    def is_dir(self, **_: Any) -> bool:
        try:
            return any(self._list(maxResults=1))
        except FileNotFoundError:  # no such bucket
            return False

    def iterdir(self) -> Generator["BucketPath", None, None]:
        objects, folders = self._list(delimiter="/")
        for name in [item["name"] for item in objects] + folders:
            if name != self._prefix:
                yield self / name.removeprefix(self._prefix).rstrip("/")

    def glob(self, pattern: str, **_: Any) -> Generator["BucketPath", None, None]:
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str, **_: Any) -> Generator["BucketPath", None, None]:
        for item in self.objects():
            path = self / item["name"].removeprefix(self._prefix)
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def stat(self, **_: Any) -> os.stat_result:
        item = self.metadata()
        if item is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return os.stat_result((0o644, 0, 0, 1, 0, 0, int(item["size"]), 0, 0, 0))

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:  # reads all of it
        if mode not in ("r", "rb"):
            raise ValueError(f"{self}: objects in a bucket cannot be opened with mode {mode!r}")
        content = io.BytesIO(self.read_bytes())
        return content if mode == "rb" else io.TextIOWrapper(content, encoding="utf-8")

    def read_range(self, start: int | None = None, end: int | None = None) -> bytes:
        """Read the bytes from `start` to `end`, which is excluded."""
        size = (self.stat().st_size if end is None else end) - (start or 0)
        with errors_of(self):
            return _filesystem().cat_file(str(self), start=start, end=end, timeout=_limit(size))

    def read_bytes(self) -> bytes:
        return self.read_range()

    def read_text(self, *_: Any, **__: Any) -> str:
        return self.read_bytes().decode("utf-8")

    def write(self, content: bytes, generation: int | str | None = None) -> str:
        """Replace the object; other processes see the old or the new content.

        Args:
          generation: replace only this generation of the object; 0: only create it.

        Returns:
          The generation of the new content.

        Raises:
          FileExistsError: the object has another generation.
        """
        digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        fields = json.dumps({"name": self.key, "md5Hash": digest})  # the server compares the sum
        types = ("application/json; charset=UTF-8", "application/octet-stream")
        first, second = (f"--{_BOUNDARY}\nContent-Type: {kind}\n\n" for kind in types)
        body = f"{first}{fields}\n{second}".encode() + content + f"\n--{_BOUNDARY}--".encode()
        condition = {} if generation is None else {"ifGenerationMatch": str(generation)}
        with errors_of(self):
            files = _filesystem()
            _, answer = files.call(
                "POST", f"{files._location}/upload/storage/v1/b/{{}}/o", self.parts[1],
                uploadType="multipart", data=_Content(body),
                headers={"Content-Type": f'multipart/related; boundary="{_BOUNDARY}"'},
                timeout=_limit(len(content)), **condition,
            )  # fmt: skip
        return json.loads(answer)["generation"]

    def write_bytes(self, data: Any) -> int:
        self.write(bytes(data))
        return len(data)

    def write_text(self, data: str, *_: Any, **__: Any) -> int:
        return self.write_bytes(data.encode())

    def unlink(self, missing_ok: bool = False, generation: str | None = None) -> None:
        condition = {} if generation is None else {"ifGenerationMatch": generation}
        try:
            with errors_of(self):
                _request("DELETE", "b/{}/o/{}", self.parts[1], self.key, **condition)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing: folders need not be created."""

    def resolve(self, strict: bool = False) -> "BucketPath":
        return self

    def absolute(self) -> "BucketPath":
        return self

    @property
    def _prefix(self) -> str:
        return f"{self.key}/" if self.key else ""

    def _list(self, **params: Any) -> tuple[list[dict[str, Any]], list[str]]:
        """Objects and folders; one page of the listing with `maxResults`."""
        objects, folders, token = [], [], {}
        while True:
            with errors_of(self):
                _, content = _request(
                    "GET", "b/{}/o", self.parts[1], prefix=self._prefix, **params, **token
                )
            page = json.loads(content)
            objects += page.get("items", ())
            folders += page.get("prefixes", ())
            if "nextPageToken" not in page or "maxResults" in params:
                return objects, folders
            token = {"pageToken": page["nextPageToken"]}


class _Content(io.BytesIO):
    """Content of a request, which can be sent again after aiohttp has closed it."""

    def close(self) -> None:
        self.seek(0)


def _limit(size: int) -> float:
    """Time limit in seconds of a request with a content of `size` bytes."""
    return _REQUEST_SECONDS + size / _BYTES_PER_SECOND


def _request(method: str, url: str, *names: str, **params: Any) -> tuple[Any, bytes]:
    """Headers and content of the answer of the JSON API."""
    return _filesystem().call(method, url, *names, timeout=_limit(0), **params)


@functools.cache
def _filesystem() -> Any:
    """The file system of gcsfs."""
    # etils prefers TensorFlow if it is installed. The other one asks for the type of each bucket.
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec.config
        from gcsfs.core import GCSFileSystem
    except ImportError as error:
        raise InputError(f"gs:// needs gcsfs; {install_command('gcs')}") from error
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs errors that it raises
    # Also for the file system of etils. Listings change, because other processes write to the bucket.
    options = fsspec.config.conf.setdefault("gcs", {})
    options.setdefault("use_listings_cache", False)
    if host := os.environ.get("STORAGE_EMULATOR_HOST"):
        options.setdefault("token", "anon")
        url = host if "://" in host else f"http://{host}"
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", url)
    return GCSFileSystem()


@contextlib.contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Convert errors of libraries that use a bucket to `StorageError`.

    Raises:
      StorageError: the bucket cannot be used.
      FileNotFoundError: there is no such object or bucket (HTTP status 404).
      FileExistsError: the object has another generation (412).
    """
    if not isinstance(path, BucketPath):
        yield
        return
    try:
        yield
    except (FileNotFoundError, FileExistsError) as error:
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EEXIST
        raise type(error)(number, os.strerror(number), str(path)) from error
    except InputError:
        raise
    except Exception as error:  # of HTTP, authentication and network libraries
        raise StorageError(errno.EIO, _reason(error), str(path)) from error


def _reason(error: Exception) -> str:
    text, kind = one_line(error)[:200], type(error)
    if "Forbidden" in text or getattr(error, "code", None) in (401, 403):
        return (
            f"no permission ({text}); run `gcloud auth application-default login`, or give the account the "
            "role Storage Object User"
        )
    if kind.__module__.startswith("google.auth"):
        return f"no credentials ({text}); run `gcloud auth application-default login`"
    if isinstance(error, TimeoutError):
        return "no answer in time; check the network"
    if kind.__module__.startswith(("aiohttp", "requests")):
        return f"cannot be reached ({text}); check the network"
    return text


def check_access(path: Path) -> None:
    """Check that the bucket of a path exists and can be listed.

    Raises:
      InputError: it cannot be used.
    """
    if isinstance(path, BucketPath):
        try:
            path._list(maxResults=1)
        except FileNotFoundError as error:
            raise InputError(
                f"{path}: no bucket {path.parts[1]!r}; create it, or check the name"
            ) from error


def file_sizes(folder: Path) -> dict[str, int]:
    """Sizes in bytes of the files in a folder and below it, by their relative path, sorted."""
    if isinstance(folder, BucketPath):
        sizes = {
            item["name"].removeprefix(f"{folder.key}/"): int(item["size"])
            for item in folder.objects()
        }
    else:
        sizes = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in folder.rglob("*")
            if path.is_file()
        }
    return dict(sorted(sizes.items()))


def partial_file(path: Path) -> Path:
    """Temporary file for `commit_file`.

    It is next to `path`, or in the temporary folder if `path` is in a bucket.
    """
    if isinstance(path, BucketPath):
        name = f"lcgcn-{secrets.token_hex(8)}.partial{path.suffix}"
        return Path(tempfile.gettempdir()) / name
    # The suffix tells some writers the format. The process id keeps files of other processes apart.
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")


def commit_file(partial: Path, path: Path) -> None:
    """Replace `path` by a complete partial file, atomically.

    Raises:
      OSError: the file cannot be written, or `path` is a folder, a device or a pipe.
    """
    if isinstance(path, BucketPath):
        path.write_bytes(partial.read_bytes())
    elif path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EEXIST, "is a device or pipe", str(path))
    else:
        partial.replace(path)


def staging_folder(folder: Path, suffix: str) -> Path:
    """Folder to write before `commit_folder`: with a suffix on a disk, the folder itself in a bucket.

    In a bucket, a folder is complete once it has a marker, the file that is written last. While it is written
    or removed, there is also an object with its name and the suffix (`clear_staging`).
    """
    return folder if isinstance(folder, BucketPath) else folder.with_name(folder.name + suffix)


def clear_staging(staged: Path, suffix: str) -> None:
    """Remove what an earlier process left of a staging folder, before it is written."""
    if isinstance(staged, BucketPath):
        _mark(staged, suffix).write_bytes(b"")
    remove_folder(staged)


def commit_folder(staged: Path, folder: Path, suffix: str) -> None:
    """Rename a complete folder on a disk, or remove the object of `clear_staging`."""
    if isinstance(folder, BucketPath):
        _mark(folder, suffix).unlink(missing_ok=True)
    else:
        staged.rename(folder)


def is_staged(folder: Path, suffix: str) -> bool:
    """Whether a process was writing or removing a folder in a bucket."""
    return isinstance(folder, BucketPath) and _mark(folder, suffix).is_file()


def remove_marks(parent: Path, suffix: str) -> None:
    """Remove the objects of `clear_staging` of the folders in a bucket folder."""
    if isinstance(parent, BucketPath):
        for path in parent.glob(f"*{suffix}"):
            path.unlink(missing_ok=True)


def _mark(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def is_committed(folder: Path, marker: str) -> bool:
    """Whether a folder is complete, see `staging_folder`."""
    return not isinstance(folder, BucketPath) or (folder / marker).is_file()


def remove_committed(folder: Path, marker: str, suffix: str) -> None:
    """Remove a complete folder.

    If the removal is interrupted, the remaining files do not count as complete.
    """
    if isinstance(folder, BucketPath):
        _mark(folder, suffix).write_bytes(b"")
        (folder / marker).unlink(missing_ok=True)
        remove_folder(folder)
        _mark(folder, suffix).unlink(missing_ok=True)
    else:
        shutil.rmtree(folder.rename(folder.with_name(f"{folder.name}.old{suffix}")))


def remove_folder(folder: Path) -> None:
    """Remove an incomplete folder, or nothing; on a disk, files that cannot be removed are left."""
    if not isinstance(folder, BucketPath):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        for _ in pool.map(lambda path: path.unlink(missing_ok=True), folder.rglob("*")):
            pass


def uncommitted_folders(folder: Path, marker: str, *patterns: str) -> list[Path]:
    """Incomplete folders in a folder.

    Args:
      patterns: of their names on a disk; in a bucket, their names are numbers.
    """
    if isinstance(folder, BucketPath):
        numbered = (path for path in folder.iterdir() if path.name.isdecimal())
        return [path for path in numbered if not is_committed(path, marker)]
    return [path for pattern in patterns for path in folder.glob(pattern)]


class GrowingFolder:
    """Folder whose files grow: `local` is the folder itself, or a copy on a disk that `sync` uploads.

    Args:
      require_held: called before an upload; raises an InputError if another process owns the folder.
      excluded: names of folders that are not uploaded.
    """

    def __init__(
        self,
        folder: Path,
        require_held: Callable[[], None] = lambda: None,
        excluded: Collection[str] = (),
    ):
        self._folder, self._require_held, self._excluded = folder, require_held, frozenset(excluded)
        self._temporary = None
        self.local = folder
        self._uploaded: dict[Path, int] = {}
        self._synced = time.monotonic()
        if isinstance(folder, BucketPath):
            self._temporary = tempfile.TemporaryDirectory(prefix="lcgcn-")
            self.local = Path(self._temporary.name)

    def sync(self, *, now: bool = True) -> None:
        """Upload changed files; without `now`, only after some time, and errors are left to the next call.

        Raises:
          StorageError: the bucket cannot be written.
          InputError: another process owns the folder; nothing is uploaded, also without `now`.
        """
        if self._temporary is None or not (now or time.monotonic() - self._synced >= _SYNC_SECONDS):
            return
        self._synced = time.monotonic()
        with contextlib.nullcontext() if now else contextlib.suppress(StorageError):
            self._require_held()
            for file in self._files():
                try:
                    content = file.read_bytes()
                except FileNotFoundError:  # another library has removed it
                    continue
                if self._uploaded.get(file) != len(content):
                    (self._folder / file.relative_to(self.local)).write_bytes(content)
                    self._uploaded[file] = len(content)

    def close(self) -> None:
        """Upload changed files, and remove the copy."""
        try:
            self.sync()
        finally:
            if self._temporary is not None:
                self._temporary.cleanup()

    def _files(self) -> Iterator[Path]:
        for folder, folders, names in os.walk(self.local):
            folders[:] = sorted(set(folders) - self._excluded)
            yield from filter(Path.is_file, (Path(folder, name) for name in sorted(names)))

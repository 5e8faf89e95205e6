"""Exclusive lock of a folder: `flock` on a disk, an object with heartbeats in a bucket."""

import abc
import contextlib
import email.utils
import json
import os
import socket
import sys
import threading
import time
import uuid
import weakref
from datetime import datetime
from pathlib import Path
from typing import Any

from lcgcn_jax.atomic_io import lock_file
from lcgcn_jax.errors import InputError
from lcgcn_jax.storage import BucketPath, StorageError

LOCK = "train.lock"
"""Name of the file that a training process locks; it names that process."""

HEARTBEAT_SECONDS = 15
"""Time between two heartbeats of the lock in a bucket."""

EXPIRY_SECONDS = 60
"""Age of the last heartbeat at which another process takes over the lock."""


class FolderLock(abc.ABC):
    """Lock of a folder, held until it is closed."""

    @abc.abstractmethod
    def require_held(self) -> None:
        """Check that no other process has taken over the lock.

        Raises:
          InputError: it has.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Unlock the folder."""


def lock_folder(folder: Path) -> FolderLock:
    """Lock a folder.

    Raises:
      InputError: another process has locked it.
      OSError: the folder cannot be written.
    """
    return _BucketLock(folder) if isinstance(folder, BucketPath) else _DiskLock(folder)


def _held_by(folder: Path, holder: str) -> InputError:
    return InputError(
        f"{folder}: {holder or 'another process'} is training in this folder; wait for it, or give another "
        "--workdir"
    )


class _DiskLock(FolderLock):
    """Lock of the operating system, which a killed process does not leave behind."""

    def __init__(self, folder: Path):
        # Child processes do not inherit the descriptor, so the lock ends with this process.
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not lock_file(descriptor):
                holder = os.read(descriptor, 1024).decode(errors="replace").strip()
                raise _held_by(folder, holder)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{_this_process()}\n".encode())
        except BaseException:
            os.close(descriptor)
            raise
        self._unlock = weakref.finalize(self, os.close, descriptor)

    def require_held(self) -> None:
        pass

    def close(self) -> None:
        self._unlock()


class _BucketLock(FolderLock):
    """Object that is created only if it does not exist, and that a thread replaces at each heartbeat.

    Every replacement names the generation that it replaces, so that of two processes that take over the lock
    of a killed one, only one succeeds. Ages are differences of times of the server.
    """

    def __init__(self, folder: BucketPath):
        self._folder = folder
        self._path = BucketPath(folder / LOCK)
        self._id = uuid.uuid4().hex
        content = {"holder": _this_process(), "id": self._id, "machine": _machine()}
        self._content = json.dumps(content | {"pid": os.getpid()}).encode()
        self._mutex = threading.Lock()
        self._closed = threading.Event()
        self._generation = self._acquire()
        options = {"args": (weakref.ref(self), self._closed), "daemon": True}
        threading.Thread(target=_send_heartbeats, name="lock heartbeat", **options).start()

    def require_held(self) -> None:
        if (holder := self._heartbeat()) is not None:
            raise InputError(
                f"{self._folder}: {holder or 'another process'} has taken over this folder, because this "
                f"process had no heartbeat for {EXPIRY_SECONDS} s; nothing more is written to it"
            )

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        # Otherwise the lock expires.
        with self._mutex, contextlib.suppress(StorageError, FileNotFoundError, FileExistsError):
            if self._read().get("id") == self._id:
                self._path.unlink(generation=self._generation)

    def _acquire(self) -> str:
        with contextlib.suppress(FileExistsError):
            return self._path.write(self._content, generation=0)
        while (held := self._path.metadata()) is not None:
            holder = self._read()
            if holder.get("id") == self._id:  # the answer of the first request was lost
                return held["generation"]
            age = _age(held)
            if age < EXPIRY_SECONDS and not _is_dead(holder):
                self._wait(held["generation"], EXPIRY_SECONDS - age, holder.get("holder", ""))
            # Replaces the expired lock, unless another process has done so.
            with contextlib.suppress(FileExistsError):
                return self._path.write(self._content, generation=held["generation"])
        return self._acquire()  # it was unlocked

    def _wait(self, generation: str, seconds: float, holder: str) -> None:
        """Wait until a lock expires, or is gone.

        Raises:
          InputError: it has a new heartbeat.
        """
        deadline = time.monotonic() + seconds
        print(
            f"lcgcn: {self._folder}: {holder or 'another process'} is training in this folder, or was "
            f"killed; waiting up to {seconds:.0f} s for its next heartbeat",
            file=sys.stderr,
        )
        while time.monotonic() < deadline:
            time.sleep(min(1.0, HEARTBEAT_SECONDS / 4))
            current = self._path.metadata()
            if current is None:
                return
            if current["generation"] != generation:
                raise _held_by(self._folder, self._read().get("holder", ""))

    def _heartbeat(self) -> str | None:
        """Replace the lock; the process that has taken it over, or None.

        Raises:
          StorageError: the bucket cannot be used.
        """
        with self._mutex:
            try:
                self._generation = self._path.write(self._content, generation=self._generation)
            except FileExistsError:
                held, content = self._path.metadata(), self._read()
                if held is None or content.get("id") != self._id:
                    return content.get("holder", "")
                self._generation = held["generation"]  # an earlier answer was lost
        return None

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def _send_heartbeats(reference: "weakref.ref[_BucketLock]", closed: threading.Event) -> None:
    """Send heartbeats until the lock is closed, deleted, or taken over."""
    while not closed.wait(HEARTBEAT_SECONDS) and (lock := reference()) is not None:
        with contextlib.suppress(StorageError):  # repeated at the next heartbeat
            if lock._heartbeat() is not None:
                return
        del lock


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _machine() -> str:
    """Identifier of the kernel and the process table of this process; empty if there is none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder of a lock was a process of this machine that has ended."""
    if not _machine() or holder.get("machine") != _machine():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError):
        pass
    return False


def _age(metadata: dict[str, Any]) -> float:
    """Time in seconds since an object was written."""
    now = email.utils.parsedate_to_datetime(metadata["date"])
    return (now - datetime.fromisoformat(metadata["updated"])).total_seconds()

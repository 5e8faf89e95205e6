"""The memory allocator for training on a CPU.

XLA allocates the temporary memory of a program for each call and frees it afterwards. The allocator of glibc
returns it to the system, which has to clear every page again for the next call. tcmalloc keeps it, so that a
training step takes about half the time (docs/research/speed.md).
"""

import ctypes
import os
import platform
import sys
from pathlib import Path

LIBRARIES = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
"""Names under which tcmalloc is installed."""

_ACCELERATORS = ("nvidia[0-9]*", "dxg", "kfd", "accel*", "vfio/[0-9]*")
_DEVICE_FOLDER = Path("/dev")


def restart_with_tcmalloc() -> None:
    """Replace this process by the same command with tcmalloc, if that is installed.

    Does nothing if `LD_PRELOAD` is set, on machines with an accelerator, and on other systems than Linux with
    glibc. Call it before anything else.
    """
    if not _is_applicable():
        return
    if name := _installed_library():
        os.environ["LD_PRELOAD"] = name
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def allocator_advice() -> str:
    """A line about tcmalloc for the start of a training on a CPU; empty if it is not needed."""
    if not _is_applicable():
        return ""
    fix = "install libtcmalloc-minimal4 (apt) or gperftools-libs (dnf)"
    if name := _installed_library():  # in Python, the process is not started again
        fix = f"start Python with LD_PRELOAD={name}"
    return f"training on a CPU takes less time with tcmalloc; {fix}"


def _installed_library() -> str | None:
    for name in LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    return None


def _is_applicable() -> bool:
    if sys.platform != "linux" or "LD_PRELOAD" in os.environ:
        return False
    is_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not any(
        any(_DEVICE_FOLDER.glob(pattern)) for pattern in _ACCELERATORS
    )
    return is_cpu and platform.libc_ver()[0] == "glibc"

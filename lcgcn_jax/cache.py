"""Cache folder for downloaded files and compiled programs."""

import functools
import logging
import os
import platform
import sys
import tempfile
from pathlib import Path

from lcgcn_jax.errors import InputError

# Lines of /proc/cpuinfo that determine the instructions of compiled programs.
_CPU_FIELDS = {
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part",
}  # fmt: skip


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/lcgcn_jax`, or `~/.cache/lcgcn_jax`; the folder may not exist yet.

    Raises:
      InputError: the variable is not set, and the user has no home folder.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "lcgcn_jax"
    except RuntimeError as error:
        raise InputError(
            "the user has no home folder; set XDG_CACHE_HOME to a folder for downloads"
        ) from error


def compilation_cache_folder() -> Path | None:
    """Folder of compiled programs: `JAX_COMPILATION_CACHE_DIR`, or `jit` in the cache folder.

    None if the variable is the URL of a bucket, or the user has no home folder.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder:
        return None if "://" in folder else Path(folder)
    try:
        return cache_folder() / "jit"
    except InputError:  # no home folder
        return None


def use_compilation_cache() -> None:
    """Let JAX keep compiled programs in the cache folder.

    HRNet compiles in about a minute, and loads from the cache in seconds. `JAX_COMPILATION_CACHE_DIR`
    selects another folder. Logs a warning if the folder cannot be written.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = compilation_cache_folder()
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        logging.getLogger("lcgcn_jax").warning(
            "lcgcn: %s: cannot be written: %s; every command compiles its programs again; set "
            "XDG_CACHE_HOME to a writable folder",
            folder,
            error.strerror,
        )
        return
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_compilation_cache_dir", str(folder))
    else:  # JAX reads the variable when it is imported, which takes a second
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)


@functools.cache
def processor() -> str:
    """Description of the processor, which differs between processors with different instructions."""
    try:
        block = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:  # another operating system: the program is valid on this machine only
        return (
            f"{platform.machine()} {platform.processor()} {platform.platform()} {platform.node()}"
        )
    fields = (line.partition(":") for line in block.splitlines())
    return "\n".join(value for name, _, value in fields if name.strip() in _CPU_FIELDS)

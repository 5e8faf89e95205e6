"""Cache folder for downloaded files and compiled programs."""

import logging
import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/lcgcn_jax`, or `~/.cache/lcgcn_jax`; the folder may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "lcgcn_jax"


def use_compilation_cache() -> None:
    """Let JAX keep compiled programs in the cache folder.

    HRNet compiles in about a minute, and loads from the cache in seconds. `JAX_COMPILATION_CACHE_DIR`
    selects another folder. Logs a warning if the folder cannot be written.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder() / "jit"
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
    jax.config.update("jax_compilation_cache_dir", str(folder))

"""Where files are kept that can be made or fetched again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/lcgcn_jax`, or `~/.cache/lcgcn_jax`; it need not be there yet."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "lcgcn_jax"

"""Facial landmark detection with a Learnable Connectivity Graph Convolutional Network.

import lcgcn_jax as lc
model = lc.load_model("w300-lcgcn-small")
faces = model.predict("photo.jpg")
"""

import ast
import importlib
from pathlib import Path
from typing import Any


def _read_public_names() -> dict[str, str]:
    """Read the public names and the modules that define them from the type stub, `__init__.pyi`."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_MODULES = _read_public_names()

__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    # Imports are lazy, so that data workers and `lcgcn --help` do not start JAX.
    if name == "__version__":
        from importlib import metadata

        return metadata.version("lcgcn-jax")
    if name not in _MODULES:
        raise AttributeError(f"module 'lcgcn_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

"""Facial landmark detection with a Learnable Connectivity Graph Convolutional Network.

import lcgcn_jax as lc
model = lc.load("runs/w300_lcgcn")
faces = model.predict("photo.jpg")
"""

from typing import TYPE_CHECKING, Any

__all__ = [
    "IBUG68",
    "WFLW98",
    "Face",
    "InputError",
    "LandmarkModel",
    "LandmarkScheme",
    "describe_devices",
    "load",
]

if TYPE_CHECKING:
    from lcgcn_jax.errors import InputError
    from lcgcn_jax.inference.model import Face, LandmarkModel, load
    from lcgcn_jax.landmarks import IBUG68, WFLW98, LandmarkScheme
    from lcgcn_jax.training.sharding import describe_devices

    __version__: str

_HOMES = {
    "Face": "inference",
    "IBUG68": "landmarks",
    "InputError": "errors",
    "LandmarkModel": "inference",
    "LandmarkScheme": "landmarks",
    "WFLW98": "landmarks",
    "describe_devices": "training.sharding",
    "load": "inference",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that data workers and `lcgcn --help` do not start JAX.
    if name == "__version__":
        from importlib import metadata

        return metadata.version("lcgcn-jax")
    if name not in _HOMES:
        raise AttributeError(f"module 'lcgcn_jax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"lcgcn_jax.{_HOMES[name]}"), name)

"""Facial landmark detection with a Learnable Connectivity Graph Convolutional Network.

import lcgcn_jax as lc
model = lc.load_model("w300-lcgcn-small")
faces = model.predict("photo.jpg")
"""

from typing import TYPE_CHECKING, Any

__all__ = [
    "IBUG68",
    "WFLW98",
    "EvaluationResult",
    "Face",
    "InputError",
    "LCGCNOutput",
    "LandmarkModel",
    "LandmarkScheme",
    "create_model",
    "describe_devices",
    "draw",
    "evaluate",
    "export_model",
    "get_scheme",
    "list_models",
    "load",
    "load_config",
    "load_model",
    "normalize_images",
    "register_heatmap_model",
    "train",
]

if TYPE_CHECKING:
    from lcgcn_jax.errors import InputError
    from lcgcn_jax.evaluation.evaluator import evaluate
    from lcgcn_jax.evaluation.report import EvaluationResult
    from lcgcn_jax.inference.face import Face
    from lcgcn_jax.inference.model import LandmarkModel, list_models, load, load_model
    from lcgcn_jax.interop.serving import export_model
    from lcgcn_jax.landmarks import IBUG68, WFLW98, LandmarkScheme, get_scheme
    from lcgcn_jax.models.lcgcn import LCGCNOutput, normalize_images
    from lcgcn_jax.models.registry import register_heatmap_model
    from lcgcn_jax.training.api import create_model, train
    from lcgcn_jax.training.config import load_config
    from lcgcn_jax.training.sharding import describe_devices
    from lcgcn_jax.visualize.overlays import draw

    __version__: str

_HOMES = {
    "EvaluationResult": "evaluation.report",
    "Face": "inference.face",
    "IBUG68": "landmarks",
    "InputError": "errors",
    "LCGCNOutput": "models.lcgcn",
    "LandmarkModel": "inference.model",
    "LandmarkScheme": "landmarks",
    "WFLW98": "landmarks",
    "create_model": "training.api",
    "describe_devices": "training.sharding",
    "draw": "visualize.overlays",
    "evaluate": "evaluation.evaluator",
    "export_model": "interop.serving",
    "get_scheme": "landmarks",
    "list_models": "inference.model",
    "load": "inference.model",
    "load_config": "training.config",
    "load_model": "inference.model",
    "normalize_images": "models.lcgcn",
    "register_heatmap_model": "models.registry",
    "train": "training.api",
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


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

"""Export of a model as one graph from face crops to landmarks, for serving without this package.

The graph maps RGB crops, uint8 `[b s s 3]` with any b, to `OUTPUTS` in crop pixels. It contains the
normalization, the decoding and the graph head; BatchNorm is folded. `describe` lists the metadata for a
client. There are two formats:

- StableHLO (`jax.export`): one file for CPU, CUDA and TPU, with the metadata in a JSON file next to it. JAX
  guarantees that later versions read it for at least six months.
- ONNX (jax2onnx), with the metadata in the file.

jax2onnx is maintained and converts the function that predicts here, so no second model is needed. The
alternatives require TensorFlow (jax2tf, tf2onnx) or a PyTorch version of the model. Its releases 0.13.1 to
0.17.1 require an older orbax-checkpoint than this package, so the extra `onnx` pins 0.13.0.
"""

import contextlib
import importlib.metadata
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from lcgcn_jax.atomic_io import require_writable, write_all, write_whole, writing
from lcgcn_jax.errors import InputError, install_command
from lcgcn_jax.geometry import CROP_SCALE
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.landmarks import convert_scheme
from lcgcn_jax.models.bn_folding import fold_batch_norm
from lcgcn_jax.models.bundles import Bundle, load_bundle
from lcgcn_jax.storage import BucketPath, as_path

INPUT = "crops"
OUTPUTS = ("landmarks", "confidence", "heatmap_landmarks")
"""Attributes of `LCGCNOutput` that are outputs of every exported graph, in this order."""

PLATFORMS = ("cpu", "cuda", "tpu")

OPSET = 20
"""ONNX operator set; supported by onnxruntime since 1.18."""


def crops_to_landmarks(
    bundle: Bundle, scheme: str | None = None
) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Build the exported function from uint8 crops `[b s s 3]` to a dictionary of `output_names`.

    Args:
      scheme: scheme of the landmarks, as in `load_model`.
    """
    names = output_names(bundle)
    _, selected = convert_scheme(bundle.scheme, scheme)
    model = fold_batch_norm(*bundle.create())

    def predict(crops):
        output = model.predict(crops).take(selected)
        # Copies, since without a graph head two outputs are the same value, which has one name in ONNX.
        return {name: jnp.copy(getattr(output, name)) for name in names}

    return predict


def output_names(bundle: Bundle) -> tuple[str, ...]:
    """Names of the outputs: `OUTPUTS`, then `visibility` if the model has a visibility head."""
    return (*OUTPUTS, "visibility") if bundle.has_visibility else OUTPUTS


def describe(bundle: Bundle, scheme: str | None = None) -> dict[str, Any]:
    """Metadata of an exported graph for a client, in plain types.

    `image_size` is s. A crop has the center of the face box, which is tight around the landmarks, and
    `crop_scale` times the longer side of the box. `scheme` is `LandmarkScheme.to_dict`.
    """
    return {
        "producer": f"lcgcn-jax {importlib.metadata.version('lcgcn-jax')}",
        "input": "RGB crops, uint8 [b, s, s, 3], s = image_size",
        "image_size": bundle.image_size,
        "crop_scale": CROP_SCALE,
        "scheme": convert_scheme(bundle.scheme, scheme)[0].to_dict(),
    }


def description_file(path: Path) -> Path:
    """Path of the metadata of a StableHLO file: `face.stablehlo.json` for `face.stablehlo`."""
    return path.with_name(path.name + ".json")


def write_stablehlo(path: Path, bundle: Bundle, scheme: str | None = None) -> None:
    """Write the graph as StableHLO, and its metadata next to it.

    `jax.export.deserialize(path.read_bytes()).call(crops)` returns a dictionary of `output_names`.

    Raises:
      OSError: a file cannot be written.
    """
    size = bundle.image_size
    crops = jax.ShapeDtypeStruct(export.symbolic_shape(f"b, {size}, {size}, 3"), jnp.uint8)
    predict = jax.jit(crops_to_landmarks(bundle, scheme))
    data = export.export(predict, platforms=PLATFORMS)(crops).serialize()
    description = json.dumps(describe(bundle, scheme), indent=1) + "\n"
    write_all({path: bytes(data), description_file(path): description.encode()})


def write_onnx(path: Path, bundle: Bundle, scheme: str | None = None) -> None:
    """Write the graph as ONNX with its metadata; the scheme is JSON.

    Raises:
      InputError: jax2onnx is not installed.
      OSError: the file cannot be written.
    """
    with _quiet("jax2onnx", "onnx_ir"):
        to_onnx, onnx_ir, onnx = _import_jax2onnx(path)
        size = bundle.image_size
        predict = crops_to_landmarks(bundle, scheme)
        converted = to_onnx(
            lambda crops: tuple(predict(crops).values()),
            [jax.ShapeDtypeStruct(("b", size, size, 3), jnp.uint8)],
            model_name="lcgcn",
            opset=OPSET,
            input_names=[INPUT],
            output_names=list(output_names(bundle)),
        )
        # Remove unused nodes, about which onnxruntime would warn. This needs the graph of the proto, since
        # the converter's graph still counts uses by removed nodes.
        model = onnx_ir.from_proto(converted)
        onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
        model.metadata_props.update(
            (name, value if isinstance(value, str) else json.dumps(value))
            for name, value in describe(bundle, scheme).items()
        )
        proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto)
    write_whole(path, lambda tmp: tmp.write_bytes(proto.SerializeToString()))


def export_model(
    model: LandmarkModel | str | Path, path: str | Path, *, overwrite: bool = False
) -> Path:
    """Export a model as one graph from uint8 crops `[b s s 3]` to landmarks.

    Args:
      model: a model, of which the landmarks of its scheme are exported, or an argument of `load_model`.
      path: file to write; its suffix selects the format: `.onnx` or `.stablehlo`.
      overwrite: replace an existing file.

    Returns:
      The path of the file.

    Raises:
      InputError: the suffix is unknown, the model cannot be read, or the file exists or cannot be written.
    """
    file = as_path(path)
    if isinstance(file, BucketPath):
        raise InputError(f"{path}: not a path on a disk; export to a file, and copy it")
    writers = {".onnx": write_onnx, ".stablehlo": write_stablehlo}
    suffix = file.suffix.lower()
    if suffix not in writers:
        raise InputError(f"{file}: unknown format; use the suffix .onnx or .stablehlo")
    outputs = [file, description_file(file)] if suffix == ".stablehlo" else [file]
    for output in outputs:
        require_writable(output, overwrite=overwrite)
    is_loaded = isinstance(model, LandmarkModel)
    bundle = model.bundle if is_loaded else load_bundle(model)
    with writing(file):
        writers[suffix](file, bundle, model.scheme.name if is_loaded else None)
    return file


def _import_jax2onnx(path: Path):
    try:
        import onnx
        import onnx_ir.passes.common
        from jax2onnx import to_onnx
    except ImportError as error:
        raise InputError(f"{path}: ONNX files need jax2onnx: {install_command('onnx')}") from error
    return to_onnx, onnx_ir, onnx


@contextlib.contextmanager
def _quiet(*libraries: str) -> Iterator[None]:
    """Silence the log messages and warnings of libraries: jax2onnx reports plugins and deprecated calls."""
    loggers = [logging.getLogger(name) for name in libraries]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            for name in libraries:
                warnings.filterwarnings("ignore", module=re.escape(name))
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

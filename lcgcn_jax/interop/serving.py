"""A model as one graph, from face crops to landmarks, to be served without this package.

The graph takes RGB crops, uint8 `[b s s 3]` for any b, and gives `OUTPUTS`, in crop pixels: normalization,
decoding and the graph head are inside, and BatchNorm is folded. What else a client needs to know is
written beside it (`describe`). Two formats:

- StableHLO, by `jax.export`: one file for CPU, CUDA and TPU. JAX promises that later versions read it for at
  least six months. The description lies in a JSON file beside it.
- ONNX, by jax2onnx, for onnxruntime and the tools around it. The description is in the file's metadata.

Why jax2onnx: it is maintained, and converts the very function that predicts here, so there is no second
model to keep. The other ways bring all of TensorFlow along (jax2tf, tf2onnx), or need the model written
once more in PyTorch. Its releases from 0.13.1 to 0.17.1 ask for an older orbax-checkpoint than this package
needs, though they convert without importing it; so the extra `onnx` has 0.13.0. Tried apart, 0.17.1 makes
graphs of these models that say the same.
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

from lcgcn_jax.atomic_io import require_writable, write_whole, writing
from lcgcn_jax.errors import InputError
from lcgcn_jax.geometry import CROP_SCALE
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.models.bn_folding import fold_batch_norm
from lcgcn_jax.models.bundles import Bundle, load_bundle

INPUT = "crops"
OUTPUTS = ("landmarks", "confidence", "heatmap_landmarks")
"""Attributes of `LCGCNOutput` that the graph gives, in this order (`output_names`)."""

PLATFORMS = ("cpu", "cuda", "tpu")

OPSET = 20
"""Version of ONNX's operators; onnxruntime reads such files since 1.18."""


def crops_to_landmarks(bundle: Bundle) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """The function that is exported: uint8 crops `[b s s 3]` to `output_names` by name."""
    names = output_names(bundle)
    model = fold_batch_norm(*bundle.create())

    def predict(crops):
        output = model.predict(crops)
        # Copies, since without a graph head two of them are one value, which ONNX has one name for.
        return {name: jnp.copy(getattr(output, name)) for name in names}

    return predict


def output_names(bundle: Bundle) -> tuple[str, ...]:
    """The outputs of a bundle's graph: `OUTPUTS`, then `visibility` where the model has the head."""
    return (*OUTPUTS, "visibility") if bundle.has_visibility else OUTPUTS


def describe(bundle: Bundle) -> dict[str, Any]:
    """What a client has to know of an exported graph, in plain types.

    `image_size` is s. `crop_scale` is the side of the region that a crop shows, over the longer side of
    the face's box, both centered on the same point; the box is tight around the landmarks. `scheme` tells
    what the landmarks mean (`LandmarkScheme.to_dict`).
    """
    return {
        "producer": f"lcgcn-jax {importlib.metadata.version('lcgcn-jax')}",
        "input": "RGB crops, uint8 [b, s, s, 3], s = image_size",
        "image_size": bundle.image_size,
        "crop_scale": CROP_SCALE,
        "scheme": bundle.scheme.to_dict(),
    }


def description_file(path: Path) -> Path:
    """Where the description of a StableHLO file is: `face.stablehlo.json` for `face.stablehlo`."""
    return path.with_name(path.name + ".json")


def write_stablehlo(path: Path, bundle: Bundle) -> None:
    """Writes `jax.export`'s form of the graph, and its description beside it.

    `jax.export.deserialize(path.read_bytes()).call(crops)` gives a dictionary of `output_names`.

    Raises:
      OSError: a file cannot be written.
    """
    size = bundle.image_size
    crops = jax.ShapeDtypeStruct(export.symbolic_shape(f"b, {size}, {size}, 3"), jnp.uint8)
    predict = jax.jit(crops_to_landmarks(bundle))
    data = export.export(predict, platforms=PLATFORMS)(crops).serialize()
    description = json.dumps(describe(bundle), indent=1) + "\n"
    write_whole(path, lambda tmp: tmp.write_bytes(data))
    write_whole(description_file(path), lambda tmp: tmp.write_text(description, encoding="utf-8"))


def write_onnx(path: Path, bundle: Bundle) -> None:
    """Writes the graph as ONNX, its description as metadata, the scheme in it as JSON.

    Raises:
      InputError: jax2onnx is not installed.
      OSError: the file cannot be written.
    """
    with _quiet("jax2onnx", "onnx_ir"):
        to_onnx, onnx_ir, onnx = _import_jax2onnx(path)
        size = bundle.image_size
        predict = crops_to_landmarks(bundle)
        converted = to_onnx(
            lambda crops: tuple(predict(crops).values()),
            [jax.ShapeDtypeStruct(("b", size, size, 3), jnp.uint8)],
            model_name="lcgcn",
            opset=OPSET,
            input_names=[INPUT],
            output_names=list(output_names(bundle)),
        )
        # Left-overs of the conversion, of which onnxruntime would warn whoever loads the file. They are
        # found in what is written: the converter's own graph still counts uses by nodes that are gone.
        model = onnx_ir.from_proto(converted)
        onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
        model.metadata_props.update(
            (name, value if isinstance(value, str) else json.dumps(value))
            for name, value in describe(bundle).items()
        )
        proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto)
    write_whole(path, lambda tmp: tmp.write_bytes(proto.SerializeToString()))


def export_model(
    model: LandmarkModel | str | Path, path: str | Path, *, overwrite: bool = False
) -> Path:
    """Exports a model as one graph from uint8 crops `[b s s 3]` to landmarks.

    Args:
      model: a model, or what `load_model` takes.
      path: file to write; its suffix chooses the format, `.onnx` or `.stablehlo`.
      overwrite: replace a file that exists.

    Returns:
      The path of the file.

    Raises:
      InputError: another suffix, the model cannot be read, or the file exists or cannot be written.
    """
    file = Path(path)
    writers = {".onnx": write_onnx, ".stablehlo": write_stablehlo}
    if file.suffix not in writers:
        raise InputError(f"{file}: unknown format; give a name that ends in .onnx or .stablehlo")
    outputs = [file, description_file(file)] if file.suffix == ".stablehlo" else [file]
    for output in outputs:
        require_writable(output, overwrite=overwrite)
    bundle = model.bundle if isinstance(model, LandmarkModel) else load_bundle(model)
    with writing(file):
        writers[file.suffix](file, bundle)
    return file


def _import_jax2onnx(path: Path):
    try:
        import onnx
        import onnx_ir.passes.common
        from jax2onnx import to_onnx
    except ImportError as error:
        raise InputError(
            f"{path}: ONNX files need jax2onnx: pip install 'lcgcn-jax[onnx]'"
        ) from error
    return to_onnx, onnx_ir, onnx


@contextlib.contextmanager
def _quiet(*libraries: str) -> Iterator[None]:
    """Keeps libraries from logging and warning: jax2onnx tells of plugins and old calls of its own."""
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

"""Export of a bundle to one file: ONNX, StableHLO, or a state dict for PyTorch."""

from pathlib import Path

from lcgcn_jax.atomic_io import require_writable, writing
from lcgcn_jax.errors import InputError
from lcgcn_jax.interop.serving import description_file, output_names, write_onnx, write_stablehlo
from lcgcn_jax.interop.torch_files import require_format, write_state_dict
from lcgcn_jax.interop.torch_weights import export_weights
from lcgcn_jax.models.bundles import load_bundle

FORMATS = ("stablehlo", "onnx", "torch")


def export_file(
    path: Path,
    model: str | Path,
    format: str,
    *,
    heatmap_only: bool = False,
    overwrite: bool = False,
) -> str:
    """Write a model to a file.

    Args:
      path: file to write.
      model: as in `load_model`.
      format: one of `FORMATS`.
      heatmap_only: leave out the graph head.
      overwrite: replace an existing file.

    Returns:
      A description of the content.

    Raises:
      InputError: the suffix does not fit the format, the model cannot be read or has no such export, or the
        file exists or cannot be written.
    """
    if format == "torch":
        require_format(path)
    elif path.suffix.lower() != f".{format}":
        raise InputError(f"{path}: the file name has to end in .{format}")
    require_writable(path, overwrite=overwrite)
    if format == "stablehlo":
        require_writable(description_file(path), overwrite=overwrite)
    bundle = load_bundle(model)
    if heatmap_only:
        bundle = bundle.without_graph()
    has_graph = bundle.model["graph"] is not None
    with writing(path):
        if format == "torch":
            state = export_weights(bundle, graph=has_graph, source=model)
            write_state_dict(path, state)
            content = f"{len(state)} arrays"
        else:
            (write_onnx if format == "onnx" else write_stablehlo)(path, bundle)
            size = bundle.image_size
            content = f"crops [b, {size}, {size}, 3] to {', '.join(output_names(bundle))}"
    return f"{content}, {'with' if has_graph else 'without'} a graph head"

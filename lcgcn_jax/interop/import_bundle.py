"""Import of PyTorch weight files as bundles with a model card."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from lcgcn_jax.atomic_io import writing
from lcgcn_jax.errors import InputError, count_of, printable, require_absent
from lcgcn_jax.interop.torch_files import read_state_dict, read_torch_file
from lcgcn_jax.interop.torch_weights import TORCH_ARCHS, TorchModel, import_weights
from lcgcn_jax.landmarks import get_scheme
from lcgcn_jax.models.bundles import Bundle, save_bundle


def import_bundle(
    file: Path,
    arch: str,
    scheme: str,
    graph_file: Path | None,
    out: Path,
    *,
    overwrite: bool = False,
) -> list[str]:
    """Import PyTorch weights, those of the graph head from a separate file if it is given, as a bundle.

    Args:
      arch: HRNet architecture, one of `TORCH_ARCHS`.
      scheme: name or file of the landmark scheme.
      graph_file: separate file of the graph head.

    Returns:
      Messages about what was initialized or left out.

    Raises:
      InputError: a file or the scheme cannot be used, or the folder exists or cannot be written.
    """
    require_absent(out, overwrite=overwrite)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder; choose another --out")
    landmark_scheme = get_scheme(scheme)
    torch_file = read_torch_file(file)
    bundle, imported = import_weights(
        torch_file.state,
        TORCH_ARCHS[arch],
        landmark_scheme,
        source=file,
        graph_state=None if graph_file is None else read_state_dict(graph_file),
        graph_source=graph_file,
    )
    description = _describe(bundle, imported, arch)
    messages = [description]
    if torch_file.others:
        others = ", ".join(torch_file.others)
        messages.append(f"read {torch_file.key} of {file}; not used: {others}")
    files = [file] if graph_file is None else [file, graph_file]
    with writing(out):
        save_bundle(out, bundle, _model_card(imported, description, files))
    return messages


def _model_card(imported: TorchModel, description: str, files: Sequence[Path]) -> str:
    sources = "\n".join(
        f"- `{printable(path.name)}`, sha256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`"
        for path in files
    )
    network = (
        "The original code upsampled with nearest neighbors between the branches; this network "
        "upsamples bilinearly, as codes for faces that start from such weights do."
        if imported.initialized
        else "The network is equivalent to the original one."
    )
    offset = imported.model["heatmap_offset"]
    pixels = (
        "cover the crop evenly"
        if offset is None
        else f"lie as in the original code: the center of the first one is at pixel {offset:g} of the crop"
    )
    return (
        f"# {printable(files[0].stem)}\n\nImported from PyTorch: {description}\n\n"
        f"Sources:\n{sources}\n\n"
        f"{network} Heatmap pixels {pixels}. Face crops are those of this package, 1.25 times the box. "
        "Evaluate the model before relying on it (`lcgcn eval`).\n"
    )


def _describe(bundle: Bundle, imported: TorchModel, arch: str) -> str:
    graph = "no graph head" if bundle.model["graph"] is None else "the LCGCN authors' graph head"
    parts = [f"{arch} for {bundle.scheme.name}, in the layout of {imported.code}, {graph}."]
    if imported.initialized:
        count = count_of(len(imported.initialized), "weight")
        parts.append(
            f"THE HEAD IS NOT TRAINED: the file has only the backbone, and {count} of the head got random "
            "values. Train it before use."
        )
    if imported.unused:
        names = sorted({key.split(".")[0] for key in imported.unused})
        parts.append(
            f"Left out: {count_of(len(imported.unused), 'weight')} of the classifier ({', '.join(names)})."
        )
    return " ".join(parts)

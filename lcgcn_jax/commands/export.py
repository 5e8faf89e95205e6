"""`lcgcn export`: a model in the format of other tools."""

import argparse
from pathlib import Path

from lcgcn_jax.atomic_io import require_writable, writing
from lcgcn_jax.errors import InputError
from lcgcn_jax.interop.serving import description_file, output_names, write_onnx, write_stablehlo
from lcgcn_jax.interop.torch_files import require_format, write_state_dict
from lcgcn_jax.interop.torch_weights import export_weights
from lcgcn_jax.models.bundles import Bundle, load_bundle

FORMATS = ("stablehlo", "onnx", "torch")


def add_parser(subparsers) -> None:
    """Adds `export` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "export",
        help="write a model in the format of other tools",
        description="Writes a model in the format of other tools. stablehlo, onnx: one graph from face "
        "crops (RGB bytes, any number of them) to landmarks, confidence and heatmap-stage landmarks; the "
        "documentation (how-to/serving) shows how to serve them. torch: a state dict with the keys of "
        "HRNet-Facial-Landmark-Detection, and, for a graph head as the LCGCN authors' code has it, theirs.",
        epilog="example: lcgcn export --model runs/w300_small --format onnx --out face.onnx",
    )
    parser.add_argument("--model", required=True, help="bundle or training workdir")
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file: .stablehlo; .onnx; for torch .safetensors, .pth or .pt",
    )
    parser.add_argument(
        "--heatmap-only", action="store_true", help="leave out the graph head, if there is one"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace that file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the file and says what is in it.

    Raises:
      InputError: the model cannot be read or has no such format, or `--out` is there already or cannot
        be written.
    """
    if args.format == "torch":
        require_format(args.out)
    elif args.out.suffix != f".{args.format}":
        raise InputError(f"{args.out}: the name of such a file ends in .{args.format}")
    outputs = [args.out]
    if args.format == "stablehlo":
        outputs.append(description_file(args.out))
    for path in outputs:  # before the minutes that a large model takes
        require_writable(path, overwrite=args.overwrite)
    bundle = load_bundle(args.model)
    if args.heatmap_only:
        bundle = bundle.without_graph()
    with writing(args.out):
        said = _write(args, bundle)
    graph = "without" if bundle.model["graph"] is None else "with"
    print(f"{args.out}: {said}, {graph} a graph head")
    return 0


def _write(args: argparse.Namespace, bundle: Bundle) -> str:
    """Writes the file; what to say of it."""
    if args.format == "torch":
        graph = bundle.model["graph"] is not None
        state = export_weights(bundle, graph=graph, source=args.model)
        write_state_dict(args.out, state)
        return f"{len(state)} arrays"
    write = write_onnx if args.format == "onnx" else write_stablehlo
    write(args.out, bundle)
    size = bundle.image_size
    return f"crops [b, {size}, {size}, 3] to {', '.join(output_names(bundle))}"

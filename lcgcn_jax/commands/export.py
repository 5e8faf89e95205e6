"""Export a model to ONNX, StableHLO or PyTorch.

  onnx, stablehlo  one graph from face crops (RGB uint8, any batch size) to
                   landmarks, confidence and landmarks of the heatmap stage
  torch            state dict with the keys of HRNet-Facial-Landmark-Detection,
                   and those of the LCGCN authors for their graph head

Example: lcgcn export --model runs/w300_small --format onnx --out face.onnx
"""

import argparse

from lcgcn_jax.atomic_io import require_writable, writing
from lcgcn_jax.commands.options import add, add_flag
from lcgcn_jax.errors import InputError
from lcgcn_jax.interop.serving import description_file, output_names, write_onnx, write_stablehlo
from lcgcn_jax.interop.torch_files import require_format, write_state_dict
from lcgcn_jax.interop.torch_weights import export_weights
from lcgcn_jax.models.bundles import load_bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model")
    formats = ("stablehlo", "onnx", "torch")
    add(parser, "--format", choices=formats, required=True, help="output format")
    add(parser, "--out", help="output file; for torch .safetensors, .pth or .pt")
    add_flag(parser, "--heatmap-only", "leave out the graph head")
    add(parser, "--overwrite")


def run(args: argparse.Namespace) -> int:
    if args.format == "torch":
        require_format(args.out)
    elif args.out.suffix != f".{args.format}":
        raise InputError(f"{args.out}: the file name has to end in .{args.format}")
    require_writable(args.out, overwrite=args.overwrite)
    if args.format == "stablehlo":
        require_writable(description_file(args.out), overwrite=args.overwrite)
    bundle = load_bundle(args.model)
    if args.heatmap_only:
        bundle = bundle.without_graph()
    has_graph = bundle.model["graph"] is not None
    with writing(args.out):
        if args.format == "torch":
            state = export_weights(bundle, graph=has_graph, source=args.model)
            write_state_dict(args.out, state)
            content = f"{len(state)} arrays"
        else:
            (write_onnx if args.format == "onnx" else write_stablehlo)(args.out, bundle)
            size = bundle.image_size
            content = f"crops [b, {size}, {size}, 3] to {', '.join(output_names(bundle))}"
    print(f"{args.out}: {content}, {'with' if has_graph else 'without'} a graph head")
    return 0

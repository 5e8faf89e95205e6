"""Export a model to ONNX, StableHLO or PyTorch, or for the Hugging Face Hub.

  onnx, stablehlo  one graph from face crops (RGB uint8, any batch size) to
                   landmarks, confidence and landmarks of the heatmap stage
  torch            state dict with the keys of HRNet-Facial-Landmark-Detection,
                   and those of the LCGCN authors for their graph head
  hub              folder with the weights and a model card, which
                   'hf upload OWNER/NAME DIR' uploads

Example: lcgcn export --model runs/w300_small --format onnx --out face.onnx
"""

import argparse
from pathlib import Path

from lcgcn_jax.atomic_io import require_writable, writing
from lcgcn_jax.commands.options import add, add_flag
from lcgcn_jax.errors import InputError
from lcgcn_jax.interop.hub import write_hub_folder
from lcgcn_jax.interop.serving import description_file, output_names, write_onnx, write_stablehlo
from lcgcn_jax.interop.torch_files import require_format, write_state_dict
from lcgcn_jax.interop.torch_weights import export_weights
from lcgcn_jax.models.bundles import load_bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model")
    formats = ("stablehlo", "onnx", "torch", "hub")
    add(parser, "--format", choices=formats, required=True, help="output format")
    add(
        parser, "--out", help="output file (for torch .safetensors, .pth or .pt), or folder for hub"
    )
    add_flag(parser, "--heatmap-only", "leave out the graph head")
    text = "hub: license of the weights, such as apache-2.0 (default: that in the model card)"
    add(parser, "--license", metavar="ID", help=text)
    text = "hub: result of 'lcgcn eval --json' for the metrics of the model card; can be repeated"
    add(parser, "--evaluation", type=Path, metavar="FILE", action="append", help=text)
    add(parser, "--overwrite")


def run(args: argparse.Namespace) -> int:
    if args.format == "hub":
        return _write_hub(args)
    if args.license or args.evaluation:
        raise InputError("--license and --evaluation apply to --format hub")
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


def _write_hub(args: argparse.Namespace) -> int:
    metadata = write_hub_folder(
        args.out,
        args.model,
        heatmap_only=args.heatmap_only,
        license=args.license,
        evaluations=args.evaluation or (),
        overwrite=args.overwrite,
    )
    print(f"{args.out}: license {metadata['license']}; upload: hf upload OWNER/NAME {args.out}")
    return 0

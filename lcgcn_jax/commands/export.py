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

from lcgcn_jax.arguments import local_path
from lcgcn_jax.commands.options import add, add_flag
from lcgcn_jax.errors import InputError
from lcgcn_jax.interop.export import FORMATS, export_file
from lcgcn_jax.interop.hub import write_hub_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model")
    add(parser, "--format", choices=(*FORMATS, "hub"), required=True, help="output format")
    text = "output file (for torch .safetensors, .pth or .pt), or folder for hub"
    add(parser, "--out", help=text)
    add_flag(parser, "--heatmap-only", "leave out the graph head")
    text = "hub: license of the weights, such as apache-2.0 (default: that in the model card)"
    add(parser, "--license", metavar="ID", help=text)
    text = "hub: result of 'lcgcn eval --json' for the metrics of the model card; can be repeated"
    add(parser, "--evaluation", type=local_path, metavar="FILE", action="append", help=text)
    add(parser, "--overwrite")


def run(args: argparse.Namespace) -> int:
    settings = {"heatmap_only": args.heatmap_only, "overwrite": args.overwrite}
    if args.format == "hub":
        evaluations = args.evaluation or ()
        metadata = write_hub_folder(
            args.out, args.model, license=args.license, evaluations=evaluations, **settings
        )
        print(f"{args.out}: license {metadata['license']}; upload: hf upload OWNER/NAME {args.out}")
        return 0
    if args.license or args.evaluation:
        raise InputError("--license and --evaluation apply to --format hub")
    print(f"{args.out}: {export_file(args.out, args.model, args.format, **settings)}")
    return 0

"""Import PyTorch weights as a bundle.

Reads weights of HRNet-Facial-Landmark-Detection, mmpose's HRNetV2 for faces
(0.x and 1.x), HRNet for ImageNet (backbone only; from its authors or timm), and
the LCGCN authors (graph head and HRNet, in one file or two). Code in a file is
never executed.

Example:
  lcgcn import-torch --arch hrnet_w18 --scheme wflw98 HR18-WFLW.pth --out hr18
"""

import argparse

from lcgcn_jax.arguments import local_path
from lcgcn_jax.commands.options import add
from lcgcn_jax.errors import printable
from lcgcn_jax.interop.import_bundle import import_bundle
from lcgcn_jax.interop.torch_weights import TORCH_ARCHS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=local_path, help=".safetensors, .pth, .pt or .pth.tar")
    add(parser, "--arch", choices=TORCH_ARCHS, required=True, help="HRNet architecture")
    add(parser, "--scheme", required=True, help="landmark scheme: wflw98, ibug68 or a file")
    add(parser, "--graph", type=local_path, help="separate file of the graph head")
    add(parser, "--out", help="folder of the bundle")
    add(parser, "--overwrite")


def run(args: argparse.Namespace) -> int:
    inputs = (args.file, args.arch, args.scheme, args.graph)
    for message in import_bundle(*inputs, args.out, overwrite=args.overwrite):
        print(f"{args.out}: {printable(message)}")
    return 0

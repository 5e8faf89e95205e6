"""`lcgcn export`: a model in the format of other tools."""

import argparse
from pathlib import Path

from lcgcn_jax.errors import InputError
from lcgcn_jax.interop.torch_files import require_format, write_state_dict
from lcgcn_jax.interop.torch_weights import export_weights
from lcgcn_jax.models.bundles import load_bundle


def add_parser(subparsers) -> None:
    """Adds `export` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "export",
        help="write a model in the format of other tools",
        description="Writes a model in the format of other tools. torch: a state dict with the keys of "
        "HRNet-Facial-Landmark-Detection, and, for a graph head as the LCGCN authors' code has it, theirs.",
        epilog="example: lcgcn export --model models/hr18_wflw --format torch --out hr18.safetensors",
    )
    parser.add_argument("--model", required=True, help="bundle or training workdir")
    parser.add_argument("--format", choices=("torch",), required=True, help="what to write")
    parser.add_argument("--out", type=Path, required=True, help="file: .safetensors, .pth or .pt")
    parser.add_argument(
        "--heatmap_only", action="store_true", help="leave out the graph head, if there is one"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace that file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the file and says what is in it.

    Raises:
      InputError: the model cannot be read or has no such format, or `--out` is there already.
    """
    require_format(args.out)
    if args.out.exists() and not args.overwrite:
        raise InputError(f"{args.out}: already exists; choose another file or give --overwrite")
    bundle = load_bundle(args.model)
    graph = bundle.model["graph"] is not None and not args.heatmap_only
    state = export_weights(bundle, graph=graph, source=args.model)
    write_state_dict(args.out, state)
    print(f"{args.out}: {len(state)} arrays, {'with' if graph else 'without'} a graph head")
    return 0

"""`lcgcn import-torch`: weights of the public PyTorch code as a bundle."""

import argparse
import hashlib
from pathlib import Path

from lcgcn_jax.atomic_io import writing
from lcgcn_jax.errors import InputError, printable
from lcgcn_jax.interop.torch_files import read_state_dict, read_torch_file
from lcgcn_jax.interop.torch_weights import TORCH_ARCHS, Imported, import_weights
from lcgcn_jax.landmarks import get_scheme
from lcgcn_jax.models.bundles import save_bundle


def add_parser(subparsers) -> None:
    """Adds `import-torch` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "import-torch",
        help="make a bundle of PyTorch weights",
        description="Makes a bundle of PyTorch weights: HRNet-Facial-Landmark-Detection, mmpose's "
        "HRNetV2 for faces (0.x and 1.x), HRNet for ImageNet (the backbone alone; its authors' or timm's), "
        "or LCGCN's authors' (graph head and HRNet, in one file or two). No code in a file is run.",
        epilog="example: lcgcn import-torch --arch hrnet_w18 --scheme wflw98 HR18-WFLW.pth "
        "--out models/hr18_wflw",
    )
    parser.add_argument("file", type=Path, help=".safetensors, .pth, .pt or .pth.tar")
    parser.add_argument("--arch", choices=TORCH_ARCHS, required=True, help="which HRNet it is")
    parser.add_argument(
        "--scheme", required=True, help="what its landmarks mean: wflw98, ibug68 or a file"
    )
    parser.add_argument("--graph", type=Path, help="file of the graph head, where it has its own")
    parser.add_argument("--out", type=Path, required=True, help="folder for the bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reads, maps and writes; says what was made anew and what was left out.

    Raises:
      InputError: the file cannot be used, or `--out` is there already.
    """
    if args.out.exists() and not args.overwrite:
        raise InputError(f"{args.out}: already exists; choose another folder or give --overwrite")
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"{args.out}: not a folder")
    scheme = get_scheme(args.scheme)
    found = read_torch_file(args.file)
    imported = import_weights(
        found.state,
        TORCH_ARCHS[args.arch],
        scheme,
        source=args.file,
        graph_state=None if args.graph is None else read_state_dict(args.graph),
        graph_source=args.graph,
    )
    files = [args.file] if args.graph is None else [args.file, args.graph]
    with writing(args.out):
        save_bundle(args.out, imported.bundle, model_card(imported, args.arch, files))
    print(f"{args.out}: {_summary(imported, args.arch)}")
    if found.others:
        print(
            f"{args.file}: read {printable(found.key)}; not used: {printable(', '.join(found.others))}"
        )
    return 0


def model_card(imported: Imported, arch: str, files: list[Path]) -> str:
    """The card of an imported bundle: what it is and of which files, by their SHA-256."""
    sources = "\n".join(
        f"- `{printable(path.name)}`, sha256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`"
        for path in files
    )
    network = (
        "Its code upsampled by nearest neighbors between the branches; here, as in the codes for faces "
        "that start from such weights, it is bilinear."
        if imported.fresh
        else "The network computes what it computed there."
    )
    origin = imported.bundle.model["heatmap_offset"]
    cells = (
        "cover the crop evenly"
        if origin is None
        else f"lie where that code places them: the first one's middle at pixel {origin:g} of the crop"
    )
    return (
        f"# {printable(files[0].stem)}\n\nImported from PyTorch: {_summary(imported, arch)}\n\n"
        f"Sources:\n{sources}\n\n"
        f"{network} Heatmap cells {cells}. What surrounds it is this package's: crops of 1.25 times the box. "
        "Measure it before relying on it (`lcgcn eval`).\n"
    )


def _summary(imported: Imported, arch: str) -> str:
    bundle = imported.bundle
    graph = "no graph head" if bundle.model["graph"] is None else "the LCGCN authors' graph head"
    parts = [f"{arch} for {bundle.scheme.name}, laid out as {imported.code} has it, {graph}."]
    if imported.fresh:
        parts.append(
            f"THE HEAD IS FRESH: the file has the backbone alone, and {len(imported.fresh)} weights of "
            "the head were made anew. Train it before use."
        )
    if imported.unused:
        names = sorted({key.split(".")[0] for key in imported.unused})
        parts.append(
            f"Left out: {len(imported.unused)} weights of the classifier ({', '.join(names)})."
        )
    return " ".join(parts)

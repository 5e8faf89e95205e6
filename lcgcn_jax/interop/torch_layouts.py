"""Key layouts and heatmap offsets of public PyTorch code.

The tables map the modules of this package to theirs, in this direction only: every weight of a model has a
key, and keys that remain in a file are unknown.

- HRNet-Facial-Landmark-Detection (HR18-WFLW, HR18-300W): `conv1` to `stage4`, then `head.0`, `.1`, `.3`.
- mmpose, HRNetV2 for faces: the same under `backbone.`, with the head in `keypoint_head.final_layer` (0.x),
  or in `head.conv_layers` and `head.final_layer` (1.x). Its face configs upsample bilinearly.
- ImageNet classification (the HRNet authors', timm's): the same backbone with an unused classifier. It was
  trained with nearest-neighbor upsampling between the branches. Both face codes start from it with bilinear
  upsampling, as does this package.
- LCGCN (its authors): `class_embedding`, `edges`, `visual_feature_embedding` and `gcn_layers` under
  `gcn_model.`, and an HRNet with the keys of HRNet-Facial-Landmark-Detection under `hm_model.`.

The position of heatmap pixel c in the image depends on the code that drew the training targets. An imported
model stores it as its `heatmap_offset` o: heatmap pixel c is at input pixel 4 c + o, where the center of the
first pixel is 0. For models of this package, o is 1.5.

- mmpose, o = 0: `MSRAHeatmap` (0.x: `TopDownGenerateTarget`) draws x at heatmap pixel x / 4, rounded unless
  `unbiased`, and decodes to 4 c. Its configs for WFLW and 300W use no other codec. A model trained with UDP,
  whose heatmap pixels are 255 / 63 input pixels apart, has the same keys and is read in the same way.
- HRNet-Facial-Landmark-Detection, o = 2.5: `transform_pixel` truncates to a heatmap pixel, whose center is at
  4 c + 2 in its affine. `crop` cuts at integer pixels (truncated, plus 1) and resizes around pixel centers,
  which shifts the image by half a crop pixel on average. This holds for crops less than 512 pixels wide;
  larger images are downsampled first, and o is about 2.
- LCGCN (its authors), o = 2: `draw_umich_gaussian` truncates x / 4. Their resizing of the face adds up to
  half a pixel, depending on its scale. Their graph reads c / 64 and predicts x / 256
  (`GraphConfig.positions`). Only files with a graph head are treated as theirs.

Coordinates in 300W's files count from 1. mmpose's annotations keep that, and the lists of
HRNet-Facial-Landmark-Detection may: landmarks of such a model are one image pixel too far right and down. The
import does not correct this.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float

from lcgcn_jax.interop.torch_files import StateDict
from lcgcn_jax.models.hrnet import HRNet

AUTHORS_OFFSET = 2.0
"""`heatmap_offset` of the LCGCN authors' heatmaps."""

_HEATMAP, _GRAPH = "heatmap_model.", "graph."


def _backbone_modules() -> dict[str, str]:
    """Patterns of our modules, and the names of theirs; the first pattern that matches counts."""
    table = {}
    for part, position in (("conv", 0), ("bn", 1)):  # position in their sequence of both
        table |= {
            rf"stem(\d)\.{part}": rf"{part}\1",
            rf"stage1\.(\d+)\.conv(\d)\.{part}": rf"layer1.\1.{part}\2",
            rf"stage1\.(\d+)\.shortcut\.{part}": rf"layer1.\1.downsample.{position}",
        }
        for i in range(3):  # their second stage is the first of our list
            ours, theirs = rf"stages\.{i}\.(\d+)", rf"stage{i + 2}.\1"
            convs = rf"transitions\.{i}\.convs"
            table |= {
                # Their new branch is a sequence of one convolution.
                rf"{convs}\.{i + 1}\.{part}": rf"transition{i + 1}.{i + 1}.0.{position}",
                rf"{convs}\.(\d)\.{part}": rf"transition{i + 1}.\1.{position}",
                rf"{ours}\.branches\.(\d)\.(\d+)\.conv(\d)\.{part}": (
                    rf"{theirs}.branches.\2.\3.{part}\4"
                ),
            }
            for target, source in itertools.permutations(range(4), 2):
                # From a finer branch a sequence of convolutions, from a coarser one a single convolution.
                step, index = (r"(\d)", r"\2.") if source < target else ("0", "")
                table[rf"{ours}\.fuse\.{target}\.{source}\.{step}\.{part}"] = (
                    rf"{theirs}.fuse_layers.{target}.{source}.{index}{position}"
                )
    return table


_BACKBONE_MODULES = _backbone_modules()

_GRAPH_MODULES = {
    r"embedding\.linears\.3": r"visual_feature_embedding.out.linear",
    r"embedding\.linears\.(\d)": r"visual_feature_embedding.hidden_layers.\1.linear",
    r"embedding\.norms\.(\d)": r"visual_feature_embedding.hidden_layers.\1.bn",
    r"connectivity\.class_mlp\.linears\.0": r"class_embedding.hidden_layers.0.linear",
    r"connectivity\.class_mlp\.norms\.0": r"class_embedding.hidden_layers.0.bn",
    r"connectivity\.class_mlp\.linears\.1": r"class_embedding.out.linear",
    r"connectivity\.edge_mlp\.linears\.0": r"edges.linear.linear",
    r"connectivity\.edge_mlp\.norms\.0": r"edges.linear.bn",
    r"connectivity\.edge_mlp\.linears\.1": r"edges.out.linear",
    r"connectivity\.edge_mlp\.norms\.1": r"edges.out.bn",
}

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Key layout of an HRNet in a public code.

    Attributes:
      code: name of the code.
      backbone: prefix of the keys of the backbone.
      head: modules of the head: 1x1 convolution, its norm, output convolution; None for a backbone only.
      heatmap_offset: position of heatmap pixel (0, 0) in input pixels; None without a head.
      unused: prefixes of keys that are ignored.
    """

    code: str
    backbone: str
    head: tuple[str, str, str] | None
    heatmap_offset: float | None
    unused: tuple[str, ...] = ()


HRNET_FACE = Layout("HRNet-Facial-Landmark-Detection", "", ("head.0", "head.1", "head.3"), 2.5)
MMPOSE_0 = Layout(
    "mmpose 0.x",
    "backbone.",
    ("keypoint_head.final_layer.0", "keypoint_head.final_layer.1", "keypoint_head.final_layer.3"),
    0.0,
)
MMPOSE_1 = Layout(
    "mmpose 1.x", "backbone.", ("head.conv_layers.0", "head.conv_layers.1", "head.final_layer"), 0.0
)
IMAGENET = Layout(
    "HRNet for ImageNet",
    "",
    None,
    None,
    unused=("incre_modules.", "downsamp_modules.", "final_layer.", "classifier."),
)
FACE_LAYOUTS = (HRNET_FACE, MMPOSE_0, MMPOSE_1)


def heatmap_keys(names: Iterable[str], layout: Layout) -> dict[str, str]:
    """Map the names of the HRNet's weights to their keys; without the head if the layout has none."""
    modules = {pattern: layout.backbone + theirs for pattern, theirs in _BACKBONE_MODULES.items()}
    skipped = ()
    if layout.head is None:
        skipped = tuple(_HEATMAP + module + "." for module in HRNet.head_modules)
    else:
        modules |= dict(zip(HRNet.head_modules, layout.head, strict=True))
    return {
        name: _torch_key(name.removeprefix(_HEATMAP), modules)
        for name in names
        if name.startswith(_HEATMAP) and not name.startswith(skipped)
    }


def graph_keys(names: Iterable[str]) -> dict[str, str]:
    """Map the names of the graph head's weights to their keys, with `w1` in two parts (`split_w1`)."""
    parts = {"node": "w2", "neighbor": "w1 (nodes)", "shape": "w1 (offsets)"}
    keys = {}
    for name in names:
        block = re.fullmatch(r"graph\.blocks\.(\d+)\.(\w+)", name)
        if block and block[2] in parts:
            keys[name] = f"gcn_layers.{block[1]}.{parts[block[2]]}"
        elif name.startswith(_GRAPH) and not block:
            keys[name] = _torch_key(name.removeprefix(_GRAPH), _GRAPH_MODULES)
    return keys


def graph_biases(names: Iterable[str]) -> list[str]:
    """Select the biases of the graph blocks, which the authors' blocks do not have."""
    return [name for name in names if re.fullmatch(r"graph\.blocks\.\d+\.bias", name)]


def _torch_key(name: str, modules: Mapping[str, str]) -> str:
    module, _, leaf = name.rpartition(".")
    for pattern, theirs in modules.items():
        match = re.fullmatch(pattern, module)
        if match:
            return f"{match.expand(theirs)}.{_LEAVES[leaf]}"
    raise AssertionError(f"{name}: missing in the tables of torch_layouts")


def to_torch(weight: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Transpose kernels HWIO to OIHW, and matrices `[in out]` to `[out in]`."""
    return np.asarray(weight.transpose((3, 2, 0, 1) if weight.ndim == 4 else None), order="C")


def from_torch(weight: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Transpose kernels OIHW to HWIO, and matrices `[out in]` to `[in out]`."""
    return np.asarray(weight.transpose((2, 3, 1, 0) if weight.ndim == 4 else None), order="C")


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a weight of ours in PyTorch's layout."""
    return tuple(shape[i] for i in (3, 2, 0, 1)) if len(shape) == 4 else tuple(shape[::-1])


def split_w1(graph: Mapping[str, np.ndarray]) -> StateDict:
    """Split each `w1 [out (nodes + 2)]` into its columns for the neighbor and for the offset."""
    split = {}
    for key, value in graph.items():
        w2 = graph.get(key.removesuffix("w1") + "w2") if key.endswith(".w1") else None
        if w2 is None or w2.ndim != 2 or value.ndim != 2:
            split[key] = value
            continue
        nodes = w2.shape[1]
        split[f"{key} (nodes)"] = value[:, :nodes]
        if value.shape[1] > nodes:
            split[f"{key} (offsets)"] = value[:, nodes:]
    return split


def join_w1(split: Mapping[str, np.ndarray]) -> StateDict:
    """Join what `split_w1` splits."""
    joined = {k: v for k, v in split.items() if not k.endswith((" (nodes)", " (offsets)"))}
    for key, nodes in split.items():
        if key.endswith(" (nodes)"):
            w1 = key.removesuffix(" (nodes)")
            offsets = split.get(f"{w1} (offsets)", nodes[:, :0])
            joined[w1] = np.concatenate([nodes, offsets], axis=1)
    return joined

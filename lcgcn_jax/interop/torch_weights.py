"""Weights in the key layouts of the public PyTorch code, to bundles and back.

The tables below say what a module of ours is called there. They are read in one direction alone, from
our names to theirs: so every weight of a model has its key, and what a file holds beside those is left
over. Nothing missing, nothing left over and every shape right, or the file is refused.

Who used what:
- HRNet-Facial-Landmark-Detection (HR18-WFLW, HR18-300W): `conv1` .. `stage4`, then `head.0`, `.1`, `.3`.
- mmpose, HRNetV2 for faces: the same under `backbone.`, with the head in `keypoint_head.final_layer`
  (0.x) or in `head.conv_layers` and `head.final_layer` (1.x). Its face configs upsample bilinearly, as
  HRNet-Facial-Landmark-Detection does.
- ImageNet classification (the HRNet authors', timm's): the same backbone, and a classifier that is of no
  use here. It was trained with nearest-neighbor upsampling between the branches; both face codes start
  from it and go on with bilinear upsampling, and so is done here.
- LCGCN (its authors): `class_embedding`, `edges`, `visual_feature_embedding` and `gcn_layers` under
  `gcn_model.`, an HRNet with HRNet-Facial-Landmark-Detection's keys under `hm_model.`.

What is equal is what the networks compute. Where a heatmap's cell c lies in the picture is the choice of
the code that drew the targets. An imported model keeps it as its `heatmap_offset` o: cell c is at input
pixel 4 c + o, the middle of the first pixel being 0. For models of this package o is 1.5.
- mmpose, o = 0: `MSRAHeatmap` (0.x: `TopDownGenerateTarget`) draws a point x into cell x / 4, rounded to
  the nearest one or, where `unbiased`, not rounded, and decodes to 4 c. Its configs for WFLW and 300W use
  no other codec. A model trained with UDP, whose cells are 255 / 63 pixels apart, has the same keys: that
  cannot be told from the file, and it is read as if it were none.
- HRNet-Facial-Landmark-Detection, o = 2.5: `transform_pixel` truncates to a cell, the middle of which is at
  4 c + 2 under its affine; `crop` cuts at whole pixels of the image (truncated, plus 1) and resizes
  about the middles of pixels, which on average puts the picture half a crop pixel beside that affine. So
  for crops less than 512 pixels wide; larger images are made smaller first: there o is about 2.
- LCGCN (its authors), o = 2: `draw_umich_gaussian` truncates x / 4. Their resizing of the face adds up to
  about half a pixel, by how much it enlarges. Their graph is given c / 64 and gives back x / 256
  (`GraphConfig.authors_conventions`). Only what comes with a graph head is taken for theirs.
Points of 300W count from 1 in its files. mmpose's annotations leave them so, and HRNet-Facial's lists may:
such a model's landmarks lie one pixel of the image too far right and down. That is not mended here.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from lcgcn_jax.errors import InputError
from lcgcn_jax.interop.torch_files import StateDict
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.bundles import Bundle, abstract_weights
from lcgcn_jax.models.config import GraphConfig
from lcgcn_jax.models.hrnet import ARCHS, HRNet
from lcgcn_jax.models.layers import make_rngs
from lcgcn_jax.models.registry import create_model, graph_config
from lcgcn_jax.models.weights import split_weights

TORCH_ARCHS = {f"hrnet_{arch.replace('-', '_')}": arch for arch in ARCHS}
"""HRNets as `lcgcn import-torch --arch` names them, and their keys in `ARCHS`."""

IMAGE_SIZE = 256
"""Side of the crops that all public face models were trained on."""

AUTHORS_GRAPH = GraphConfig.authors()
"""The graph head as the LCGCN authors' code has it."""

AUTHORS_OFFSET = 2.0
"""`heatmap_offset` of the LCGCN authors' heatmaps."""

_HEATMAP, _GRAPH = "heatmap_model.", "graph."


def _backbone_modules() -> dict[str, str]:
    """Our modules (as patterns) and theirs; the first row that fits a name counts."""
    table = {}
    for part, place in (("conv", 0), ("bn", 1)):  # place: in a sequence of the two
        table |= {
            rf"stem(\d)\.{part}": rf"{part}\1",
            rf"stage1\.(\d+)\.conv(\d)\.{part}": rf"layer1.\1.{part}\2",
            rf"stage1\.(\d+)\.shortcut\.{part}": rf"layer1.\1.downsample.{place}",
        }
        for i in range(3):  # their second stage is the first of our list
            ours, theirs = rf"stages\.{i}\.(\d+)", rf"stage{i + 2}.\1"
            convs = rf"transitions\.{i}\.convs"
            table |= {
                # A new branch comes of a chain of convolutions there, though of one.
                rf"{convs}\.{i + 1}\.{part}": rf"transition{i + 1}.{i + 1}.0.{place}",
                rf"{convs}\.(\d)\.{part}": rf"transition{i + 1}.\1.{place}",
                rf"{ours}\.branches\.(\d)\.(\d+)\.conv(\d)\.{part}": (
                    rf"{theirs}.branches.\2.\3.{part}\4"
                ),
            }
            for target, source in itertools.permutations(range(4), 2):
                # From a finer branch a chain of convolutions, from a coarser one a single one.
                step, chain = (r"(\d)", r"\2.") if source < target else ("0", "")
                table[rf"{ours}\.fuse\.{target}\.{source}\.{step}\.{part}"] = (
                    rf"{theirs}.fuse_layers.{target}.{source}.{chain}{place}"
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
    """How a public code names an HRNet.

    Attributes:
      code: whose it is.
      backbone: what stands before the backbone's keys.
      head: modules of the head: the 1x1 convolution, its norm, the output; none for a backbone alone.
      heatmap_offset: where its code places cell (0, 0), in input pixels; None without a head.
      unused: beginnings of keys that are of no use here, beside the backbone.
    """

    code: str
    backbone: str
    head: tuple[str, str, str] | None
    heatmap_offset: float | None
    unused: tuple[str, ...] = ()


HRNET_FACE = Layout("HRNet-Facial-Landmark-Detection", "", ("head.0", "head.1", "head.3"), 2.5)
MMPOSE_0 = Layout(
    "mmpose 0.x", "backbone.", tuple(f"keypoint_head.final_layer.{i}" for i in (0, 1, 3)), 0.0
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


@dataclasses.dataclass(frozen=True)
class TorchModel:
    """A model of PyTorch's arrays, under our names.

    Attributes:
      model: its configuration, as `registry.create_model` takes it.
      num_landmarks: k of its heatmaps; None for a backbone alone.
      weights: what the file has of its weights.
      code: whose layout the heatmap model had.
      fresh: names of the weights that the file has not: all of the head, or none.
      unused: keys of the file that are of no use here.
    """

    model: dict[str, Any]
    num_landmarks: int | None
    weights: StateDict
    code: str
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Imported:
    """What came of a PyTorch file.

    Attributes:
      bundle: the model.
      code: whose layout the heatmap model had.
      fresh: weights that the file has not, and that were made anew.
      unused: keys of the file that are of no use here.
    """

    bundle: Bundle
    code: str
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def import_weights(
    state: Mapping[str, np.ndarray],
    arch: str,
    scheme: LandmarkScheme,
    *,
    source: Any,
    graph_state: Mapping[str, np.ndarray] | None = None,
    graph_source: Any = None,
    seed: int = 0,
) -> Imported:
    """Makes a bundle of a state dict, as `map_weights` does, and of a head made anew if it has none.

    Args:
      state: PyTorch's arrays by key, as `torch_files.read_state_dict` gives them.
      arch: a key of `ARCHS`.
      scheme: what the landmarks mean.
      source: what to call the state dict in an error.
      graph_state: a second state dict that has the graph head; None: it is looked for in the first.
      graph_source: what to call that one.
      seed: of weights that have to be made anew.

    Raises:
      InputError: as in `map_weights`, or the state dict is for another number of landmarks.
    """
    found = map_weights(
        state, arch, source=source, graph_state=graph_state, graph_source=graph_source
    )
    k = scheme.num_landmarks
    if found.num_landmarks not in (None, k):
        raise InputError(
            f"{source}: its heatmaps are of {found.num_landmarks} landmarks, and {scheme.name} has {k}; "
            "give another --scheme"
        )
    weights = found.weights | _fresh_weights(found.model, k, found.fresh, seed)
    bundle = Bundle(found.model, scheme, IMAGE_SIZE, weights)
    return Imported(bundle, found.code, found.fresh, found.unused)


def map_weights(
    state: Mapping[str, np.ndarray],
    arch: str,
    *,
    source: Any,
    graph_state: Mapping[str, np.ndarray] | None = None,
    graph_source: Any = None,
) -> TorchModel:
    """Finds a model's weights in a state dict: a heatmap model, and the authors' graph head if there is one.

    The heatmap model may be under any prefix, and so may the graph head.

    Args:
      state: as in `import_weights`.
      arch: as there.
      source: as there.
      graph_state: as there.
      graph_source: as there.

    Raises:
      InputError: no HRNet is found, or keys are missing, left over or of the wrong shape; all of them
        are named.
    """
    state = dict(state)
    if graph_state is None:
        graph = _take_graph(state, source)
    else:
        rest = dict(graph_state)
        graph = _take_graph(rest, graph_source)
        if graph is None:
            raise InputError(f"{graph_source}: no LCGCN graph head in it (gcn_layers.0.w1)")
        if rest:
            raise InputError(f"{graph_source}: {_report({'not of the graph head': rest})}")
    prefix, layout = _find_hrnet(state, source)
    if layout.head is not None:
        k = _num_landmarks(state[f"{prefix}{layout.head[2]}.weight"])
    elif graph is None:
        k = None
    else:
        raise InputError(f"{source}: an LCGCN graph head needs heatmaps, and its HRNet has no head")
    # Heatmap models alone were trained to give the heat itself; the authors put a sigmoid on theirs.
    linear = graph is None and layout.head is not None
    model = {
        "heatmap": {
            "name": "hrnet",
            "arch": arch,
            "features": "concat",
            "activation": "linear" if linear else "sigmoid",
        },
        "heatmap_offset": layout.heatmap_offset if graph is None else AUTHORS_OFFSET,
        # The authors' graph starts from the peaks; heatmap models alone are read as their code does.
        "decode": "quarter" if graph is None else "argmax",
        "graph": None if graph is None else dataclasses.asdict(AUTHORS_GRAPH),
        "bn_momentum": 0.99,
    }
    # Of a backbone alone, no shape follows the number of landmarks.
    _, params, batch_stats = abstract_weights(model, 1 if k is None else k)
    wanted = params | batch_stats

    keys = {name: prefix + key for name, key in _heatmap_keys(wanted, layout).items()}
    unused = tuple(key for key in state if key.startswith(tuple(prefix + u for u in layout.unused)))
    weights = _assign(state, keys, wanted, source, unused)
    if graph is not None:
        split = _split_messages(graph)
        keys = _graph_keys(wanted)
        weights |= _assign(split, keys, wanted, graph_source or source, ())
        # Their blocks have no bias.
        weights |= {
            name: np.zeros(wanted[name].shape, np.float32) for name in _graph_biases(wanted)
        }
    fresh = tuple(name for name in wanted if name not in weights)
    return TorchModel(model, k, weights, layout.code, fresh, unused)


def export_weights(bundle: Bundle, *, graph: bool, source: Any) -> StateDict:
    """A bundle's weights in PyTorch's key layout.

    The heatmap model is laid out as in HRNet-Facial-Landmark-Detection, the graph head as in the LCGCN
    authors' code. PyTorch's counters of batches are there, at 0. Where the cells lie (`heatmap_offset`) is
    in no state dict.

    Args:
      bundle: the model.
      graph: whether to write its graph head too.
      source: what to call the bundle in an error.

    Raises:
      InputError: the heatmap model or the graph head is none that PyTorch code is known for.
    """
    if bundle.model["heatmap"].get("name") != "hrnet":
        raise InputError(f"{source}: only HRNet can be written in PyTorch's layout")
    weights = {name: np.asarray(value) for name, value in bundle.weights.items()}
    state = {
        key: _to_torch(weights[name]) for name, key in _heatmap_keys(weights, HRNET_FACE).items()
    }
    if graph:
        _require_authors_graph(bundle, source)
        split = {key: _to_torch(weights[name]) for name, key in _graph_keys(weights).items()}
        state |= _join_messages(split)
    # The keys of a norm stand together in a state dict, the counter last.
    for key in [key for key in state if key.endswith("running_var")]:
        counter = key.removesuffix("running_var") + "num_batches_tracked"
        state[counter] = np.zeros((), np.int64)
    return state


def _heatmap_keys(names: Iterable[str], layout: Layout) -> dict[str, str]:
    """Keys of the HRNet's weights, by our names, those of the head only where the layout has one."""
    modules = {pattern: layout.backbone + theirs for pattern, theirs in _BACKBONE_MODULES.items()}
    if layout.head is not None:
        modules |= dict(zip(HRNet.head_modules, layout.head, strict=True))
    of_head = tuple(_HEATMAP + module + "." for module in HRNet.head_modules)
    return {
        name: _torch_key(name.removeprefix(_HEATMAP), modules)
        for name in names
        if name.startswith(_HEATMAP) and not (layout.head is None and name.startswith(of_head))
    }


def _graph_keys(names: Iterable[str]) -> dict[str, str]:
    """Keys of the graph head's weights, by our names, w1 being in two (`_split_messages`)."""
    blocks = {"node": "w2", "neighbor": "w1 (nodes)", "shape": "w1 (offsets)"}
    keys = {}
    for name in names:
        block = re.fullmatch(r"graph\.blocks\.(\d+)\.(\w+)", name)
        if block and block[2] in blocks:
            keys[name] = f"gcn_layers.{block[1]}.{blocks[block[2]]}"
        elif name.startswith(_GRAPH) and not block:
            keys[name] = _torch_key(name.removeprefix(_GRAPH), _GRAPH_MODULES)
    return keys


def _graph_biases(names: Iterable[str]) -> list[str]:
    return [name for name in names if re.fullmatch(r"graph\.blocks\.\d+\.bias", name)]


def _torch_key(name: str, modules: Mapping[str, str]) -> str:
    module, _, leaf = name.rpartition(".")
    for pattern, theirs in modules.items():
        found = re.fullmatch(pattern, module)
        if found:
            return f"{found.expand(theirs)}.{_LEAVES[leaf]}"
    raise AssertionError(f"{name}: not in the tables")


def _to_torch(weight: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Kernels HWIO to OIHW, matrices `[in out]` to `[out in]`."""
    return np.asarray(weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T, order="C")


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a weight of ours, as `_to_torch` lays it out, without memory for it."""
    return tuple(shape[i] for i in (3, 2, 0, 1)) if len(shape) == 4 else tuple(shape[::-1])


def _from_torch(weight: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The other way."""
    return np.asarray(weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T, order="C")


def _split_messages(graph: Mapping[str, np.ndarray]) -> StateDict:
    """Parts their `w1 [out in (+) 2]` into what acts on the neighbor and on its offset, which is last."""
    split = {}
    for key, value in graph.items():
        own = graph.get(key.removesuffix("w1") + "w2") if key.endswith(".w1") else None
        if own is None or own.ndim != 2 or value.ndim != 2:
            split[key] = value
            continue
        nodes = own.shape[1]
        split[f"{key} (nodes)"] = value[:, :nodes]
        if value.shape[1] > nodes:
            split[f"{key} (offsets)"] = value[:, nodes:]
    return split


def _join_messages(split: Mapping[str, np.ndarray]) -> StateDict:
    joined = {k: v for k, v in split.items() if not k.endswith((" (nodes)", " (offsets)"))}
    for key, nodes in split.items():
        if key.endswith(" (nodes)"):
            whole = key.removesuffix(" (nodes)")
            offsets = split.get(f"{whole} (offsets)", nodes[:, :0])
            joined[whole] = np.concatenate([nodes, offsets], axis=1)
    return joined


def _take_graph(state: StateDict, source: Any) -> StateDict | None:
    """Takes the graph head's arrays out of a state dict, under keys without their prefix."""
    prefix = _prefix_of("gcn_layers.0.w1", state, source)
    if prefix is None:
        return None
    parts = ("class_embedding.", "edges.", "visual_feature_embedding.", "gcn_layers.")
    keys = [key for key in state if key.startswith(tuple(prefix + part for part in parts))]
    return {key.removeprefix(prefix): state.pop(key) for key in keys}


def _find_hrnet(state: Mapping[str, np.ndarray], source: Any) -> tuple[str, Layout]:
    """The prefix under which a model lies, and its layout."""
    # A key that every HRNet has, and nothing else.
    prefix = _prefix_of("stage2.0.branches.0.0.conv1.weight", state, source)
    if prefix is None:
        raise InputError(
            f"{source}: no HRNet in it; among its {len(state)} keys: {', '.join(list(state)[:5])}"
        )
    for layout in FACE_LAYOUTS:
        outer = prefix.removesuffix(layout.backbone)
        if f"{outer}{layout.head[2]}.weight" in state and prefix.endswith(layout.backbone):
            return outer, layout
    return prefix, IMAGENET


def _prefix_of(anchor: str, state: Mapping[str, np.ndarray], source: Any) -> str | None:
    pattern = re.compile(rf"(|.*\.){re.escape(anchor)}")
    prefixes = [found[1] for found in map(pattern.fullmatch, state) if found]
    if len(prefixes) > 1:
        named = ", ".join(repr(prefix) for prefix in prefixes)
        raise InputError(f"{source}: holds {anchor} more than once, under {named}")
    return prefixes[0] if prefixes else None


def _num_landmarks(head_out: np.ndarray) -> int:
    # At least 1, so that a weight of no use is found to be of the wrong shape, with all others.
    return max((1, *head_out.shape[:1]))


def _assign(
    state: Mapping[str, np.ndarray],
    keys: Mapping[str, str],
    wanted: Mapping[str, Any],
    source: Any,
    unused: Iterable[str],
) -> StateDict:
    """Our weights from their keys.

    Raises:
      InputError: keys are left over, missing, of the wrong shape or not finite; with all of them.
    """
    taken = set(keys.values())
    weights = {name: _from_torch(state[key]) for name, key in keys.items() if key in state}
    wrong_shapes = [
        f"{keys[name]} {state[keys[name]].shape} instead of {_torch_shape(wanted[name].shape)}"
        for name, weight in weights.items()
        if weight.shape != wanted[name].shape
    ]
    not_numbers = [keys[name] for name, weight in weights.items() if not np.isfinite(weight).all()]
    problems = {
        "unknown": state.keys() - taken - set(unused),
        "missing": taken - state.keys(),
        "of the wrong shape": wrong_shapes,
        "with NaN or infinite values": not_numbers,
    }
    if any(problems.values()):
        raise InputError(f"{source}: {_report(problems)}")
    return weights


def _report(problems: Mapping[str, Iterable[str]]) -> str:
    lists = {what: sorted(keys) for what, keys in problems.items() if keys}
    count = sum(map(len, lists.values()))
    named = "; ".join(f"{len(keys)} {what}: {', '.join(keys)}" for what, keys in lists.items())
    return f"{count} keys do not fit the model; {named}"


def _require_authors_graph(bundle: Bundle, source: Any) -> None:
    graph = graph_config(bundle.model["graph"])
    theirs, ours = dataclasses.asdict(AUTHORS_GRAPH), dataclasses.asdict(graph)
    if isinstance(graph, GraphConfig):
        differ = [f"{name}={ours[name]!r}" for name in theirs if ours[name] != theirs[name]]
    else:
        differ = ["another kind of graph"]
    if bundle.has_visibility:
        differ.append("a visibility head")
    if bundle.model["heatmap"].get("features", "concat") != "concat":
        differ.append("features of the head")
    if any(np.any(bundle.weights[name]) for name in _graph_biases(bundle.weights)):
        differ.append("a bias in its blocks")
    if differ:
        raise InputError(
            f"{source}: PyTorch code is known for the LCGCN authors' graph head alone, and this one has "
            f"{', '.join(differ)}; --heatmap-only writes the heatmap model"
        )


def _fresh_weights(
    model: Mapping[str, Any], num_landmarks: int, names: Iterable[str], seed: int
) -> StateDict:
    names = list(names)
    if not names:
        return {}

    @jax.jit  # makes what is asked for, and leaves out the rest
    def make():
        fresh = create_model(model, num_landmarks, rngs=make_rngs(seed))
        _, params, batch_stats = split_weights(fresh)
        return {name: (params | batch_stats)[name] for name in names}

    return {name: np.asarray(value) for name, value in make().items()}

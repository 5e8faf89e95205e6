"""Import of weights from public PyTorch code, and export to it.

The key layouts and the meaning of their heatmaps are in `torch_layouts`. A file is rejected if a key is
missing, unknown, or of the wrong shape. An imported network computes the same function.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from lcgcn_jax.errors import InputError
from lcgcn_jax.interop import torch_layouts
from lcgcn_jax.interop.torch_files import StateDict
from lcgcn_jax.interop.torch_layouts import (
    AUTHORS_OFFSET,
    FACE_LAYOUTS,
    HRNET_FACE,
    IMAGENET,
    Layout,
)
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.bundles import Bundle, abstract_weights
from lcgcn_jax.models.config import GraphConfig
from lcgcn_jax.models.hrnet import ARCHS
from lcgcn_jax.models.layers import make_rngs
from lcgcn_jax.models.registry import create_model, graph_config
from lcgcn_jax.models.weights import split_weights

TORCH_ARCHS = {f"hrnet_{arch.replace('-', '_')}": arch for arch in ARCHS}
"""Keys of `ARCHS` by the values of `lcgcn import-torch --arch`."""

IMAGE_SIZE = 256
"""Side of the crops that all public face models were trained on."""

AUTHORS_GRAPH = GraphConfig.authors()
"""The graph head as the LCGCN authors' code has it."""

_GRAPH_PARTS = ("class_embedding.", "edges.", "visual_feature_embedding.", "gcn_layers.")


@dataclasses.dataclass(frozen=True)
class TorchModel:
    """Model in a PyTorch state dict, with the weight names of this package.

    Attributes:
      model: configuration for `registry.create_model`.
      num_landmarks: number of heatmaps; None for a backbone only.
      weights: weights in the state dict.
      code: public code whose layout the heatmap model has.
      initialized: names of the weights that the state dict does not have, those of the head or none; an
        import initializes them randomly.
      unused: keys of the state dict that are ignored.
    """

    model: dict[str, Any]
    num_landmarks: int | None
    weights: StateDict
    code: str
    initialized: tuple[str, ...]
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
) -> tuple[Bundle, TorchModel]:
    """Import a state dict as a bundle, with a randomly initialized head if it is a backbone only.

    Args:
      state: PyTorch arrays by key (`torch_files.read_state_dict`).
      arch: a key of `ARCHS`.
      source: name of the state dict in errors.
      graph_state: state dict with the graph head; None: search for the graph head in `state`.
      graph_source: name of `graph_state` in errors.

    Raises:
      InputError: as in `map_weights`, or the model has another number of landmarks.
    """
    mapped = map_weights(
        state, arch, source=source, graph_state=graph_state, graph_source=graph_source
    )
    k = scheme.num_landmarks
    if mapped.num_landmarks not in (None, k):
        raise InputError(
            f"{source}: the model has {mapped.num_landmarks} landmarks, and {scheme.name} has {k}; "
            "give another --scheme"
        )
    weights = mapped.weights | _initialize(mapped.model, k, mapped.initialized, seed)
    return Bundle(mapped.model, scheme, IMAGE_SIZE, weights), mapped


def map_weights(
    state: Mapping[str, np.ndarray],
    arch: str,
    *,
    source: Any,
    graph_state: Mapping[str, np.ndarray] | None = None,
    graph_source: Any = None,
) -> TorchModel:
    """Map a state dict to the weights of a heatmap model and, if present, of the authors' graph head.

    Both may have any prefix.

    Raises:
      InputError: there is no HRNet, or keys are missing, unknown or of the wrong shape (all are listed).
    """
    state = dict(state)
    if graph_state is None:
        graph = _take_graph(state, source)
    else:
        others = dict(graph_state)
        graph = _take_graph(others, graph_source)
        if graph is None:
            raise InputError(f"{graph_source}: no LCGCN graph head (gcn_layers.0.w1)")
        if others:
            raise InputError(f"{graph_source}: {_report({'not of the graph head': others})}")
    prefix, layout = _find_hrnet(state, source)
    if layout.head is not None:
        # At least 1, so that an empty or scalar weight is reported as a wrong shape.
        k = max((1, *state[f"{prefix}{layout.head[2]}.weight"].shape[:1]))
    elif graph is None:
        k = None
    else:
        raise InputError(f"{source}: an LCGCN graph head needs heatmaps, and its HRNet has no head")
    model = _model_config(arch, layout, has_graph=graph is not None)
    # Without a head, no shape depends on the number of landmarks.
    _, params, batch_stats = abstract_weights(model, k or 1)
    expected = params | batch_stats

    keys = {
        name: prefix + key for name, key in torch_layouts.heatmap_keys(expected, layout).items()
    }
    unused = tuple(key for key in state if key.startswith(tuple(prefix + u for u in layout.unused)))
    weights = _assign(state, keys, expected, source, unused)
    if graph is not None:
        keys = torch_layouts.graph_keys(expected)
        weights |= _assign(
            torch_layouts.split_w1(graph), keys, expected, graph_source or source, ()
        )
        for name in torch_layouts.graph_biases(expected):
            weights[name] = np.zeros(expected[name].shape, np.float32)
    initialized = tuple(name for name in expected if name not in weights)
    return TorchModel(model, k, weights, layout.code, initialized, unused)


def _model_config(arch: str, layout: Layout, *, has_graph: bool) -> dict[str, Any]:
    # Public heatmap models predict the heatmap itself; the LCGCN authors apply a sigmoid.
    is_linear = not has_graph and layout.head is not None
    return {
        "heatmap": {
            "name": "hrnet",
            "arch": arch,
            "features": "concat",
            "activation": "linear" if is_linear else "sigmoid",
        },
        "heatmap_offset": AUTHORS_OFFSET if has_graph else layout.heatmap_offset,
        # The authors' graph starts from the peaks; the codes of the heatmap models decode with an offset.
        "decode": "argmax" if has_graph else "quarter",
        "graph": dataclasses.asdict(AUTHORS_GRAPH) if has_graph else None,
        "bn_momentum": 0.99,
    }


def export_weights(bundle: Bundle, *, graph: bool, source: Any) -> StateDict:
    """Export the weights of a bundle in PyTorch's key layout.

    The heatmap model has the layout of HRNet-Facial-Landmark-Detection, the graph head that of the LCGCN
    authors' code. The counters `num_batches_tracked` are 0. A state dict cannot hold the `heatmap_offset`.

    Args:
      graph: whether to export the graph head too.
      source: name of the bundle in errors.

    Raises:
      InputError: there is no PyTorch code for the heatmap model or for the graph head.
    """
    if bundle.model["heatmap"].get("name") != "hrnet":
        raise InputError(f"{source}: only HRNet can be exported to PyTorch")
    weights = {name: np.asarray(value) for name, value in bundle.weights.items()}

    def with_torch_keys(keys: Mapping[str, str]) -> StateDict:
        return {key: torch_layouts.to_torch(weights[name]) for name, key in keys.items()}

    state = with_torch_keys(torch_layouts.heatmap_keys(weights, HRNET_FACE))
    if graph:
        _require_authors_graph(bundle, source)
        state |= torch_layouts.join_w1(with_torch_keys(torch_layouts.graph_keys(weights)))
    for key in [key for key in state if key.endswith("running_var")]:
        counter = key.removesuffix("running_var") + "num_batches_tracked"
        state[counter] = np.zeros((), np.int64)
    return state


def _take_graph(state: StateDict, source: Any) -> StateDict | None:
    """Remove the arrays of the graph head from a state dict; returns them without their prefix."""
    prefix = _prefix_of("gcn_layers.0.w1", state, source)
    if prefix is None:
        return None
    keys = [key for key in state if key.startswith(tuple(prefix + part for part in _GRAPH_PARTS))]
    return {key.removeprefix(prefix): state.pop(key) for key in keys}


def _find_hrnet(state: Mapping[str, np.ndarray], source: Any) -> tuple[str, Layout]:
    """Find the prefix of the HRNet in a state dict, and its layout."""
    # A key that every HRNet has, and no other model.
    prefix = _prefix_of("stage2.0.branches.0.0.conv1.weight", state, source)
    if prefix is None:
        raise InputError(
            f"{source}: no HRNet in it; among its {len(state)} keys: {', '.join(list(state)[:5])}"
        )
    for layout in FACE_LAYOUTS:
        assert layout.head is not None
        outer = prefix.removesuffix(layout.backbone)
        if f"{outer}{layout.head[2]}.weight" in state and prefix.endswith(layout.backbone):
            return outer, layout
    return prefix, IMAGENET


def _prefix_of(anchor: str, state: Mapping[str, np.ndarray], source: Any) -> str | None:
    pattern = re.compile(rf"(|.*\.){re.escape(anchor)}")
    prefixes = [match[1] for match in map(pattern.fullmatch, state) if match]
    if len(prefixes) > 1:
        names = ", ".join(repr(prefix) for prefix in prefixes)
        raise InputError(f"{source}: {anchor} occurs more than once, under {names}")
    return prefixes[0] if prefixes else None


def _assign(
    state: Mapping[str, np.ndarray],
    keys: Mapping[str, str],
    expected: Mapping[str, Any],
    source: Any,
    unused: Iterable[str],
) -> StateDict:
    """Convert arrays to weights, by the keys of the weights."""
    weights = {
        name: torch_layouts.from_torch(state[key]) for name, key in keys.items() if key in state
    }
    shapes = {name: expected[name].shape for name in weights}
    problems = {
        "unknown": state.keys() - keys.values() - set(unused),
        "missing": set(keys.values()) - state.keys(),
        "of the wrong shape": [
            f"{keys[name]} {state[keys[name]].shape} instead of "
            f"{torch_layouts.torch_shape(shapes[name])}"
            for name, weight in weights.items()
            if weight.shape != shapes[name]
        ],
        "with NaN or infinite values": [
            keys[name] for name, weight in weights.items() if not np.isfinite(weight).all()
        ],
    }
    if any(problems.values()):
        raise InputError(f"{source}: {_report(problems)}")
    return weights


def _report(problems: Mapping[str, Iterable[str]]) -> str:
    lists = {problem: sorted(keys) for problem, keys in problems.items() if keys}
    count = sum(map(len, lists.values()))
    text = "; ".join(f"{len(keys)} {problem}: {', '.join(keys)}" for problem, keys in lists.items())
    return f"{count} keys do not fit the model; {text}"


def _require_authors_graph(bundle: Bundle, source: Any) -> None:
    graph = graph_config(bundle.model["graph"])
    theirs, ours = dataclasses.asdict(AUTHORS_GRAPH), dataclasses.asdict(graph)
    if isinstance(graph, GraphConfig):
        differences = [f"{name}={ours[name]!r}" for name in theirs if ours[name] != theirs[name]]
    else:
        differences = ["another kind of graph"]
    if bundle.has_visibility:
        differences.append("a visibility head")
    if bundle.model["heatmap"].get("features", "concat") != "concat":
        differences.append("features of the head")
    if any(np.any(bundle.weights[name]) for name in torch_layouts.graph_biases(bundle.weights)):
        differences.append("a bias in its blocks")
    if differences:
        raise InputError(
            f"{source}: PyTorch code exists only for the LCGCN authors' graph head, and this one has "
            f"{', '.join(differences)}; --heatmap-only exports the heatmap model"
        )


def _initialize(
    model: Mapping[str, Any], num_landmarks: int, names: Iterable[str], seed: int
) -> StateDict:
    """Initialize the weights of these names randomly."""
    names = list(names)
    if not names:
        return {}

    @jax.jit  # computes only the requested weights
    def initialize():
        _, params, batch_stats = split_weights(
            create_model(model, num_landmarks, rngs=make_rngs(seed))
        )
        return {name: (params | batch_stats)[name] for name in names}

    return {name: np.asarray(value) for name, value in initialize().items()}

"""Ablation of the graph on one frozen heatmap model, with several seeds (the paper's Table 3, extended).

All variants train on the same views of the same faces and are evaluated on the same clean and corrupted
crops, so that differences are paired per face. Datasets of `data.sources` that have the validation split are
evaluated also, by subset, with errors relative to the size of the box of the landmarks.
"""

import dataclasses
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float

from lcgcn_jax.atomic_io import write_json, write_whole, writing
from lcgcn_jax.data.corruptions import CORRUPTIONS
from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation import metrics
from lcgcn_jax.evaluation.face_errors import FaceSet, SplitErrors, subset_masks
from lcgcn_jax.models.bundles import load_bundle
from lcgcn_jax.models.config import CascadeConfig, GraphConfig
from lcgcn_jax.training.config import differences, fill_in, to_json
from lcgcn_jax.training.config_types import EPOCHS
from lcgcn_jax.training.feature_cache import FeatureCache
from lcgcn_jax.training.run_lock import read_run_config
from lcgcn_jax.training.trainer import Trainer

RESULT = "errors.json"
"""Name of the file with the errors of a run, in its workdir."""

_OCCLUDED = "occlude"  # the corruption that other datasets are also evaluated with


@dataclasses.dataclass(frozen=True)
class Variant:
    """A graph of the table.

    Attributes:
      text: description in the table.
      decode: landmark decoding of the heatmap stage, one of `heatmaps.DECODERS`.
      graph: fields of `model.graph` that differ from the paper's.
      visibility: whether the model has a visibility head, which needs faces with visibility labels.
      views: largest number of fixed views per face, if the configuration's would not fit in memory.
    """

    text: str
    decode: str
    graph: Mapping[str, Any]
    visibility: bool = False
    views: int | None = None


def _variant(text: str, decode: str = "dark", **graph: Any) -> Variant:
    if decode == "dark":
        graph = {"output": "residual", "sampling": "bilinear"} | graph
    return Variant(text, decode, graph)


def _visible(text: str, **graph: Any) -> Variant:
    variant = _variant(text, message="offset_votes", **graph)
    return dataclasses.replace(variant, visibility=True)


_STATIC = {"connectivity": "learned_static"}

ROWS = {
    "paper": _variant("the paper: per-image edges, absolute output", "argmax"),
    "paper-static": _variant("the same, static edges", "argmax", **_STATIC),
    "paper-uniform": _variant("the same, uniform edges", "argmax", connectivity="uniform"),
    "paper-none": _variant("the same, no edges", "argmax", connectivity="self_only"),
    "residual": _variant("per-image edges, residual output", "argmax", output="residual"),
    "subpixel": _variant("the paper's message, per-image edges"),
    "subpixel-static": _variant("the same, static edges", **_STATIC),
    "subpixel-none": _variant("the same, no edges", connectivity="self_only"),
    "pair_vector": _variant("pair vectors in the message, per-image edges", message="pair_vector"),
    "pair_vector-static": _variant("the same, static edges", message="pair_vector", **_STATIC),
    "offsets": _variant("offset votes of the neighbors, per-image edges", message="offset_votes"),
    "offsets-static": _variant("the same, static edges", message="offset_votes", **_STATIC),
    "dag": Variant(
        "mean-shape cascade (Li et al. 2020)",
        "dark",
        {"name": "dag", **dataclasses.asdict(CascadeConfig())},
        views=3,
    ),
    "visible": _visible("offset votes and a visibility head, per-image edges"),
    "visible-static": _visible("the same, static edges", **_STATIC),
    "visible-edges": _visible("the same, edges from visibility", edge_inputs="visibility"),
    "visible-both": _visible("the same, edges from confidence and visibility", edge_inputs="both"),
    "visible-gate": _visible("the same, messages scaled by visibility", gate="visibility"),
    "visible-static-gate": _visible(
        "the same, static edges, messages scaled by visibility", gate="visibility", **_STATIC
    ),
}
"""Name of a row -> its graph. Variants with `dark` have a residual output and bilinear features."""

DEFAULT_ROWS = [name for name, variant in ROWS.items() if not variant.visibility]
"""Rows that train on any dataset."""

VARIED = ("connectivity", "message", "output", "sampling", "edge_inputs", "gate")
"""Fields of `model.graph` that are the paper's unless the variant sets them; the others are the config's."""

PAIRS = (
    ("paper", "paper-static"),
    ("paper-static", "paper-none"),
    ("residual", "paper"),
    ("subpixel", "residual"),
    ("subpixel", "subpixel-static"),
    ("subpixel-static", "subpixel-none"),
    ("pair_vector", "pair_vector-static"),
    ("pair_vector", "subpixel"),
    ("offsets", "offsets-static"),
    ("offsets", "subpixel"),
    ("offsets", "dag"),
    ("visible", "visible-static"),
    ("visible-edges", "visible"),
    ("visible-both", "visible"),
    ("visible-gate", "visible"),
    ("visible-static-gate", "visible-static"),
    ("visible-both", "visible-static"),
    ("visible-gate", "visible-static"),
)
"""Rows to compare: they differ in one choice, or are alternatives."""


@dataclasses.dataclass(frozen=True)
class VariantErrors:
    """Errors of a variant per face, as fractions of the normalizing distance.

    A set of faces is a corruption for the faces of `data.dir`, and for those of another dataset its name, its
    name and a corruption, or its name and a subset.

    Attributes:
      heatmap: set of faces -> errors of the heatmap stage that the graph starts from, `[n]`.
      graph: set of faces -> errors of the graph stage, `[seeds n]`.
    """

    heatmap: Mapping[str, Float[np.ndarray, "n"]]
    graph: Mapping[str, Float[np.ndarray, "seeds n"]]


def run_ablation(
    config: ml_collections.ConfigDict,
    out: Path,
    *,
    rows: Sequence[str],
    seeds: int,
    overridden: Collection[str] = (),
) -> dict[str, VariantErrors]:
    """Train and evaluate rows of the table; finished ones are read from `out`.

    Args:
      config: configuration of a frozen training with `train.cache`, on the heatmap model of `init_from`.
      out: folder of the training runs, `ROW/seedN`.
      rows: keys of `ROWS`; consecutive ones with the same decoding, kind of graph, sampling and visibility
        head share the cached features.
      seeds: number of runs of each row, with the seeds 0, 1, ...
      overridden: names of the config fields that were set on the command line.

    Raises:
      InputError: the configuration, the data or the folder cannot be used.
      Interrupted: SIGINT, SIGTERM or SIGHUP ended the training, after saving.
    """
    results, cache, cache_key = {}, None, None
    for name in rows:
        runs = []
        for seed in range(seeds):
            workdir = out / name / f"seed{seed}"
            run = variant_config(config, ROWS[name], seed)
            if (workdir / RESULT).is_file():
                _require_same_run(workdir, run)
            else:
                if cache_key != _cache_key(run):  # one in memory at a time
                    cache, cache_key = None, _cache_key(run)
                cache = _train_and_evaluate(run, workdir, cache, overridden)
            runs.append(_read_errors(workdir / RESULT))
        results[name] = VariantErrors(
            {kind: np.array(errors) for kind, errors in runs[0]["heatmap"].items()},
            {kind: np.array([r["graph"][kind] for r in runs]) for kind in runs[0]["graph"]},
        )
    return results


def _train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: Path,
    cache: FeatureCache | None,
    overridden: Collection[str],
) -> FeatureCache | None:
    """Train a run and write its errors. Returns the cache that the next run can use."""
    training = Trainer(config, workdir, feature_cache=cache, overridden=overridden).prepare()
    if not training.run():
        raise training.interruption()
    _write_errors(training, workdir / RESULT)
    return training.feature_cache


def variant_config(
    config: ml_collections.ConfigDict, variant: Variant, seed: int
) -> ml_collections.ConfigDict:
    """Configuration of one run of a variant."""
    config = ml_collections.ConfigDict(config.to_dict())
    bundle = load_bundle(config.init_from)
    config.model.heatmap = dict(bundle.model["heatmap"])
    config.data.image_size = bundle.image_size
    config.model.decode = variant.decode
    if "name" in variant.graph:
        config.model.graph = dict(variant.graph)
    else:
        config.model.graph.update({field: getattr(GraphConfig, field) for field in VARIED})
        config.model.graph.update(variant.graph)
    if variant.views is not None:
        config.data.views = min(variant.views, config.data.views)
    if variant.visibility and config.model.visibility.head == "none":
        config.model.visibility.head = "attention"
    config.seed = seed
    return config


def _cache_key(config: ml_collections.ConfigDict) -> tuple:
    """Options that the cached features depend on."""
    graph = config.model.graph
    has_visibility = config.model.visibility.head != "none"
    return config.model.decode, graph.name, graph.get("sampling"), has_visibility


def _require_same_run(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Check that a finished run of a row has the configuration of this table."""
    new = json.loads(to_json(config))
    old = fill_in(read_run_config(workdir) or {}, new)
    for name in EPOCHS:  # a run with a length in epochs stores its steps
        new["train"][name] = new["train"][name] or old["train"][name]
    if changes := differences(old, new):
        raise InputError(
            f"{workdir}: finished with another config ({'; '.join(changes[:3])}); choose another --out"
        )


def _read_errors(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {stage: content[stage] for stage in ("heatmap", "graph")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged; delete it, and run the command again") from error


def _write_errors(trainer: Trainer, path: Path) -> None:
    content = {"heatmap": {}, "graph": {}}

    def add(faces: str, errors: SplitErrors, mask: FaceSet = slice(None)) -> None:
        measured = errors.measured[mask]
        assert errors.graph is not None
        content["heatmap"][faces] = errors.heatmap[mask][measured].tolist()
        content["graph"][faces] = errors.graph[mask][measured].tolist()

    for kind in CORRUPTIONS:
        add(kind, trainer.validate(kind))
    split = trainer.config.data.validation_split
    for name, dataset in _other_datasets(trainer).items():
        errors = trainer.validate(dataset=dataset)
        add(name, errors)
        add(f"{name} {_OCCLUDED}", trainer.validate(_OCCLUDED, dataset=dataset))
        for subset, mask in subset_masks(dataset, split).items():
            add(f"{name} {subset}", errors, mask)
    write_json(path, content)


def _other_datasets(trainer: Trainer) -> dict[str, FaceDataset]:
    """Datasets to evaluate on besides `data.dir`, with errors relative to the box of the landmarks."""
    data, datasets = trainer.config.data, {}
    # Without sources, `data.dir` is the only dataset.
    for (name, *_), dataset in zip(data.sources, trainer.mixture.datasets, strict=False):
        is_other = os.path.realpath(dataset.path) != os.path.realpath(trainer.dataset.path)
        if is_other and set(dataset.parts(data.validation_split)) <= set(dataset.splits):
            scheme = dataset.scheme.normalized_by("box")
            datasets[name] = dataclasses.replace(dataset, scheme=scheme)
    return datasets


def summarize(results: Mapping[str, VariantErrors]) -> dict[str, Any]:
    """Numbers of the table, in percent: NME per seed, and paired differences.

    A difference is between the errors per face, each averaged over its seeds; its interval is a 95 %
    bootstrap over the faces. `rows` compares each graph with the heatmap stage that it starts from, `pairs`
    the rows of `PAIRS`.
    """
    rows = {
        name: {
            kind: {
                "heatmap_nme": 100 * float(errors.heatmap[kind].mean()),
                "nme": 100 * float(graph.mean()),
                "nme_by_seed": [100 * float(nme) for nme in graph.mean(axis=1)],
                "against_heatmap": _difference(graph.mean(axis=0), errors.heatmap[kind]),
            }
            for kind, graph in errors.graph.items()
        }
        for name, errors in results.items()
    }
    pairs = [
        {
            "row": a,
            "against": b,
            **{
                kind: _difference(results[a].graph[kind].mean(axis=0), other.mean(axis=0))
                for kind, other in results[b].graph.items()
            },
        }
        for a, b in PAIRS
        if a in results and b in results
    ]
    return {"rows": rows, "pairs": pairs}


def _difference(
    errors: Float[np.ndarray, "n"], against: Float[np.ndarray, "n"]
) -> dict[str, float | list[float]]:
    low, high = metrics.bootstrap_interval(errors - against)
    return {
        "percent": 100 * float(errors.mean() / against.mean() - 1),
        "points": 100 * float((errors - against).mean()),
        "points_ci95": [100 * low, 100 * high],
    }


def write_tables(results: Mapping[str, VariantErrors], out: Path) -> str:
    """Write the tables of an ablation to `table.json` and `table.md`; returns the latter.

    Raises:
      InputError: a file cannot be written.
    """
    summary = summarize(results)
    table = markdown(summary)
    write_json(out / "table.json", summary)
    path = out / "table.md"
    with writing(path):
        write_whole(path, lambda partial: partial.write_text(table, encoding="utf-8"))
    return table


def markdown(summary: Mapping[str, Any]) -> str:
    """The table in Markdown: NME with its standard deviation, and differences, starred if significant."""
    kinds = list(next(iter(summary["rows"].values())))
    head = ["clean" if kind == "none" else kind for kind in kinds]
    nme, gain = [], []
    decodes = {}
    for name, row in summary["rows"].items():
        decodes.setdefault(ROWS[name].decode, row)
    for decode, row in decodes.items():
        columns = [f"{row[kind]['heatmap_nme']:.3f}" for kind in kinds]
        nme.append([f"heatmap stage, {decode}", *columns])
    for name, row in summary["rows"].items():
        by_seed = {kind: row[kind]["nme_by_seed"] for kind in kinds}
        deviation = {k: np.std(n, ddof=1) if len(n) > 1 else 0 for k, n in by_seed.items()}
        columns = [f"{row[kind]['nme']:.3f} ± {deviation[kind]:.3f}" for kind in kinds]
        nme.append([f"`{name}`: {ROWS[name].text}", *columns])
        columns = [_format_difference(row[kind]["against_heatmap"]) for kind in kinds]
        gain.append([f"`{name}` - heatmap stage", *columns])
    for pair in summary["pairs"]:
        columns = [_format_difference(pair[kind]) for kind in kinds]
        gain.append([f"`{pair['row']}` - `{pair['against']}`", *columns])
    return f"{_table(['NME, %', *head], nme)}\n{_table(['difference, points', *head], gain)}"


def _format_difference(difference: Mapping[str, Any]) -> str:
    low, high = difference["points_ci95"]
    star = "" if low <= 0 <= high else " *"
    return f"{difference['points']:+.3f} ({low:+.3f}, {high:+.3f}){star}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)

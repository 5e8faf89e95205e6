"""The paper's Table 3 and what it leaves out: graphs on one frozen heatmap model, several seeds each.

All of them train on the same views of the same faces, and are measured on the same plain and corrupted
crops, face by face: differences are taken in pairs.
"""

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float

from lcgcn_jax.atomic_io import write_whole, writing
from lcgcn_jax.data.augment import CORRUPTIONS
from lcgcn_jax.evaluation import metrics
from lcgcn_jax.models.bundles import load_bundle
from lcgcn_jax.models.config import CascadeConfig, GraphConfig
from lcgcn_jax.training.trainer import Trainer

RESULT = "errors.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """A graph of the table.

    Attributes:
      text: what it is.
      decode: how the heatmaps are read.
      graph: fields of `model.graph` that differ from the paper's.
      views: fixed views of each face, where the configuration's number would not fit in memory.
    """

    text: str
    decode: str
    graph: Mapping[str, Any]
    views: int | None = None


def _row(text: str, decode: str = "dark", **graph: Any) -> Row:
    if decode == "dark":
        graph = {"output": "residual", "sampling": "bilinear"} | graph
    return Row(text, decode, graph)


_STATIC = {"connectivity": "learned_static"}

ROWS = {
    "paper": _row("the paper: per-image edges, absolute output", "argmax"),
    "paper-static": _row("the same, static edges", "argmax", **_STATIC),
    "paper-uniform": _row("the same, uniform edges", "argmax", connectivity="uniform"),
    "paper-none": _row("the same, no edges", "argmax", connectivity="self_only"),
    "residual": _row("per-image edges, residual output", "argmax", output="residual"),
    "subpixel": _row("the paper's message, per-image edges"),
    "subpixel-static": _row("the same, static edges", **_STATIC),
    "subpixel-none": _row("the same, no edges", connectivity="self_only"),
    "pair_vector": _row("pair vectors in the message, per-image edges", message="pair_vector"),
    "pair_vector-static": _row("the same, static edges", message="pair_vector", **_STATIC),
    "offsets": _row("neighbors' guesses (offsets), per-image edges", message="offset_votes"),
    "offsets-static": _row("the same, static edges", message="offset_votes", **_STATIC),
    "dag": Row(
        "mean-shape cascade (Li et al. 2020)",
        "dark",
        {"name": "dag", **dataclasses.asdict(CascadeConfig())},
        views=3,
    ),
}
"""Name of a row -> its graph. `dark` rows have a residual output and bilinear features."""

VARIED = ("connectivity", "message", "output", "sampling")
"""Fields of `model.graph` that are the paper's unless the row says otherwise; the rest is the config's."""

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
)
"""Rows that differ in one thing, or that are rivals."""


@dataclasses.dataclass(frozen=True)
class RowErrors:
    """What was measured of a row: errors as fractions of the normalizing distance.

    Attributes:
      heatmap: corruption -> of the heatmap stage that the graph starts from, `[n]`.
      graph: corruption -> of the graph stage, `[seeds n]`.
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
) -> dict[str, RowErrors]:
    """Trains and measures rows of the table; those that are finished in `out` are read from there.

    Args:
      config: of a frozen training from the cache; the heatmap model is that of `init_from`.
      out: folder of the training runs, `ROW/seedN`.
      rows: keys of `ROWS`; those of one `decode` side by side share what the heatmap model says.
      seeds: how many of each.
      overridden: names of the config fields that were set on the command line.

    Raises:
      InputError: the configuration, the data or the folder cannot be used.
      Interrupted: SIGINT, SIGTERM or SIGHUP ended it, after saving.
    """
    results, graph_inputs, graph_inputs_of = {}, None, None
    for name in rows:
        found = []
        for seed in range(seeds):
            workdir = out / name / f"seed{seed}"
            if not (workdir / RESULT).is_file():
                run = row_config(config, ROWS[name], seed)
                if graph_inputs_of != _seen_by_graph(run):
                    graph_inputs, graph_inputs_of = (
                        None,
                        _seen_by_graph(run),
                    )  # one in memory at a time
                training = Trainer(run, workdir, graph_inputs=graph_inputs, overridden=overridden)
                graph_inputs = training.graph_inputs
                if not training.run():
                    raise training.interruption()
                _write_errors(training, workdir / RESULT)
            found.append(json.loads((workdir / RESULT).read_text(encoding="utf-8")))
        results[name] = RowErrors(
            {kind: np.array(errors) for kind, errors in found[0]["heatmap"].items()},
            {kind: np.array([f["graph"][kind] for f in found]) for kind in found[0]["graph"]},
        )
    return results


def row_config(config: ml_collections.ConfigDict, row: Row, seed: int) -> ml_collections.ConfigDict:
    """The configuration of one run of a row."""
    config = ml_collections.ConfigDict(config.to_dict())
    bundle = load_bundle(config.init_from)
    config.model.heatmap = dict(bundle.model["heatmap"])
    config.data.image_size = bundle.image_size
    config.model.decode = row.decode
    if "name" in row.graph:
        config.model.graph = dict(row.graph)
    else:
        config.model.graph.update({field: getattr(GraphConfig, field) for field in VARIED})
        config.model.graph.update(row.graph)
    if row.views is not None:
        config.data.views = min(row.views, config.data.views)
    config.seed = seed
    return config


def _seen_by_graph(config: ml_collections.ConfigDict) -> tuple:
    graph = config.model.graph
    return config.model.decode, graph.name, graph.get("sampling")


def _write_errors(training: Trainer, path: Path) -> None:
    errors = {kind: training.validate(kind) for kind in CORRUPTIONS}
    text = json.dumps(
        {
            "heatmap": {kind: e.heatmap[e.measured].tolist() for kind, e in errors.items()},
            "graph": {kind: e.graph[e.measured].tolist() for kind, e in errors.items()},
        }
    )
    with writing(path):
        write_whole(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def summarize(results: Mapping[str, RowErrors]) -> dict[str, Any]:
    """The table in numbers, in percent: NME and its spread over the seeds, and differences in pairs.

    A difference is of two stages' errors, face by face, each the mean over its seeds; its interval is a
    95 % bootstrap over the faces. `rows`: of the graph against the heatmap stage that it starts from.
    `pairs`: of the rows of `PAIRS` that are there.
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


def markdown(summary: Mapping[str, Any]) -> str:
    """The table as text: NME with its spread, and differences with stars where 0 lies outside."""
    kinds = list(next(iter(summary["rows"].values())))
    head = ["clean" if kind == "none" else kind for kind in kinds]
    nme, gain = [], []
    decodes = {}
    for name, row in summary["rows"].items():
        decodes.setdefault(ROWS[name].decode, row)
    for decode, row in decodes.items():
        cells = [f"{row[kind]['heatmap_nme']:.3f}" for kind in kinds]
        nme.append([f"heatmap stage, {decode}", *cells])
    for name, row in summary["rows"].items():
        spread = [
            np.std(row[kind]["nme_by_seed"], ddof=1) if _seeds(row) > 1 else 0 for kind in kinds
        ]
        cells = [f"{row[k]['nme']:.3f} ± {s:.3f}" for k, s in zip(kinds, spread, strict=True)]
        nme.append([f"`{name}`: {ROWS[name].text}", *cells])
        cells = [_shown(row[kind]["against_heatmap"]) for kind in kinds]
        gain.append([f"`{name}` - heatmap stage", *cells])
    for pair in summary["pairs"]:
        cells = [_shown(pair[kind]) for kind in kinds]
        gain.append([f"`{pair['row']}` - `{pair['against']}`", *cells])
    return f"{_table(['NME, %', *head], nme)}\n{_table(['difference, points', *head], gain)}"


def _seeds(row: Mapping[str, Any]) -> int:
    return len(next(iter(row.values()))["nme_by_seed"])


def _shown(difference: Mapping[str, Any]) -> str:
    low, high = difference["points_ci95"]
    star = "" if low <= 0 <= high else " *"
    return f"{difference['points']:+.3f} ({low:+.3f}, {high:+.3f}){star}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)

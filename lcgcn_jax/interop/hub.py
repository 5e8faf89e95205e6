"""Folder of a model for the Hugging Face Hub: a bundle whose model card has the metadata of the Hub.

The metadata are YAML in front of the card (https://huggingface.co/docs/hub/model-cards). `load_model` reads
the folder, and the repository that it is uploaded to.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import safe_open

from lcgcn_jax.atomic_io import writing
from lcgcn_jax.errors import InputError, count_of, one_line
from lcgcn_jax.models.bundles import (
    CARD,
    WEIGHTS,
    find_bundle,
    load_bundle,
    require_bundle_folder,
    save_bundle,
)

TAGS = ("facial-landmarks", "face-alignment", "keypoint-detection", "lcgcn", "jax", "flax")

_METADATA = re.compile(r"---\r?\n(.*?)\r?\n---\r?\n+", re.DOTALL)
_TASK = {"type": "keypoint-detection", "name": "Facial landmark detection"}
_METRICS = {
    "nme": "NME (%)",
    "fr10": "Failure rate at an NME of 10 % (%)",
    "auc10": "AUC up to an NME of 10 %",
}
# Lines of the card of a training run (`training.trainer`).
_RUN_DATA = re.compile(r"^Data: (.+?), \S+; ground-truth boxes", re.MULTILINE)
_RUN_NME = re.compile(r"^- validation/(heatmap|graph)_nme: ([\d.]+) %$", re.MULTILINE)


def write_hub_folder(
    folder: Path,
    model: str | Path,
    *,
    heatmap_only: bool = False,
    license: str | None = None,
    evaluations: Sequence[Path] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model as a folder for the Hub.

    The card of the model is kept, and so are its metadata; those of the arguments replace them.

    Args:
      model: as in `load_model`.
      heatmap_only: leave out the graph head.
      license: license of the weights, an identifier of the Hub such as `apache-2.0`; by default that in the
        card of the model, or `unknown`.
      evaluations: results of `lcgcn eval --json` for the metrics of the card. By default those in the card,
        or the validation of the training run.
      overwrite: replace the files of an existing folder.

    Returns:
      The metadata of the card.

    Raises:
      InputError: the model or a result cannot be read, or the folder exists or cannot be written.
    """
    require_bundle_folder(folder, overwrite=overwrite)
    results = [_read_evaluation(path) for path in evaluations]
    source = find_bundle(model)
    bundle = load_bundle(model)
    if heatmap_only:
        bundle = bundle.without_graph()
    card = source / CARD
    metadata, text = split_card(
        card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    )
    name = folder.absolute().name
    tags = metadata.get("tags")
    tags = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    metadata = {
        "library_name": "lcgcn_jax",
        "pipeline_tag": _TASK["type"],
        "license": "unknown",
        **metadata,
        "tags": list(dict.fromkeys([*TAGS, *tags])),
    }
    if license is not None:
        metadata = {k: v for k, v in metadata.items() if not k.startswith("license")}
        metadata["license"] = license
    if heatmap_only:  # the results in the card are those of the whole model
        metadata.pop("model-index", None)
    elif not results and "model-index" not in metadata:
        results = _validation_results(text)
    if results:
        metadata["model-index"] = [{"name": name, "results": results}]
    with safe_open(source / WEIGHTS, "np") as stored:
        kernels = {stored.get_slice(key).get_dtype() for key in stored.keys()}  # noqa: SIM118
    with writing(folder):
        save_bundle(
            folder,
            bundle,
            join_card(metadata, text or f"# {name}\n"),
            np.float16 if "F16" in kernels else np.float32,
        )
    return metadata


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """Split a model card into its metadata, which may be absent or invalid, and its text."""
    match = _METADATA.match(card)
    if match is None:
        return {}, card
    try:
        metadata = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError):  # ValueError: an invalid date
        return {}, card
    return (metadata, card[match.end() :]) if isinstance(metadata, dict) else ({}, card)


def card_metrics(card: str) -> dict[str, float]:
    """First value of each type of metric, such as `nme`, in the metadata of a model card."""
    values: dict[str, float] = {}
    for model in split_card(card)[0].get("model-index") or []:
        for result in model.get("results") or []:
            for metric in result.get("metrics") or []:
                values.setdefault(metric["type"], metric["value"])
    return values


def join_card(metadata: Mapping[str, Any], text: str) -> str:
    """Put metadata in front of the text of a model card."""
    return (
        f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)}---\n\n{text}"
    )


def _read_evaluation(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stages = content["stages"]
        values = stages["graph" if "graph" in stages else "heatmap"]
        metrics = {name: float(values[name]) for name in _METRICS if values.get(name) is not None}
        conditions = f"{content['boxes']} boxes, {count_of(content['num_faces'], 'face')}"
        for name in ("corruption", "normalizer"):
            if name in content:
                conditions += f", {name} {content[name]}"
        return _result(content["dataset"], content["split"], metrics, conditions)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a result of 'lcgcn eval --json': {one_line(error)}"
        ) from error


def _validation_results(card: str) -> list[dict[str, Any]]:
    """Result of the validation in the card of a training run; empty for another card."""
    data, errors = _RUN_DATA.search(card), dict(_RUN_NME.findall(card))
    if data is None or not errors:
        return []
    nme = float(errors["graph" if "graph" in errors else "heatmap"])
    return [_result(data[1], "validation", {"nme": nme}, "ground-truth boxes")]


def _result(
    dataset: str, split: str, metrics: Mapping[str, float], conditions: str
) -> dict[str, Any]:
    return {
        "task": dict(_TASK),  # a copy, since YAML would refer to the first one
        "dataset": {"type": dataset, "name": dataset, "split": split},
        "metrics": [
            {"type": name, "name": f"{_METRICS[name]}, {conditions}", "value": round(value, 4)}
            for name, value in metrics.items()
        ],
    }

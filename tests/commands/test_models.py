import re
from pathlib import Path

import numpy as np
import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.inference.model import load_model
from lcgcn_jax.interop.hub import card_metrics
from lcgcn_jax.models.bundles import SHIPPED, WEIGHTS, shipped_bundles


def test_shipped_models_are_listed(capsys):
    assert main(["models"]) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == shipped_bundles() != []
    pattern = r"\d+ \(\w+\) +\d+ px +[\d.]+ M +[\d.]+ MB +[\d.]+ % +0\.\d+ +[\d.]+ ms per face$"
    assert all(re.search(pattern, row) for row in rows)


def test_listed_figures_are_those_of_the_card(capsys):
    main(["models"])
    table = capsys.readouterr().out
    main(["models", "--card", "w300-lcgcn-small"])
    card = capsys.readouterr().out
    _, _, text = card.split("---\n", 2)
    (nme,) = re.findall(r"^\| `none` \| [\d.]+ \| ([\d.]+) ", text, re.MULTILINE)
    (auroc,) = re.findall(r"^\| all \| 119 \|.* ([\d.]+) \|$", text, re.MULTILINE)
    assert f" {nme} %" in table
    assert f" {auroc} " in table


def test_readme_has_the_listed_figures(capsys):
    main(["models"])
    _, *listed = capsys.readouterr().out.splitlines()
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (table,) = re.findall(r"^## Models\n(.*?)\n## ", readme, re.MULTILINE | re.DOTALL)
    assert len(listed) == len(shipped_bundles())
    for row in listed:
        name, *values = re.split(r" {2,}", re.sub(r" \((\w+)\) ", " ", row))
        (shown,) = re.findall(rf"^\| `{name}` \|.*", table, re.MULTILINE)
        figures = [
            value.removesuffix(" per face") for value in values if not value.startswith("0.")
        ]
        assert [figure for figure in figures if f" {figure} " not in shown] == []


@pytest.mark.parametrize("index", ["", "model-index:", "model-index: [{name: a, results: }]"])
def test_metrics_of_a_card_without_results(index):
    assert card_metrics(f"---\nlicense: mit\n{index}\n---\n# model") == {}


def test_metrics_that_are_not_in_the_card_are_left_out(monkeypatch, capsys):
    monkeypatch.setattr("lcgcn_jax.interop.model_table.card_metrics", lambda card: {"nme": 3.0})
    assert main(["models"]) == 0
    assert re.search(r" 3\.00 % +- +-$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_bundles())
def test_shipped_model_predicts_and_has_a_card(name, full_optimization, capsys):
    assert (SHIPPED / name / WEIGHTS).stat().st_size < 25e6
    model = load_model(name)
    crop = np.zeros((1, model.image_size, model.image_size, 3), np.uint8)
    output = model.predict_crops(crop)
    assert np.isfinite(output.landmarks).all()
    assert main(["models", "--card", name]) == 0
    card = capsys.readouterr().out
    for word in ("research", "validation", "lcgcn train"):
        assert word in card, word


def test_unknown_model_lists_the_shipped_ones(error_line):
    error = error_line("predict", "--model", "w300-lcgcn-huge", "photo.jpg")
    assert all(name in error for name in shipped_bundles())

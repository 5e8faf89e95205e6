import re

import numpy as np
import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.inference.model import load_model
from lcgcn_jax.models.bundles import SHIPPED, WEIGHTS, shipped_bundles


def test_shipped_models_are_listed(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == shipped_bundles() != []
    assert all(re.search(r"\d+ landmarks \(\w+\), crops of \d+ px, [\d.]+ MB", x) for x in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_bundles())
def test_shipped_model_predicts_and_has_a_card(name, capsys):
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

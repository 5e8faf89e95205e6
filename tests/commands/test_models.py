import re

import numpy as np
import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.inference.model import load
from lcgcn_jax.models.bundles import SHIPPED, WEIGHTS, shipped_bundles


def test_lists_what_is_shipped(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == shipped_bundles() != []
    assert all(re.search(r"\d+ landmarks \(\w+\), crops of \d+ px, [\d.]+ MB", x) for x in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_bundles())
def test_a_shipped_model_is_found_by_name_and_places_a_face(name, capsys):
    assert (SHIPPED / name / WEIGHTS).stat().st_size < 25e6
    model = load(name)
    crop = np.zeros((1, model.image_size, model.image_size, 3), np.uint8)
    output = model.predict_crops(crop)
    assert np.isfinite(output.landmarks).all()
    assert main(["models", "--card", name]) == 0
    card = capsys.readouterr().out
    for what in ("research", "validation", "lcgcn train"):
        assert what in card, what


def test_a_name_that_is_not_shipped_is_told(refused):
    said = refused("predict", "--model", "w300-lcgcn-huge", "photo.jpg")
    assert all(name in said for name in shipped_bundles())

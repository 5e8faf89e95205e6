"""The commands of docs/tutorials/labeling-loop.md, with fewer faces and steps, and a tiny model."""

import contextlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from page_commands import shortened_commands

from lcgcn_jax.commands.main import main
from lcgcn_jax.data.dataset import open_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/tutorials/labeling-loop.md"
SMALLER = ["--config.data.image_size=64", "--config.train.batch_size=4"]


def commands_of(text):
    """Commands of a block, with fewer faces and steps, and a tiny model from random weights at first."""
    for words in shortened_commands(text, faces=60, test_faces=6):
        if words[0] == "train":
            words = [w for w in words if "w300-lcgcn-small" not in w and "=backbone" not in w]
            words += [*SMALLER, "--config.model.heatmap.arch=tiny"]
        yield words


def test_page_runs(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    blocks = re.findall(r"^```(\w+)(.*)\n((?:.*\n)*?)```$", PAGE.read_text(), re.MULTILINE)
    with contextlib.chdir(tmp_path):
        for kind, title, text in blocks:
            if name := re.search(r'title="(.*)"', title):
                Path(name[1]).write_text(text)
            if kind == "python":
                runpy.run_path(name[1], run_name="__main__")
            elif kind == "sh" and not text.startswith("python benchmarks/"):
                for words in commands_of(text):
                    assert main(words) == 0, words
        assert sum(open_dataset("data/first").num_faces.values()) == 6 + 6
        dataset = open_dataset("data/all")
        assert sum(dataset.num_faces.values()) == 60 + 6
        assert set(dataset.splits) == {"train", "validation", "test"}
        for run in ("first", "all"):
            assert json.loads(Path(f"runs/{run}.json").read_text())["num_faces"] == 6
    sys.modules.pop("person", None)

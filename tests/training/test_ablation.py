import json
import signal

import numpy as np
import pytest

from lcgcn_jax.data.corruptions import CORRUPTIONS
from lcgcn_jax.errors import InputError
from lcgcn_jax.interrupts import Interrupted
from lcgcn_jax.landmarks import WFLW98
from lcgcn_jax.models.bundles import save_bundle
from lcgcn_jax.training import ablation
from lcgcn_jax.training.ablation import (
    PAIRS,
    ROWS,
    VariantErrors,
    markdown,
    summarize,
    variant_config,
)
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.trainer import Trainer


@pytest.fixture(scope="module")
def heatmap_run(make_tiny_config, tmp_path_factory):
    config = make_tiny_config()
    config.train.mode = "heatmap_only"
    workdir = tmp_path_factory.mktemp("heatmap") / "run"
    Trainer(config, workdir, make_mesh(1)).run()
    return workdir


@pytest.fixture
def frozen_config(tiny_config, heatmap_run):
    tiny_config.init_from = str(heatmap_run)
    tiny_config.train.mode, tiny_config.train.cache = "frozen", True
    tiny_config.data.views = 2
    return tiny_config


@pytest.mark.slow
def test_rows_are_trained_and_evaluated_once(frozen_config, tmp_path, monkeypatch):
    rows = ["paper", "offsets-static"]
    results = ablation.run_ablation(frozen_config, tmp_path / "out", rows=rows, seeds=2)
    assert list(results) == rows
    for errors in results.values():
        assert list(errors.graph) == list(CORRUPTIONS)
        for kind, graph in errors.graph.items():
            assert graph.shape == (2, *errors.heatmap[kind].shape)
            assert np.isfinite(graph).all()
        assert not np.array_equal(*errors.graph["none"]), "two seeds"
    paper, offsets = results["paper"], results["offsets-static"]
    assert not np.array_equal(paper.heatmap["none"], paper.heatmap["occlude"])
    assert not np.array_equal(paper.heatmap["none"], offsets.heatmap["none"]), "argmax and dark"

    for field, value in (("views", 3), ("dir", "elsewhere")):
        other = frozen_config.copy_and_resolve_references()
        other.data[field] = value
        with pytest.raises(
            InputError, match=rf"seed0: finished with another config .*data\.{field}"
        ):
            ablation.run_ablation(other, tmp_path / "out", rows=rows, seeds=2)
    monkeypatch.setattr(ablation, "Trainer", None)
    again = ablation.run_ablation(frozen_config, tmp_path / "out", rows=rows, seeds=2)
    np.testing.assert_array_equal(again["paper"].graph["blur"], results["paper"].graph["blur"])
    (tmp_path / "out" / "paper" / "seed1" / ablation.RESULT).write_text('{"heatmap": {')
    with pytest.raises(InputError, match=r"seed1/\w+\.json: damaged; delete it"):
        ablation.run_ablation(frozen_config, tmp_path / "out", rows=rows, seeds=2)


@pytest.mark.slow
def test_errors_of_a_row_equal_those_of_its_model(frozen_config, tmp_path):
    config = variant_config(frozen_config, ROWS["residual"], 0)
    ablation.run_ablation(frozen_config, tmp_path / "out", rows=["residual"], seeds=1)
    errors_of_row = json.loads(
        (tmp_path / "out" / "residual" / "seed0" / ablation.RESULT).read_text()
    )
    config.train.cache = False
    config.init_from = str(tmp_path / "out" / "residual" / "seed0")
    config.init_scope = "whole"
    plain = Trainer(config, tmp_path / "plain", make_mesh(1)).prepare()
    # The best validation of such a short run is the last one, so its bundle has the evaluated weights.
    for kind in ("none", "noise"):
        errors = plain.validate(kind)
        np.testing.assert_allclose(errors_of_row["graph"][kind], errors.graph, rtol=1e-4)
        np.testing.assert_allclose(errors_of_row["heatmap"][kind], errors.heatmap, rtol=1e-4)


def test_variant_config_resets_varied_fields_to_the_paper(tiny_config, random_bundle, tmp_path):
    save_bundle(tmp_path, random_bundle(tiny_config.model.to_dict(), WFLW98, 32), "")
    tiny_config.init_from = str(tmp_path)
    tiny_config.model.graph.message = "offset_votes"
    tiny_config.model.graph.norm = "layer"
    paper = variant_config(tiny_config, ROWS["paper"], 3)
    assert (paper.model.graph.message, paper.model.graph.output) == ("paper", "absolute")
    assert paper.model.graph.norm == "layer", "other fields are those of the config"
    assert (paper.seed, paper.model.decode) == (3, "argmax")
    assert tiny_config.seed == 0
    assert variant_config(tiny_config, ROWS["dag"], 0).model.graph.name == "dag"


def known_results():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.02, 0.08, 50)
    noise = rng.normal(0, 1e-4, 50)
    kinds = ("none", "blur")
    return {
        name: VariantErrors(
            dict.fromkeys(kinds, base),
            {k: np.stack([base * factor - 0.001, base * factor + 0.001]) + noise for k in kinds},
        )
        for name, factor in (("paper", 0.9), ("paper-static", 0.9), ("paper-none", 1.0))
    }, base


def test_summary_has_means_and_paired_differences():
    results, base = known_results()
    summary = summarize(results)
    paper = summary["rows"]["paper"]["blur"]
    assert paper["heatmap_nme"] == pytest.approx(100 * base.mean())
    assert paper["nme"] == pytest.approx(90 * base.mean(), rel=1e-2)
    assert np.diff(paper["nme_by_seed"]) == pytest.approx(0.2)
    assert paper["against_heatmap"]["percent"] == pytest.approx(-10, abs=0.1)
    low, high = paper["against_heatmap"]["points_ci95"]
    assert low < paper["against_heatmap"]["points"] < high < 0
    pairs = {(p["row"], p["against"]): p["none"]["points_ci95"] for p in summary["pairs"]}
    assert set(pairs) == {("paper", "paper-static"), ("paper-static", "paper-none")}
    assert pairs["paper", "paper-static"] == pytest.approx([0, 0], abs=1e-9)
    assert pairs["paper-static", "paper-none"][1] < 0


def test_table_stars_significant_differences():
    results, base = known_results()
    lines = markdown(summarize(results)).splitlines()
    assert lines[0] == "| NME, % | clean | blur |"
    assert f"| heatmap stage, argmax | {100 * base.mean():.3f} |" in lines[2]
    assert "± 0.141" in lines[3]
    stars = {line.split("|")[1].strip(): line.count(" *") for line in lines if line}
    assert stars["`paper` - heatmap stage"] == 2
    assert stars["`paper` - `paper-static`"] == 0


def test_pairs_name_rows():
    assert {name for pair in PAIRS for name in pair} <= set(ROWS)


@pytest.mark.slow
def test_interrupted_row_raises(frozen_config, tmp_path, monkeypatch):
    def run(self):
        self.stopped_by = signal.SIGHUP
        return False

    monkeypatch.setattr(Trainer, "run", run)
    with pytest.raises(Interrupted) as caught:
        ablation.run_ablation(frozen_config, tmp_path / "out", rows=["paper"], seeds=1)
    assert caught.value.number == signal.SIGHUP
    assert caught.value.saved == (
        f"{tmp_path}/out/paper/seed0: saved at step 0; the same command resumes the run"
    )

"""Training and evaluation with visibility labels."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lcgcn_jax.data import records
from lcgcn_jax.data.annotations import AnnotationList
from lcgcn_jax.data.corruptions import CORRUPTIONS
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.formats import wflw
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.face_errors import SplitErrors, split_errors, subset_masks
from lcgcn_jax.evaluation.predictions import with_flip_test
from lcgcn_jax.evaluation.report import format_visibility, summarize
from lcgcn_jax.inference.model import load_model
from lcgcn_jax.landmarks import WFLW98
from lcgcn_jax.models.bundles import BEST, load_bundle, save_bundle
from lcgcn_jax.models.lcgcn import LCGCNOutput
from lcgcn_jax.training import ablation
from lcgcn_jax.training.config_checks import check_config
from lcgcn_jax.training.metric_writer import read_metrics
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.trainer import Trainer

JAW = 33  # landmarks 0 to 32, not visible on any labeled face


def labels_of(number):
    """The jaw is externally occluded, the last landmark self-occluded; every third face has no labels."""
    labels = np.zeros(98, np.int8)
    labels[:JAW], labels[97] = 1, 2
    return None if number % 3 == 2 else labels


@pytest.fixture(scope="module")
def labeled98(make_once, synthetic98):
    """Synthetic faces with visibility labels that depend on the landmark."""
    faces = [
        dataclasses.replace(face, visibility=labels_of(i))
        for i, face in enumerate(wflw.read(synthetic98 / "official").faces)
    ]
    annotations = AnnotationList("wflw", WFLW98, wflw.WFLW_ATTRIBUTES, faces, [], [])
    return make_once("labeled98", lambda out: records.prepare(annotations, out))


@pytest.fixture
def visibility_config(tiny_config, labeled98):
    tiny_config.data.dir = str(labeled98)
    tiny_config.model.visibility.head = "attention"
    tiny_config.model.visibility.width = 8
    return tiny_config


def train(config, workdir):
    training = Trainer(config, workdir, make_mesh(1)).prepare()
    assert training.run()
    return training


@pytest.mark.slow
def test_training_lowers_the_loss_and_predicts(visibility_config, labeled98, tmp_path):
    train(visibility_config, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    losses = [row["train/visibility"] for row in rows if "train/visibility" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[1] < losses[0]
    assert any(0 <= row.get("validation/visibility_auroc", -1) <= 100 for row in rows)
    assert load_bundle(tmp_path / "run" / BEST).has_visibility

    model, dataset = load_model(tmp_path / "run"), open_dataset(labeled98)
    errors = split_errors(model.predict_crops, dataset, "test", image_size=32, batch_size=8)
    assert errors.visibility.shape == errors.visibility_labels.shape == (24, 98)
    result = json.loads(json.dumps(summarize(dataset, "test", errors, boxes="gt").to_dict()))
    figures = result["visibility"]
    known = (errors.visibility_labels >= 0).any(axis=1)
    assert figures["num_faces"] == known.sum() < 24
    assert figures["num_landmarks"] == 98 * known.sum()
    assert figures["not_visible"] == pytest.approx((JAW + 1) / 98)
    assert figures["subsets"].keys() <= result["subsets"].keys()
    assert set(result["subsets"]["pose"]) == {"num_faces", "heatmap", "graph"}
    assert "AUROC" in format_visibility(figures)

    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    (face,) = model.predict(image, [(20, 20, 60, 60)])
    assert face.visibility.shape == (98,)
    assert model.predict_crops(np.zeros((0, 32, 32, 3), np.uint8)).visibility.shape == (0, 98)


@pytest.mark.slow
def test_labels_change_nothing_without_a_head(visibility_config, synthetic98, tmp_path):
    visibility_config.model.visibility.head = "none"
    visibility_config.train.steps = visibility_config.train.eval_every = 2
    with_labels = train(visibility_config, tmp_path / "labeled")
    visibility_config.data.dir = str(synthetic98)
    without = train(visibility_config, tmp_path / "unlabeled")
    for a, b in zip(*map(jax.tree.leaves, (with_labels.state, without.state)), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = read_metrics(tmp_path / "labeled")
    assert not any("visibility" in name for row in rows for name in row)


def test_data_without_labels_is_rejected(visibility_config, synthetic98, tmp_path):
    visibility_config.data.dir = str(synthetic98)
    with pytest.raises(
        InputError, match=r"model\.visibility\.head: no face .* has visibility"
    ) as e:
        Trainer(visibility_config, tmp_path / "run", make_mesh(1)).prepare()
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sources_with_and_without_labels(visibility_config, synthetic98, labeled98, tmp_path):
    visibility_config.data.dir = str(synthetic98)
    visibility_config.data.sources = ((str(synthetic98), 1.0), (str(labeled98), 1.0))
    visibility_config.train.steps = visibility_config.train.eval_every = 2
    train(visibility_config, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert all(0 < row["train/visibility"] < 3 for row in rows if "train/visibility" in row)
    # The validation faces have no labels.
    assert not any("validation/visibility_auroc" in row for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("graph", [{"edge_inputs": "both", "gate": "visibility"}, None])
def test_cached_training_with_the_head(visibility_config, tmp_path, graph):
    config = visibility_config
    if graph is None:
        with config.unlocked():
            config.model.graph = {"name": "dag", "width": 8, "blocks": 1, "fine_steps": 1}
    else:
        config.model.graph.update(graph)
    config.train.mode, config.data.views = "frozen", 2
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = 2
    plain = train(config, tmp_path / "plain")
    config.train.cache = True
    cached = train(config, tmp_path / "cached")
    before = Trainer(config, tmp_path / "fresh", make_mesh(1)).prepare().state.params
    for name, value in plain.state.params.items():
        trained = not np.array_equal(value, before[name])
        assert trained <= name.startswith(("graph.", "visibility.")), name
    name = "visibility.output.kernel"
    assert not np.array_equal(plain.state.params[name], before[name])
    for a, b in zip(*(read_metrics(tmp_path / run) for run in ("plain", "cached")), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"steps_per_second"}:
            assert a[key] == pytest.approx(b[key], rel=2e-3), key
    assert "train/visibility" in read_metrics(tmp_path / "cached")[0]
    assert cached.validate().visibility is not None


@pytest.mark.slow
def test_a_trained_model_gets_the_head_and_loses_it(visibility_config, tmp_path):
    config = visibility_config
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = 1
    config.model.visibility.head = "none"
    without = train(config, tmp_path / "without")
    config.init_from, config.init_scope = str(tmp_path / "without"), "whole"
    config.model.visibility.head = "attention"
    begun = Trainer(config, tmp_path / "with", make_mesh(1)).prepare()
    assert begun.start_message.endswith("; the visibility head is random")
    best = load_bundle(tmp_path / "without")
    for name in without.state.params:
        np.testing.assert_array_equal(begun.state.params[name], best.weights[name])
    begun.run()
    config.init_from = str(tmp_path / "with")
    config.model.visibility.head = "none"
    again = Trainer(config, tmp_path / "again", make_mesh(1)).prepare()
    assert again.start_message.endswith("; the visibility head is dropped")
    config.init_from = str(tmp_path / "without")
    config.model.visibility.head, config.train.mode = "attention", "heatmap_only"
    with pytest.raises(InputError, match="'heatmap_only' does not train a random one"):
        Trainer(config, tmp_path / "none", make_mesh(1)).prepare()


def test_flip_test_averages_visibility():
    mirror = np.array(WFLW98.mirror)
    plain, flipped = np.random.default_rng(0).random((2, 1, 98)).astype(np.float32)
    points, ones = np.zeros((1, 98, 2), np.float32), np.ones((1, 98), np.float32)
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)

    def predict(images):
        values = plain if np.array_equal(images, image) else flipped
        return LCGCNOutput(None, points, ones, None, points, visibility=values)

    output = with_flip_test(predict, WFLW98)(image)
    np.testing.assert_allclose(output.visibility, (plain + flipped[:, mirror]) / 2)


def test_figures_are_of_labeled_landmarks():
    labels = np.array([[0, 1, 2, -1], [-1, -1, -1, -1], [0, 0, 1, 0]], np.int8)
    visibility = np.array([[0.9, 0.3, 0.4, 0.0], [0.5] * 4, [0.8, 0.2, 0.1, 0.7]], np.float32)
    values = np.full((3, 4), 0.5, np.float32)
    errors = SplitErrors(
        np.zeros(3), None, np.ones(3, bool), values, values, None, values, visibility, labels
    )
    figures = errors.visibility_summary()
    assert (figures["num_faces"], figures["num_landmarks"]) == (2, 7)
    assert figures["not_visible"] == pytest.approx(3 / 7)
    # Of 3 x 4 pairs, two are in the wrong order: visible at 0.2 and hidden at 0.3 and 0.4.
    assert figures["auroc"] == pytest.approx(10 / 12)
    assert figures["auroc_externally_occluded"] == pytest.approx(7 / 8)
    assert figures["auroc_self_occluded"] == pytest.approx(3 / 4)
    assert figures["auroc_confidence"] == 0.5
    assert errors.visibility_summary(np.array([False, True, False])) is None
    only = errors.visibility_summary(np.array([True, False, False]))
    assert (only["auroc"], only["average_precision"]) == (1.0, 1.0)
    assert dataclasses.replace(errors, visibility=None).visibility_summary() is None
    table = format_visibility(figures | {"subsets": {"a": only | {"auroc_self_occluded": None}}})
    assert "0.8333" in table
    assert "-" in table.splitlines()[-1]


def test_ranges_of_the_fields(tiny_config):
    for field, value in (("visibility_class_weights", (1.0, 1.0)), ("visibility_weight", -1.0)):
        config = tiny_config.copy_and_resolve_references()
        config.loss[field] = value
        with pytest.raises(InputError, match=rf"config loss\.{field}: got"):
            check_config(config)
    for field, value in (("edge_inputs", "all"), ("gate", "confidence")):
        config = tiny_config.copy_and_resolve_references()
        config.model.graph[field] = value
        with pytest.raises(InputError, match=rf"config model\.graph\.{field}: got"):
            check_config(config)


@pytest.mark.slow
def test_ablation_of_edges_from_visibility(
    visibility_config, synthetic98, random_bundle, tmp_path, labeled98
):
    """Rows with a visibility head, on a mixture whose other dataset is evaluated by subset."""
    config = visibility_config
    config.data.sources = ((str(synthetic98), 1.0), (str(labeled98), 2.0))
    config.data.dir, config.data.views = str(synthetic98), 2
    config.train.mode, config.train.cache = "frozen", True
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = 2
    save_bundle(tmp_path / "model", random_bundle(config.model.to_dict(), WFLW98, 32), "")
    config.init_from = str(tmp_path / "model")
    rows = ["visible", "visible-both", "visible-static-gate"]
    assert not set(rows) & set(ablation.DEFAULT_ROWS)
    results = ablation.run_ablation(config, tmp_path / "out", rows=rows, seeds=1)
    other = open_dataset(labeled98)
    subsets = subset_masks(other, "validation")
    for name, errors in results.items():
        assert list(errors.graph) == [
            *CORRUPTIONS,
            *(str(labeled98) + end for end in ("", " occlude", *(f" {s}" for s in subsets))),
        ], name
        assert errors.graph[str(labeled98)].shape == (1, other.num_faces["validation"])
    assert len({errors.graph[str(labeled98)].tobytes() for errors in results.values()}) == len(rows)
    config.data.sources = ()
    with pytest.raises(InputError, match=r"no face of split .train. in .* has visibility labels"):
        ablation.run_ablation(config, tmp_path / "other", rows=["visible"], seeds=1)

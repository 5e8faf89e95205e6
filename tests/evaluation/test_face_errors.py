import json

import numpy as np
import pytest

from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.pipeline import eval_batches
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.face_errors import (
    SplitErrors,
    errors_of,
    split_errors,
    subset_masks,
    write_face_errors,
)
from lcgcn_jax.evaluation.report import summarize
from lcgcn_jax.models.lcgcn import LCGCNOutput


class Oracle:
    """Model that predicts the true landmarks with known shifts; it looks them up by the bytes of the crop."""

    def __init__(self, dataset, split, size, heatmap_shift, graph_shift):
        self.truth = {}
        self.crops = []
        for batch in eval_batches(dataset, split, image_size=size, batch_size=1):
            self.truth[batch["image"][0].tobytes()] = batch["landmarks"][0]
        self.shifts = heatmap_shift, graph_shift

    def __call__(self, images):
        self.crops += [image.tobytes() for image in images]
        truth = np.stack([self.truth[image.tobytes()] for image in images])
        heatmap, graph = (truth + np.float32(shift) for shift in self.shifts)
        b, k = truth.shape[:2]
        return LCGCNOutput(
            np.zeros((b, 4, 4, k), np.float32),
            heatmap,
            np.ones((b, k), np.float32),
            np.zeros((b, k, k), np.float32),
            graph,
        )


@pytest.fixture(scope="module")
def measured(synthetic98):
    """Dataset, model and errors."""
    dataset = open_dataset(synthetic98)
    oracle = Oracle(dataset, "test", 64, (3.0, 0.0), (0.0, -1.0))
    errors = split_errors(oracle, dataset, "test", image_size=64, batch_size=7)
    return dataset, oracle, errors


def official_faces(synthetic98):
    """Landmarks and attributes, read without the code of the package."""
    folder = synthetic98 / "official" / "WFLW_annotations" / "list_98pt_rect_attr_train_test"
    lines = (folder / "list_98pt_rect_attr_test.txt").read_text().splitlines()
    rows = [line.split() for line in lines]
    points = np.array([[float(v) for v in row[:196]] for row in rows]).reshape(-1, 98, 2)
    return points, np.array([[v == "1" for v in row[200:206]] for row in rows])


def test_metrics_agree_with_an_independent_computation(synthetic98, measured):
    dataset, _, errors = measured
    result = summarize(dataset, "test", errors, boxes="gt").to_dict()
    points, attributes = official_faces(synthetic98)
    # A shift of s crop pixels is s * 1.25 * (longer side of the box) / 64 pixels of the image.
    longer = np.ptp(points, axis=1).max(axis=1)
    eyes = np.linalg.norm(points[:, 60] - points[:, 72], axis=1)
    names = ["pose", "expression", "illumination", "make_up", "occlusion", "blur"]
    rows = {"all": (np.ones(len(points), bool), result["stages"])}
    rows |= {
        name: (attributes[:, i], result["subsets"][name])
        for i, name in enumerate(names)
        if attributes[:, i].any()
    }
    assert len(rows) == 7, "the synthetic test faces should have all six attributes"
    for faces, stages in rows.values():
        for stage, shift in (("heatmap", 3.0), ("graph", 1.0)):
            expected = shift * 1.25 * longer[faces] / 64 / eyes[faces]
            assert stages[stage]["nme"] == pytest.approx(100 * expected.mean(), rel=1e-4)
            assert stages[stage]["fr10"] == pytest.approx(100 * (expected > 0.1).mean())
            thresholds = np.linspace(0, 0.1, 20001)
            curve = (expected[None] <= thresholds[:, None]).mean(axis=1)
            area = np.trapezoid(curve, thresholds) / 0.1
            assert stages[stage]["auc10"] == pytest.approx(area, abs=2e-4)
            low, high = stages[stage]["nme_ci95"]
            assert low <= stages[stage]["nme"] <= high


def test_each_face_counts_once_and_padding_does_not_count(measured):
    dataset, oracle, errors = measured
    assert len(errors.heatmap) == len(errors.graph) == dataset.num_faces["test"] == 24
    assert set(oracle.crops) == set(oracle.truth)
    assert len(oracle.crops) == 28  # four batches of 7


def test_batch_size_does_not_change_the_errors(measured):
    dataset, oracle, errors = measured
    one_batch = split_errors(oracle, dataset, "test", image_size=64, batch_size=24)
    np.testing.assert_array_equal(errors.heatmap, one_batch.heatmap)


def test_json_has_the_documented_keys(measured):
    dataset, _, errors = measured
    result = json.loads(json.dumps(summarize(dataset, "test", errors, boxes="gt").to_dict()))
    assert list(result) == ["dataset", "split", "num_faces", "boxes", "stages", "subsets"]
    assert set(result["stages"]) == {"heatmap", "graph"}
    assert list(result["stages"]["graph"]) == ["nme", "nme_ci95", "fr10", "auc10"]
    for subset in result["subsets"].values():
        assert list(subset) == ["num_faces", "heatmap", "graph"]


def test_conditions_are_in_json_and_text(measured):
    dataset, _, errors = measured
    result = summarize(
        dataset,
        "test",
        errors,
        boxes="detector",
        missed=0,
        corruption="blur",
        flip_test=True,
        normalizer="box",
    )
    content = result.to_dict()
    keys = ("boxes", "missed", "corruption", "normalizer")
    assert [content[key] for key in keys] == ["detector", 0, "blur", "box"]
    first_line = str(result).splitlines()[0]
    assert first_line == (
        "synthetic test, boxes: detector (0 faces missed), flip test: yes, corrupted: blur, normalizer: box"
    )


def test_subsets_of_a_union_are_its_parts(synthetic68):
    dataset = open_dataset(synthetic68)
    masks = subset_masks(dataset, "full")
    assert masks["common"].sum() == dataset.num_faces["common"]
    assert masks["challenge"].sum() == dataset.num_faces["challenge"]
    assert not (masks["common"] & masks["challenge"]).any()
    assert masks["ibug"].tolist() == masks["challenge"].tolist()


def test_csv_column_of_a_missing_graph_is_empty(synthetic98, tmp_path):
    dataset = open_dataset(synthetic98)
    zeros = np.zeros((24, 98))
    errors = SplitErrors(
        heatmap=np.linspace(0.01, 0.24, 24),
        graph=None,
        measured=np.ones(24, bool),
        landmarks=zeros,
        confidence=zeros,
        heatmap_std=None,
        box_landmarks=zeros,
    )
    write_face_errors(tmp_path / "faces.csv", dataset, "test", errors)
    lines = (tmp_path / "faces.csv").read_text().splitlines()
    assert len(lines) == 25
    assert lines[1] == f"{dataset.source('test')[0]['name']},1.000000,"


def with_missing_eyes(batches, missing):
    """The batches without the annotation of an outer eye corner in some faces of the split."""
    for batch in batches:
        batch = {name: values.copy() for name, values in batch.items()}
        rows = np.isin(batch["record"], missing)
        batch["visible"][rows, 60] = False
        batch["source_landmarks"][rows, 60] = np.nan
        yield batch


def test_faces_without_the_normalizer_are_counted_but_not_measured(synthetic98, measured, tmp_path):
    dataset, oracle, complete = measured
    batches = eval_batches(dataset, "test", image_size=64, batch_size=7)
    missing = [3, 11, 23]
    outputs = ((oracle(batch["image"]), batch) for batch in with_missing_eyes(batches, missing))
    errors = errors_of(outputs, dataset.scheme)
    is_measured = ~np.isin(np.arange(24), missing)
    np.testing.assert_array_equal(errors.measured, is_measured)
    np.testing.assert_array_equal(errors.graph, np.where(is_measured, complete.graph, np.nan))
    np.testing.assert_array_equal(np.isnan(errors.landmarks).any(axis=1), ~is_measured)
    np.testing.assert_allclose(errors.landmarks.mean(axis=1), errors.graph)
    assert errors.heatmap_std is None
    assert errors.mean()["graph"] == pytest.approx(complete.graph[is_measured].mean())
    result = summarize(dataset, "test", errors, boxes="gt").to_dict()
    assert (result["num_faces"], result["unmeasured"]) == (21, 3)
    for name, mask in subset_masks(dataset, "test").items():
        assert result["subsets"][name]["num_faces"] == (mask & is_measured).sum()
        assert np.isfinite(result["subsets"][name]["graph"]["nme"])
    write_face_errors(tmp_path / "faces.csv", dataset, "test", errors)
    lines = (tmp_path / "faces.csv").read_text().splitlines()
    assert [line.endswith(",,") for line in lines[1:]] == (~is_measured).tolist()


def test_split_without_measurable_faces_is_an_error(measured):
    dataset, oracle, _ = measured
    batches = eval_batches(dataset, "test", image_size=64, batch_size=24)
    outputs = (
        (oracle(batch["image"]), batch) for batch in with_missing_eyes(batches, list(range(24)))
    )
    with pytest.raises(InputError, match="distance from left_eye_0 to right_eye_4, and no face"):
        errors_of(outputs, dataset.scheme)

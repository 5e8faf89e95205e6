import json

import cv2
import numpy as np
import pytest

from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.pipeline import eval_batches
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.evaluator import (
    SplitErrors,
    errors_of,
    mean_face,
    mean_face_errors,
    mean_shape,
    split_errors,
    subset_masks,
    summarize,
    with_flip_test,
    write_face_errors,
)
from lcgcn_jax.models.lcgcn import LCGCNOutput

NEVER_THERE = "left_pupil"  # in `custom29`


class Oracle:
    """Predicts the true landmarks moved by known amounts, found by the crop's bytes."""

    def __init__(self, dataset, split, size, heatmap_shift, graph_shift):
        self.truth = {}
        self.seen = []
        for batch in eval_batches(dataset, split, image_size=size, batch_size=1):
            self.truth[batch["image"][0].tobytes()] = batch["landmarks"][0]
        self.shifts = heatmap_shift, graph_shift

    def __call__(self, images):
        self.seen += [image.tobytes() for image in images]
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
    dataset = open_dataset(synthetic98)
    oracle = Oracle(dataset, "test", 64, (3.0, 0.0), (0.0, -1.0))
    errors = split_errors(oracle, dataset, "test", image_size=64, batch_size=7)
    return dataset, oracle, errors


def official_faces(synthetic98):
    """The annotation list, read by other code than the project's."""
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


def test_every_face_counts_once_and_padding_does_not(measured):
    dataset, oracle, errors = measured
    assert len(errors.heatmap) == len(errors.graph) == dataset.num_faces["test"] == 24
    assert set(oracle.seen) == set(oracle.truth)
    assert len(oracle.seen) == 28  # four batches of 7


def test_batch_size_does_not_matter(measured):
    dataset, oracle, errors = measured
    again = split_errors(oracle, dataset, "test", image_size=64, batch_size=24)
    np.testing.assert_array_equal(errors.heatmap, again.heatmap)


def test_report_has_the_contracts_form(measured):
    dataset, _, errors = measured
    result = json.loads(json.dumps(summarize(dataset, "test", errors, boxes="gt").to_dict()))
    assert list(result) == ["dataset", "split", "num_faces", "boxes", "stages", "subsets"]
    assert set(result["stages"]) == {"heatmap", "graph"}
    assert list(result["stages"]["graph"]) == ["nme", "nme_ci95", "fr10", "auc10"]
    for subset in result["subsets"].values():
        assert list(subset) == ["num_faces", "heatmap", "graph"]


def test_union_is_reported_by_part(synthetic68):
    dataset = open_dataset(synthetic68)
    masks = subset_masks(dataset, "full")
    assert masks["common"].sum() == dataset.num_faces["common"]
    assert masks["challenge"].sum() == dataset.num_faces["challenge"]
    assert not (masks["common"] & masks["challenge"]).any()
    assert masks["ibug"].tolist() == masks["challenge"].tolist()


def test_flip_test_undoes_the_mirror(synthetic98):
    dataset = open_dataset(synthetic98)
    mirror = np.array(dataset.scheme.mirror)
    rng = np.random.default_rng(0)
    landmarks = rng.uniform(0, 64, (1, 98, 2)).astype(np.float32)
    image = rng.integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)

    def predict(images):
        # What a model that is exactly equivariant would say; errors of (+1, +2) in both views.
        points = landmarks
        if not np.array_equal(images, image):
            np.testing.assert_array_equal(images[0], cv2.flip(image[0], 1))
            points = np.stack([63 - landmarks[..., 0], landmarks[..., 1]], axis=-1)[:, mirror]
        points = points + np.array([1.0, 2.0], np.float32)
        ones = np.ones((1, 98), np.float32)
        return LCGCNOutput(np.zeros((1, 2, 2, 98), np.float32), points, ones, None, points)

    output = with_flip_test(predict, dataset.scheme)(image)
    # The horizontal errors of the two views cancel; the vertical ones do not.
    np.testing.assert_allclose(output.landmarks, landmarks + np.float32([0, 2]), atol=1e-4)
    np.testing.assert_allclose(output.heatmap_landmarks, landmarks + np.float32([0, 2]), atol=1e-4)


def test_flip_test_keeps_the_side_to_which_the_annotators_lean(synthetic98):
    scheme = open_dataset(synthetic98).scheme
    mirror, offset = np.array(scheme.mirror), 0.05
    rng = np.random.default_rng(0)
    landmarks = rng.uniform(0, 64, (1, 98, 2)).astype(np.float32)
    image = rng.integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    lean = np.array([offset * 64, 0.0], np.float32)

    def predict(images):
        # What a model says that learnt to put every point to the right, of a mirrored face too.
        points = landmarks - lean
        if not np.array_equal(images, image):
            points = np.stack([63 - points[..., 0], points[..., 1]], axis=-1)[:, mirror]
        ones = np.ones((1, 98), np.float32)
        points = points + lean
        return LCGCNOutput(np.zeros((1, 2, 2, 98), np.float32), points, ones, None, points)

    output = with_flip_test(predict, scheme, offset)(image)
    np.testing.assert_allclose(output.landmarks, landmarks, atol=1e-4)
    output = with_flip_test(predict, scheme)(image)
    np.testing.assert_allclose(output.landmarks, landmarks - lean, atol=1e-4)


def test_mean_face_is_a_weak_but_sane_baseline(synthetic98):
    errors = mean_face_errors(open_dataset(synthetic98), "train", "test")
    assert 0.03 < errors.mean() < 0.4


def test_a_model_without_graph_leaves_its_column_empty(synthetic98, tmp_path):
    dataset = open_dataset(synthetic98)
    of_landmarks = np.zeros((24, 98))
    errors = SplitErrors(
        np.linspace(0.01, 0.24, 24),
        None,
        np.ones(24, bool),
        of_landmarks,
        of_landmarks,
        None,
        of_landmarks,
    )
    write_face_errors(tmp_path / "faces.csv", dataset, "test", errors)
    lines = (tmp_path / "faces.csv").read_text().splitlines()
    assert len(lines) == 25
    assert lines[1] == f"{dataset.source('test')[0]['name']},1.000000,"


def with_missing_eyes(batches, missing):
    """The batches with an outer eye corner not annotated in some faces of the split."""
    for batch in batches:
        batch = {name: values.copy() for name, values in batch.items()}
        rows = np.isin(batch["record"], missing)
        batch["visible"][rows, 60] = False
        batch["source_landmarks"][rows, 60] = np.nan
        yield batch


def test_faces_without_the_normalizer_are_left_out_and_counted(synthetic98, measured, tmp_path):
    dataset, oracle, plain = measured
    batches = eval_batches(dataset, "test", image_size=64, batch_size=7)
    missing = [3, 11, 23]
    outputs = ((oracle(batch["image"]), batch) for batch in with_missing_eyes(batches, missing))
    errors = errors_of(outputs, dataset.scheme)
    kept = ~np.isin(np.arange(24), missing)
    np.testing.assert_array_equal(errors.measured, kept)
    np.testing.assert_array_equal(errors.graph, np.where(kept, plain.graph, np.nan))
    np.testing.assert_array_equal(np.isnan(errors.landmarks).any(axis=1), ~kept)
    np.testing.assert_allclose(errors.landmarks.mean(axis=1), errors.graph)
    assert errors.heatmap_std is None
    assert errors.mean()["graph"] == pytest.approx(plain.graph[kept].mean())
    result = summarize(dataset, "test", errors, boxes="gt").to_dict()
    assert (result["num_faces"], result["unmeasured"]) == (21, 3)
    for name, mask in subset_masks(dataset, "test").items():
        assert result["subsets"][name]["num_faces"] == (mask & kept).sum()
        assert np.isfinite(result["subsets"][name]["graph"]["nme"])
    write_face_errors(tmp_path / "faces.csv", dataset, "test", errors)
    lines = (tmp_path / "faces.csv").read_text().splitlines()
    assert [line.endswith(",,") for line in lines[1:]] == (~kept).tolist()


def test_nothing_to_divide_by_is_said(measured):
    dataset, oracle, _ = measured
    batches = eval_batches(dataset, "test", image_size=64, batch_size=24)
    outputs = (
        (oracle(batch["image"]), batch) for batch in with_missing_eyes(batches, list(range(24)))
    )
    with pytest.raises(InputError, match="distance from left_eye_0 to right_eye_4, which not one"):
        errors_of(outputs, dataset.scheme)


def test_mean_face_is_of_what_is_annotated(custom29):
    dataset = open_dataset(custom29)
    source = dataset.source("train")
    faces = []
    for record in source:
        low, high = record["box"][:2], record["box"][2:]
        faces.append(np.ma.masked_invalid((record["landmarks"] - low) / (high - low)))
    whole = np.ma.stack(faces).mean(axis=0)
    assert whole.mask[:, 0].tolist() == [name == NEVER_THERE for name in dataset.scheme.names]
    np.testing.assert_allclose(mean_face(dataset, "train"), whole.filled(0.5), atol=1e-5)
    assert np.isfinite(mean_shape(dataset, "train")).all()
    errors = mean_face_errors(dataset, "train", "test")
    assert 0 < len(errors) < dataset.num_faces["test"]
    assert np.isfinite(errors).all()

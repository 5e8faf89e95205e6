"""Fit of annotation offsets."""

import types

import numpy as np
import pytest

from lcgcn_jax.data.annotation_offsets import mirrored, unit_length
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.landmarks import IBUG68, LandmarkScheme
from lcgcn_jax.training.fit_offsets import ALL, fit_annotation_offsets, fit_offsets

POSES = ("frontal", "left", "right")


def symmetric(values):
    return (values + mirrored(values, IBUG68)) / 2


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture
def shape(rng):
    """A symmetric face in the canonical frame."""
    points = symmetric(rng.normal(size=(68, 2)))
    points[36], points[45] = (-0.5, 0.0), (0.5, 0.0)
    points -= points.mean(axis=0)
    return points / unit_length(points, IBUG68)


def make_faces(shape, offsets, rng, *, noise=0.0, n=40):
    """Faces of each group: annotations are `shape` somewhere in an image, predictions lack the offsets."""
    annotated, predicted, groups = [], [], []
    for name, offset in offsets.items():
        for _ in range(n):
            factor = rng.uniform(40, 200) * np.exp(1j * rng.uniform(-0.5, 0.5))
            center = rng.uniform(100, 300, 2)

            def place(points, factor=factor, center=center):
                z = (points @ [1, 1j]) * factor
                return np.stack([z.real, z.imag], axis=-1) + center

            annotated.append(place(shape))
            predicted.append(place(shape - offset + rng.normal(0, noise, shape.shape)))
            groups.append(name)
    annotated, predicted = np.stack(annotated), np.stack(predicted)
    return annotated, predicted, np.ones(annotated.shape[:2], bool), groups


def offsets_by_pose(rng, bias):
    frontal = symmetric(rng.normal(0, 0.02, (68, 2)))
    left = rng.normal(0, 0.02, (68, 2))
    offsets = {"frontal": frontal, "left": left, "right": mirrored(left, IBUG68)}
    return {name: values + np.array([bias, 0.0]) for name, values in offsets.items()}


@pytest.mark.parametrize("bias", [0.0, -0.01])
def test_synthetic_offsets_are_recovered_exactly(shape, rng, bias):
    offsets = offsets_by_pose(rng, bias)
    faces = make_faces(shape, offsets, rng)
    fit = fit_offsets(*faces, IBUG68)
    np.testing.assert_allclose(fit.offsets.mean_face, shape, atol=1e-6)
    assert fit.flip_bias == pytest.approx(100 * bias, abs=1e-6)
    for name, values in offsets.items():
        np.testing.assert_allclose(fit.offsets.groups[name], values, atol=1e-6)
    np.testing.assert_allclose(fit.offsets.default, offsets["frontal"], atol=1e-6)
    for annotated, predicted, group in zip(faces[0], faces[1], faces[3], strict=True):
        corrected = fit.offsets.remove(annotated, np.ones(68, bool), [group])
        np.testing.assert_allclose(corrected, predicted, atol=1e-4)
    assert [group.name for group in fit.groups] == [*POSES, ALL]
    assert all(group.before > 1 and group.after < 1e-4 for group in fit.groups)


def test_mirrored_poses_have_mirrored_offsets_except_for_the_bias(shape, rng):
    offsets = offsets_by_pose(rng, 0.01)
    fit = fit_offsets(*make_faces(shape, offsets, rng, noise=0.02), IBUG68)
    bias = np.array([fit.flip_bias / 100, 0.0])
    assert fit.flip_bias == pytest.approx(1.0, abs=0.2)
    groups = {name: values - bias for name, values in fit.offsets.groups.items()}
    np.testing.assert_allclose(groups["left"], mirrored(groups["right"], IBUG68), atol=1e-12)
    np.testing.assert_allclose(groups["frontal"], mirrored(groups["frontal"], IBUG68), atol=1e-12)
    for name, values in offsets.items():
        assert np.abs(fit.offsets.groups[name] - values).mean() < 0.005


def test_insignificant_bias_is_zero(shape, rng):
    fit = fit_offsets(*make_faces(shape, {"": np.zeros((68, 2))}, rng, noise=0.02), IBUG68)
    assert fit.flip_bias == 0
    assert fit.flip_bias_error > 0


def test_mirrored_poses_share_their_faces(shape, rng):
    """With 20 faces of each side, there are 40 for the offsets of both."""
    offsets = offsets_by_pose(rng, 0.0)
    faces = make_faces(shape, {"left": offsets["left"], "right": offsets["right"]}, rng, n=20)
    fit = fit_offsets(*faces, IBUG68, min_count=40)
    np.testing.assert_allclose(fit.offsets.groups["left"], offsets["left"], atol=1e-6)
    frontal = make_faces(shape, {"frontal": offsets["frontal"]}, rng, n=20)
    *arrays, groups = zip(faces, frontal, strict=True)
    more = [np.concatenate(pair) for pair in arrays]
    fit = fit_offsets(*more, groups[0] + groups[1], IBUG68, min_count=40)
    assert {g.name: g.num_fitted for g in fit.groups} == {
        "frontal": 0,
        "left": 68,
        "right": 68,
        ALL: 68,
    }


def test_landmarks_with_too_few_faces_have_the_offset_of_frontal_faces(shape, rng):
    offsets = offsets_by_pose(rng, 0.01)
    annotated, predicted, located, groups = make_faces(shape, offsets, rng)
    is_left, is_right = np.array(groups) == "left", np.array(groups) == "right"
    located[np.ix_(is_left, [0, 36])] = False
    located[np.ix_(is_right, [16, 45])] = False
    annotated = np.where(located[..., None], annotated, np.nan)
    fit = fit_offsets(annotated, predicted, located, groups, IBUG68)
    for name, missing in (("left", [0, 36]), ("right", [16, 45])):
        fitted = fit.offsets.groups[name]
        np.testing.assert_allclose(fitted[missing], offsets["frontal"][missing], atol=1e-6)
        others = np.delete(np.arange(68), missing)
        np.testing.assert_allclose(fitted[others], offsets[name][others], atol=1e-6)
    report = {group.name: group for group in fit.groups}
    assert (report["left"].num_fitted, report["left"].fallback) == (66, "of frontal")
    assert (report["frontal"].num_fitted, report["frontal"].fallback) == (68, "")


def test_pose_on_which_the_model_fails_gets_a_constant_offset(shape, rng):
    offsets = offsets_by_pose(rng, -0.01)
    faces = make_faces(shape, offsets, rng, noise=0.01)
    for i, group in enumerate(faces[3]):
        if group != "frontal":
            faces[1][i] += rng.normal(0, 20, (68, 2))
    fit = fit_offsets(*faces, IBUG68)
    for name in ("left", "right"):
        values = fit.offsets.groups[name]
        assert np.ptp(values, axis=0).max() < 1e-12
        assert values[0, 1] == pytest.approx(np.median(offsets["frontal"][:, 1]), abs=0.003)
    assert {g.name: g.fallback for g in fit.groups} == {
        "frontal": "", "left": "constant", "right": "constant", ALL: "",
    }  # fmt: skip


def test_outliers_are_ignored(shape, rng):
    offset = symmetric(rng.normal(0, 0.02, (68, 2)))
    faces = make_faces(shape, {"": offset}, rng)
    faces[1][:8] += 100
    np.testing.assert_allclose(fit_offsets(*faces, IBUG68).offsets.default, offset, atol=1e-6)


def test_scheme_without_mirror_pairs(rng):
    scheme = LandmarkScheme.from_dict({"name": "plain", "num_landmarks": 9})
    shape, offset = rng.normal(size=(9, 2)), rng.normal(0, 0.02, (9, 2))
    shape = (shape - shape.mean(axis=0)) / unit_length(shape, scheme)
    annotated, predicted, located, groups = make_faces(shape, {"": offset}, rng)
    fit = fit_offsets(annotated, predicted, located, groups, scheme)
    assert fit.flip_bias == 0
    corrected = fit.offsets.remove(annotated[0], located[0])
    np.testing.assert_allclose(corrected, predicted[0], atol=1e-6)


def test_too_few_faces_raise(shape, rng):
    faces = make_faces(shape, {"": np.zeros((68, 2))}, rng, n=20)
    with pytest.raises(
        ValueError, match="20 training faces with at least 8 located landmarks, fewer"
    ):
        fit_offsets(*faces, IBUG68)


def test_fit_uses_only_training_faces(synthetic98):
    dataset = open_dataset(synthetic98)
    seen = 0

    def predict(images):
        nonlocal seen
        seen += len(images)
        return types.SimpleNamespace(landmarks=np.zeros((len(images), 98, 2)))

    count = dataset.num_faces["train"]
    fit_annotation_offsets(predict, dataset, image_size=16, batch_size=1, min_count=1)
    assert seen == count

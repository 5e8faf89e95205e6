"""Tests of `data.annotation_offsets`: removal from landmarks, files, and records without offsets."""

import json
import pickle

import numpy as np
import pytest

from lcgcn_jax import geometry
from lcgcn_jax.data.annotation_offsets import (
    AnnotationOffsets,
    mean_face,
    mirrored,
    read_offsets,
    unit_length,
)
from lcgcn_jax.data.pipeline import eval_batches
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import IBUG68, LandmarkScheme

RNG = np.random.default_rng(0)
ALL_LOCATED = np.ones(68, bool)
PLAIN = LandmarkScheme.from_dict({"name": "plain", "num_landmarks": 9})


def symmetric_face():
    """Mirror-symmetric shape of 68 points in the canonical frame."""
    shape = RNG.normal(size=(68, 2))
    shape[36], shape[45] = (-0.5, 0.0), (0.5, 0.0)
    shape = (shape + mirrored(shape, IBUG68)) / 2
    shape -= shape.mean(axis=0)
    return shape / unit_length(shape, IBUG68)


def similarity(degrees, scale, shift):
    cos, sin = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


@pytest.fixture
def offsets():
    small = RNG.normal(0, 0.02, (2, 68, 2))
    return AnnotationOffsets("ibug68", symmetric_face(), small[0], {"left": small[1]})


def test_mean_face_of_similar_faces_is_their_shape():
    shape = symmetric_face()
    faces = np.stack(
        [
            geometry.transform_points(similarity(*RNG.normal(0, 10, 1), s, (3 * s, s)), shape)
            for s in (1.0, 50.0, 200.0, 5.0)
        ]
    )
    result = mean_face(faces, IBUG68)
    np.testing.assert_allclose(result, shape, atol=0.02)
    np.testing.assert_allclose(result, mirrored(result, IBUG68), atol=1e-12)
    assert np.linalg.norm(result[36] - result[45]) == pytest.approx(1)


def test_mean_face_without_mirror_pairs_is_not_symmetric():
    shape = RNG.normal(size=(9, 2))
    result = mean_face(np.stack([shape, 2 * shape, shape + 5]), PLAIN)
    expected = (shape - shape.mean(axis=0)) / unit_length(shape, PLAIN)
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_offsets_are_rotated_and_scaled_with_the_face(offsets):
    affine = similarity(40, 130.0, (200, 100))
    moved = geometry.transform_points(affine, offsets.mean_face)
    result = offsets.remove(moved, ALL_LOCATED)
    expected = geometry.transform_points(affine, offsets.mean_face - offsets.default)
    np.testing.assert_allclose(result, expected, atol=1e-9)
    left = offsets.remove(moved, ALL_LOCATED, ["blurred", "left"])
    expected = geometry.transform_points(affine, offsets.mean_face - offsets.groups["left"])
    np.testing.assert_allclose(left, expected, atol=1e-9)


def test_face_in_several_groups_has_the_default_offsets(offsets):
    both = AnnotationOffsets(
        "ibug68",
        offsets.mean_face,
        offsets.default,
        {**offsets.groups, "dark": offsets.default * 2},
    )
    assert both.of(["left", "dark"]) is both.default
    assert both.of([]) is both.default
    assert both.of(["unknown"]) is both.default


def test_missing_landmarks_stay_missing(offsets):
    points = 100 * offsets.mean_face.astype(np.float32)
    located = ALL_LOCATED.copy()
    located[[0, 5, 40]] = False
    whole = offsets.remove(points, ALL_LOCATED)
    points[~located] = np.nan
    part = offsets.remove(points, located)
    assert part.dtype == np.float32
    assert np.isnan(part[~located]).all()
    np.testing.assert_allclose(part[located], whole[located], atol=1e-4)


def test_face_with_few_located_landmarks_is_unchanged(offsets):
    points = 100 * offsets.mean_face
    located = np.arange(68) < 7
    np.testing.assert_array_equal(offsets.remove(points, located), points)
    located = np.arange(68) < 8
    assert not np.array_equal(offsets.remove(points, located), points)


def test_file_round_trip(offsets, tmp_path):
    path = tmp_path / "offsets.json"
    path.write_text(json.dumps(offsets.to_dict()))
    result = read_offsets(path, IBUG68)
    assert result.to_dict() == offsets.to_dict()
    assert result.digest == offsets.digest


def test_digest_depends_only_on_offsets(offsets):
    fields = offsets.to_dict()
    other = AnnotationOffsets.from_dict(fields | {"about": {"dataset": "other"}})
    assert other.digest == offsets.digest
    fields["default"][3][0] += 1e-9
    assert AnnotationOffsets.from_dict(fields).digest != offsets.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f | {"scheme": "wflw98"},
            "offsets of 68 landmarks \\(wflw98\\), but the data has 68",
        ),
        (lambda f: f | {"default": f["default"][:5]}, "default: expected an array"),
        (lambda f: f | {"default": 5}, "not a file of annotation offsets"),
        (lambda f: f | {"groups": [1]}, "not a file of annotation offsets"),
        (lambda f: f | {"groups": {"left": [[None, 0]] * 68}}, "left: a value is not finite"),
        (lambda f: f | {"mean_face": [[0, 0]] * 68}, "mean_face: has no extent"),
        (lambda f: {k: v for k, v in f.items() if k != "mean_face"}, "no 'mean_face'"),
        (lambda f: [], "not a file of annotation offsets"),
    ],
)
def test_corrupt_file_raises_a_one_line_error(offsets, tmp_path, change, message):
    path = tmp_path / "offsets.json"
    path.write_text(json.dumps(change(offsets.to_dict())))
    with pytest.raises(InputError, match=message) as error:
        read_offsets(path, IBUG68)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_or_binary_file_raises(tmp_path):
    with pytest.raises(InputError, match=r"gone\.json: cannot be read"):
        read_offsets(tmp_path / "gone.json", IBUG68)
    (tmp_path / "text.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="not a file of annotation offsets"):
        read_offsets(tmp_path / "text.json", IBUG68)


def test_offsets_are_removed_from_records_and_batches(maker, tmp_path):
    path = maker.image("a.png")
    flags = [(True, False), (False, True), (True, False)]
    faces = [
        maker.face(path, name=f"{i}.png", attributes=flag, center=(40.0 + i, 40.0), group=str(i))
        for i, flag in enumerate(flags)
    ]
    faces[2].landmarks[4], faces[2].visible[4] = np.nan, False
    annotations = maker.annotations(faces, attribute_names=("front", "side"))
    dataset = maker.prepared(annotations)
    shape = np.array([[-0.5, -0.5], [0.5, -0.5], [0.0, 0.0], [-0.4, 0.5], [0.4, 0.5]])
    side = np.full((5, 2), [0.1, -0.05])
    offsets = AnnotationOffsets("five", shape, np.zeros((5, 2)), {"side": side})
    file = tmp_path / "offsets.json"
    file.write_text(json.dumps(offsets.to_dict()))
    moved = dataset.without_offsets(file)
    for split in dataset.splits:
        before = {r["name"]: r for r in dataset.source(split)}
        source = pickle.loads(pickle.dumps(moved.source(split)))
        for record in source:
            shift = [3.2, -1.6] if record["name"] == "1.png" else [0, 0]
            plain = before[record["name"]]
            np.testing.assert_allclose(
                record["landmarks"], plain["landmarks"] - np.float32(shift), atol=1e-4
            )
            np.testing.assert_allclose(record["box"], plain["box"] - np.tile(shift, 2), atol=1e-4)
            assert record["landmarks"].dtype == plain["landmarks"].dtype
        for batch in eval_batches(moved, split, image_size=16, batch_size=2):
            for name, points in zip(batch["name"], batch["source_landmarks"], strict=True):
                shift = [3.2, -1.6] if name == "1.png" else [0, 0]
                expected = faces[int(name[0])].landmarks - shift
                np.testing.assert_allclose(points, expected, atol=1e-4)

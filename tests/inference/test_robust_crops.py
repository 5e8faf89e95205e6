import dataclasses

import numpy as np
import pytest

from lcgcn_jax import geometry
from lcgcn_jax.inference import robust_crops
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.uncertainty import UncertaintyModel

SCHEME = LandmarkScheme.from_dict(
    {"name": "five", "num_landmarks": 5, "mirror_pairs": [[1, 0], [4, 3]], "normalizer": [0, 1]}
)
# Eyes, nose, corners of the mouth; the left one of a pair in the image has the larger index.
FACE = np.array([[130.0, 80], [70, 80], [100, 110], [120, 140], [80, 140]])
CALIBRATION = UncertaintyModel(
    0.0, 1.0, np.zeros(5), np.array([0.0, 1.0]), np.array([2.0, 12.0]), fitted_on={}
)


def percent_error(percent, landmarks, scheme, calibration):
    return robust_crops.final_errors(percent, landmarks, scheme, calibration)[0]


def rotate(points, degrees):
    """Rotate points clockwise about the origin of the image."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[cos, sin], [-sin, cos]])


@pytest.mark.parametrize("degrees", [-170.0, -90.0, -40.0, 0.0, 20.0, 90.0, 135.0])
@pytest.mark.parametrize("off", [-50.0, 0.0, 50.0])
def test_roll_is_the_angle_of_the_mirror_pairs(degrees, off):
    angle = robust_crops.roll(rotate(FACE, degrees), SCHEME, near=degrees + off)
    assert abs((angle - degrees + 180) % 360 - 180) < 1e-6


def test_roll_without_mirror_pairs_is_the_rough_angle():
    scheme = LandmarkScheme.from_dict({"name": "five", "num_landmarks": 5, "normalizer": "box"})
    assert robust_crops.roll(FACE, scheme, near=-90.0) == -90.0


@pytest.mark.parametrize("degrees", [-120.0, 0.0, 75.0])
def test_upright_crop_equals_the_crop_of_the_upright_face(degrees):
    affine = robust_crops.upright_crop(rotate(FACE, degrees), degrees, 64)
    box = geometry.box_of_landmarks(FACE, np.ones(5, bool))
    upright = geometry.transform_points(geometry.crop_transform(box, 64), FACE)
    np.testing.assert_allclose(
        geometry.transform_points(affine, rotate(FACE, degrees)), upright, atol=1e-6
    )


@pytest.mark.parametrize("degrees", [-170.0, -60.0, 0.0, 100.0])
def test_crop_around_landmarks_is_upright(degrees):
    """The crop in which the face was predicted resolves which of two opposite rotations is meant."""
    rolled = rotate(FACE, degrees)
    predicted_in = geometry.crop_transform(np.array([0.0, 0, 99, 99]), 64, rotation=30 - degrees)
    affine = robust_crops.crop_around(rolled, SCHEME, 64, predicted_in)
    assert robust_crops.rotation_of(affine) == pytest.approx(-degrees)
    expected = robust_crops.crop_around(FACE, SCHEME, 64)
    np.testing.assert_allclose(
        geometry.transform_points(affine, rolled),
        geometry.transform_points(expected, FACE),
        atol=1e-6,
    )


def test_coinciding_landmarks_have_no_crop():
    assert robust_crops.upright_crop(np.full((5, 2), 3.0), 0.0, 64) is None


@pytest.mark.parametrize(
    ("error", "uncertain"), [(2.0, False), (5.7, False), (5.9, True), (12.0, True)]
)
def test_face_is_uncertain_in_the_upper_part_of_the_range(error, uncertain):
    assert robust_crops.is_uncertain(np.full(5, error), CALIBRATION) == uncertain


def test_range_of_a_calibration_of_hard_faces_is_limited():
    hard = dataclasses.replace(CALIBRATION, errors=np.array([2.0, 40.0]))
    assert not robust_crops.is_uncertain(np.full(5, 8.0), hard)
    assert robust_crops.is_uncertain(np.full(5, 8.2), hard)
    error = percent_error(np.full(5, 16.0), FACE, SCHEME, hard)
    assert error.max() > 50


def test_constant_calibration_makes_no_face_uncertain():
    flat = UncertaintyModel(0.0, 0.0, np.zeros(5), np.array([0.0]), np.array([4.0]), fitted_on={})
    assert not robust_crops.is_uncertain(np.full(5, 4.0), flat)


def test_error_of_a_certain_face_is_unchanged():
    percent = np.array([2.0, 3.0, 9.0, 5.0, 4.0])
    np.testing.assert_array_equal(percent_error(percent, FACE, SCHEME, CALIBRATION), percent)


def test_error_of_a_failed_face_is_that_of_a_random_orientation():
    """The mean distance of a point from its rotated position, over all angles."""
    angles = np.linspace(0, 360, 3600, endpoint=False)
    centered = FACE - FACE.mean(axis=0)
    moved = np.mean(
        [np.linalg.norm(rotate(centered, a) - centered, axis=1) for a in angles], axis=0
    )
    error = percent_error(np.full(5, 12.0), FACE, SCHEME, CALIBRATION)
    # The eye distance is 60 px. The nose, in the center, keeps the error of the calibration.
    np.testing.assert_allclose(error, np.maximum(100 * moved / 60, 12.0), rtol=1e-3)


def test_error_increases_with_the_uncertainty_of_the_face():
    errors = [
        percent_error(np.full(5, mean), FACE, SCHEME, CALIBRATION).mean()
        for mean in np.linspace(2, 12, 50)
    ]
    assert (np.diff(errors) > 0).all()
    assert errors[-1] > 5 * 12


@pytest.mark.parametrize("normalizer", ["box", "given"])
def test_error_of_a_failed_face_is_large_for_every_normalizer(normalizer):
    scheme = LandmarkScheme.from_dict(
        {"name": "five", "num_landmarks": 5, "normalizer": normalizer}
    )
    error = percent_error(np.full(5, 12.0), FACE, scheme, CALIBRATION)
    assert 40 < error.mean() < 200
    collapsed = percent_error(np.full(5, 12.0), np.zeros((5, 2)), scheme, CALIBRATION)
    np.testing.assert_array_equal(collapsed, 12.0)


def test_predicted_error_in_pixels():
    """For a certain face, percent times the eye distance; for a failed one, that of a random orientation."""

    def pixel_error(percent, landmarks, scheme=SCHEME):
        return robust_crops.final_errors(percent, landmarks, scheme, CALIBRATION)[1]

    certain = np.array([2.0, 3.0, 4.0, 5.0, 6.0])
    pixels = pixel_error(certain, FACE)
    np.testing.assert_allclose(pixels, 0.6 * certain)
    failed = pixel_error(np.full(5, 12.0), FACE)
    radius = np.linalg.norm(FACE - FACE.mean(axis=0), axis=1)
    np.testing.assert_allclose(failed, np.maximum(7.2, 4 / np.pi * radius))
    np.testing.assert_allclose(pixel_error(certain, 3 * FACE), 3 * pixels)
    np.testing.assert_array_equal(pixel_error(certain, np.ones((5, 2))), 0)
    scheme = LandmarkScheme.from_dict({"name": "five", "num_landmarks": 5, "normalizer": "given"})
    assert pixel_error(certain, FACE, scheme) is None

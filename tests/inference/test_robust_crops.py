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
# Eyes, nose, corners of the mouth; the viewer's left one of a pair has the larger index.
FACE = np.array([[130.0, 80], [70, 80], [100, 110], [120, 140], [80, 140]])
CALIBRATION = UncertaintyModel(
    0.0, 1.0, np.zeros(5), np.array([0.0, 1.0]), np.array([2.0, 12.0]), fitted_on={}
)


def turn(points, degrees):
    """Turns points clockwise about the origin of the image."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[cos, sin], [-sin, cos]])


@pytest.mark.parametrize("degrees", [-170.0, -90.0, -40.0, 0.0, 20.0, 90.0, 135.0])
@pytest.mark.parametrize("off", [-50.0, 0.0, 50.0])
def test_roll_is_the_angle_of_the_mirror_pairs(degrees, off):
    angle = robust_crops.roll(turn(FACE, degrees), SCHEME, near=degrees + off)
    assert abs((angle - degrees + 180) % 360 - 180) < 1e-6


def test_roll_without_mirror_pairs_is_the_rough_one():
    scheme = LandmarkScheme.from_dict({"name": "five", "num_landmarks": 5, "normalizer": "box"})
    assert robust_crops.roll(FACE, scheme, near=-90.0) == -90.0


@pytest.mark.parametrize("degrees", [-120.0, 0.0, 75.0])
def test_upright_crop_is_that_of_the_upright_face(degrees):
    affine = robust_crops.upright_crop(turn(FACE, degrees), degrees, 64)
    box = geometry.box_of_landmarks(FACE, np.ones(5, bool))
    upright = geometry.transform_points(geometry.crop_transform(box, 64), FACE)
    np.testing.assert_allclose(
        geometry.transform_points(affine, turn(FACE, degrees)), upright, atol=1e-6
    )


def test_landmarks_in_one_place_have_no_crop():
    assert robust_crops.upright_crop(np.full((5, 2), 3.0), 0.0, 64) is None


@pytest.mark.parametrize(
    ("error", "uncertain"), [(2.0, False), (6.9, False), (7.1, True), (12.0, True)]
)
def test_face_is_uncertain_above_the_middle_of_the_range(error, uncertain):
    assert robust_crops.is_uncertain(np.full(5, error), CALIBRATION) == uncertain


def test_calibration_of_hard_faces_knows_larger_errors_than_uncertain_faces_have():
    hard = dataclasses.replace(CALIBRATION, errors=np.array([2.0, 40.0]))
    assert not robust_crops.is_uncertain(np.full(5, 9.9), hard)
    assert robust_crops.is_uncertain(np.full(5, 10.1), hard)
    error = robust_crops.honest_error(np.full(5, 16.0), FACE, SCHEME, hard)
    assert error.max() > 50


def test_calibration_of_one_error_makes_no_face_uncertain():
    flat = UncertaintyModel(0.0, 0.0, np.zeros(5), np.array([0.0]), np.array([4.0]), fitted_on={})
    assert not robust_crops.is_uncertain(np.full(5, 4.0), flat)


def test_expected_error_of_a_certain_face_stays():
    expected = np.array([2.0, 3.0, 9.0, 5.0, 4.0])
    np.testing.assert_array_equal(
        robust_crops.honest_error(expected, FACE, SCHEME, CALIBRATION), expected
    )


def test_error_of_a_failed_face_is_that_of_an_unknown_orientation():
    """The mean distance of a point to itself turned by any angle."""
    angles = np.linspace(0, 360, 3600, endpoint=False)
    centered = FACE - FACE.mean(axis=0)
    moved = np.mean([np.linalg.norm(turn(centered, a) - centered, axis=1) for a in angles], axis=0)
    error = robust_crops.honest_error(np.full(5, 12.0), FACE, SCHEME, CALIBRATION)
    # 60 px between the eyes. The nose, in the center, keeps the error of the calibration.
    np.testing.assert_allclose(error, np.maximum(100 * moved / 60, 12.0), rtol=1e-3)


def test_error_rises_with_the_uncertainty_of_the_face():
    errors = [
        robust_crops.honest_error(np.full(5, mean), FACE, SCHEME, CALIBRATION).mean()
        for mean in np.linspace(2, 12, 50)
    ]
    assert (np.diff(errors) > 0).all()
    assert errors[-1] > 5 * 12


@pytest.mark.parametrize("normalizer", ["box", "given"])
def test_error_of_a_failed_face_is_large_for_every_normalizer(normalizer):
    scheme = LandmarkScheme.from_dict(
        {"name": "five", "num_landmarks": 5, "normalizer": normalizer}
    )
    error = robust_crops.honest_error(np.full(5, 12.0), FACE, scheme, CALIBRATION)
    assert 40 < error.mean() < 200
    collapsed = robust_crops.honest_error(np.full(5, 12.0), np.zeros((5, 2)), scheme, CALIBRATION)
    np.testing.assert_array_equal(collapsed, 12.0)


def test_predicted_error_in_pixels():
    """A certain face has percent times the eye distance, a failed one the error of a random orientation."""
    certain = np.array([2.0, 3.0, 4.0, 5.0, 6.0])
    pixels = robust_crops.pixel_error(certain, FACE, SCHEME, CALIBRATION)
    np.testing.assert_allclose(pixels, 0.6 * certain)
    failed = robust_crops.pixel_error(np.full(5, 12.0), FACE, SCHEME, CALIBRATION)
    radius = np.linalg.norm(FACE - FACE.mean(axis=0), axis=1)
    np.testing.assert_allclose(failed, np.maximum(7.2, 4 / np.pi * radius))
    larger = robust_crops.pixel_error(certain, 3 * FACE, SCHEME, CALIBRATION)
    np.testing.assert_allclose(larger, 3 * pixels)
    collapsed = robust_crops.pixel_error(certain, np.ones((5, 2)), SCHEME, CALIBRATION)
    np.testing.assert_array_equal(collapsed, 0)
    given = LandmarkScheme.from_dict({"name": "five", "num_landmarks": 5, "normalizer": "given"})
    assert robust_crops.pixel_error(certain, FACE, given, CALIBRATION) is None

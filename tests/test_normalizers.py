"""Normalizers that `lcgcn eval --normalizer` offers."""

import dataclasses

import numpy as np
import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import EVALUATION_NORMALIZERS, IBUG68, WFLW98, LandmarkScheme

NONE = np.array(np.nan)


def distance(scheme, points, located=None):
    located = np.ones(len(points), bool) if located is None else located
    return float(scheme.normalizing_distance(points, located, NONE))


def test_inter_pupil_of_68_landmarks_is_between_the_eye_centers():
    points = np.random.default_rng(0).normal(size=(68, 2))
    expected = np.linalg.norm(points[36:42].mean(axis=0) - points[42:48].mean(axis=0))
    scheme = IBUG68.normalized_by("inter-pupil")
    assert distance(scheme, points) == pytest.approx(expected)
    located = np.ones(68, bool)
    located[43] = False
    assert np.isnan(distance(scheme, points, located))
    located = np.ones(68, bool)
    located[0] = False
    points[0] = np.nan
    assert distance(scheme, points, located) == pytest.approx(expected)


def test_inter_pupil_of_98_landmarks_is_between_the_pupils():
    points = np.random.default_rng(0).normal(size=(98, 2))
    expected = np.linalg.norm(points[96] - points[97])
    assert distance(WFLW98.normalized_by("inter-pupil"), points) == pytest.approx(expected)


def test_outer_eye_overrides_the_normalizer_of_the_data():
    assert IBUG68.normalized_by("box").normalized_by("outer-eye") == IBUG68
    assert WFLW98.normalized_by("outer-eye") == WFLW98


def test_box_needs_no_eyes():
    points = np.array([[0.0, 0.0], [4.0, 9.0], [np.nan, np.nan]])
    scheme = LandmarkScheme.from_dict({"name": "three", "num_landmarks": 3, "normalizer": [0, 2]})
    assert distance(scheme.normalized_by("box"), points, np.array([True, True, False])) == 6.0


@pytest.mark.parametrize("name", ["outer-eye", "inter-pupil"])
def test_scheme_without_eyes_is_rejected(name):
    scheme = LandmarkScheme.from_dict({"name": "nine", "num_landmarks": 9})
    with pytest.raises(InputError, match=rf"--normalizer {name}: .*--normalizer box"):
        scheme.normalized_by(name)
    with pytest.raises(ValueError, match="inter_pupil"):
        dataclasses.replace(scheme, normalizer="inter_pupil")


@pytest.mark.parametrize("name", EVALUATION_NORMALIZERS)
def test_normalizer_survives_a_file_and_has_a_description(name):
    scheme = IBUG68.normalized_by(name)
    assert LandmarkScheme.from_dict(scheme.to_dict()) == scheme
    assert scheme.normalizer_text

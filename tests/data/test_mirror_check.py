"""Tests of `data.mirror_check`: notes about wrong mirror pairs."""

import dataclasses

import numpy as np
import pytest

from lcgcn_jax.data.mirror_check import mirror_pair_note
from lcgcn_jax.landmarks import LandmarkScheme

NAMES = ["left_eye", "right_eye", "nose", "mouth_left", "mouth_right"]
FACE = np.array([[-50.0, -40], [50, -40], [0, 5], [-30, 45], [30, 45]])


def faces(number, roll=0.0):
    """Faces of several sizes and positions, with turned heads."""
    rng = np.random.default_rng(number)
    angle = np.radians(roll)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = np.repeat(FACE[None], number, axis=0)
    points[:, 2, 0] += rng.normal(0, 10, number)
    points += rng.normal(0, 2, points.shape)
    points = points @ rotation.T * rng.uniform(0.2, 3, (number, 1, 1))
    return list(points + rng.uniform(200, 800, (number, 1, 2)))


def note_of(pairs, number=10, roll=0.0, hidden=()):
    scheme = LandmarkScheme.from_dict({"name": "five", "names": NAMES, "mirror_pairs": pairs})
    visible = np.ones((number, 5), bool)
    visible[:, list(hidden)] = False
    return mirror_pair_note(scheme, faces(number, roll), list(visible))


CORRECT_PAIRS = [[0, 1], [3, 4]]


@pytest.mark.parametrize("number", [1, 3, 10, 50])
@pytest.mark.parametrize("roll", [0, 30, -30])
def test_correct_pairs_give_no_note(number, roll):
    assert note_of(CORRECT_PAIRS, number, roll) is None


@pytest.mark.parametrize("number", [3, 10, 50])
@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ([[0, 4], [1, 3]], ["left_eye and mouth_right", "right_eye and mouth_left"]),
        ([[0, 3], [1, 4]], ["left_eye and mouth_left", "right_eye and mouth_right"]),
        ([[0, 1]], ["mouth_left (no partner)", "mouth_right (no partner)"]),
        ([[1, 2], [3, 4]], ["right_eye and nose"]),
    ],
)
def test_wrong_pairs_are_reported(number, pairs, named):
    note = note_of(pairs, number)
    assert note.startswith("five: in the mean face of ")
    for text in named:
        assert text in note
    assert "\n" not in note


def test_points_in_another_order_are_reported():
    scheme = LandmarkScheme.from_dict(
        {"name": "five", "names": NAMES, "mirror_pairs": CORRECT_PAIRS}
    )
    moved = [face[[2, 0, 1, 3, 4]] for face in faces(10)]
    assert "order of the points" in mirror_pair_note(scheme, moved, [np.ones(5, bool)] * 10)


def test_no_note_without_comparable_points():
    assert note_of([]) is None
    assert note_of(CORRECT_PAIRS, hidden=(0, 3, 4)) is None
    scheme = LandmarkScheme.from_dict(
        {"name": "five", "names": NAMES, "mirror_pairs": CORRECT_PAIRS}
    )
    assert mirror_pair_note(scheme, [], []) is None
    assert mirror_pair_note(scheme, [np.zeros((5, 2))], [np.ones(5, bool)]) is None
    assert mirror_pair_note(dataclasses.replace(scheme), [FACE], [np.zeros(5, bool)]) is None

"""Tests of `data.raw_faces`: checks over all faces of a file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lcgcn_jax.data.raw_faces import RawFace, check_boxes, check_pixels, percent_note
from lcgcn_jax.errors import InputError

POINTS = np.array([[130.0, 160], [250, 165], [190, 230], [150, 290], [240, 285]])
TIGHT = np.array([130.0, 160, 250, 290])
FILE = Path("points.csv")


def face(points=POINTS, box=None, form="corners", shift=(0, 0)):
    box = None if box is None else np.array(box, float)
    return RawFace("a.png", points + shift, np.ones(5, bool), box, form)


@pytest.mark.parametrize("scale", [1 / 400, 2 / 400])
def test_fractions_of_the_image_size_raise(scale):
    faces = [face(POINTS * scale), face(POINTS * scale * 0.9)]
    with pytest.raises(
        InputError, match=r"points\.csv: the points span 0\.\d+ px, and coord.*pixels"
    ):
        check_pixels(FILE, faces)


def test_small_faces_are_not_fractions():
    check_pixels(FILE, [face(POINTS / 20), face(POINTS * 0)])


@pytest.mark.parametrize(("side", "is_noted"), [(400, True), (110, False)])
def test_percent_of_the_image_size_gives_a_note(tmp_path, side, is_noted):
    Image.new("RGB", (side, side)).save(tmp_path / "a.png")
    note = percent_note(FILE, [face(POINTS / 4)], [tmp_path / "a.png"])
    assert (note is not None) == is_noted
    assert percent_note(FILE, [face()], [tmp_path / "a.png"]) is None


def margins(left, top, right, bottom):
    return TIGHT + np.array([-left, -top, right, bottom])


VALID_BOXES = {
    "tight": margins(0, 0, 0, 0),
    "loose": margins(40, 60, 40, 30),
    "very loose": margins(100, 110, 100, 110),
    "head": margins(20, 90, 20, 20),
    "person": margins(80, 60, 90, 900),
    "inner": margins(-10, -10, -10, -10),
    "profile": margins(0, 40, 60, 10),
}


@pytest.mark.parametrize("name", VALID_BOXES)
@pytest.mark.parametrize("shift", [(0, 0), (-100, -50), (600, 300)])
def test_valid_boxes_pass_in_every_form(name, shift):
    corners = VALID_BOXES[name] + [*shift, *shift]
    sizes = np.concatenate([corners[:2], corners[2:] - corners[:2]])
    assert check_boxes(FILE, [face(box=corners, shift=shift)]) is None
    assert check_boxes(FILE, [face(box=sizes, form="sizes", shift=shift)]) is None


@pytest.mark.parametrize("name", ["tight", "loose", "head"])
@pytest.mark.parametrize("shift", [(0, 0), (600, 300)])
def test_boxes_of_another_form_raise(name, shift):
    corners = VALID_BOXES[name] + [*shift, *shift]
    sizes = np.concatenate([corners[:2], corners[2:] - corners[:2]])
    with pytest.raises(InputError, match=r"fit .* only if they are x, y, width, height, but x0"):
        check_boxes(FILE, [face(box=sizes, shift=shift)])
    with pytest.raises(InputError, match=r"fit .* only if they are x0, y0, x1, y1, but x, y"):
        check_boxes(FILE, [face(box=corners, form="sizes", shift=shift)])


def test_boxes_in_fractions_give_a_note():
    note = check_boxes(FILE, [face(box=TIGHT / 400), face(box=TIGHT / 500)])
    assert "2 of 2 boxes hold less than half" in note


def test_boxes_without_extent_are_not_compared():
    assert check_boxes(FILE, [face(box=[130, 160, 130, 160])]) is None


def test_box_of_zeros_is_ignored():
    assert face(box=[0, 0, 0, 0]).box_corners is None
    assert check_boxes(FILE, [face(box=[0, 0, 0, 0])]) is None

import re

import numpy as np
import pytest

from lcgcn_jax.data.formats import dlib
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import IBUG68, LandmarkScheme


def box_of(points, **attributes):
    attributes = {"top": 12, "left": 10, "width": 40, "height": 45} | attributes
    parts = "".join(f"<part name='{name}' x='{x}' y='{y}'/>" for name, (x, y) in points.items())
    attribute_text = " ".join(f"{name}='{value}'" for name, value in attributes.items())
    return f"<box {attribute_text}>{parts}</box>"


def document(*images):
    body = "".join(f"<image {attributes}>{content}</image>" for attributes, content in images)
    return f"<?xml version='1.0' encoding='ISO-8859-1'?><dataset><images>{body}</images></dataset>"


def read(images, *entries, scheme, split="", **options):
    path = images.parent / "labels.xml"
    path.write_bytes(document(*entries).encode())
    return dlib.read(images, {split: path}, scheme, **options)


def test_boxes_with_parts_are_faces(images, four_points):
    scheme, points = four_points
    second = {name: (x + 100, y) for name, (x, y) in reversed(points.items())}
    del second["tip"]
    result = read(
        images,
        ("file='a.jpg' width='640' height='480'", box_of(points) + box_of(second, left=110)),
        ("file='one/b.jpg'", box_of(points)),
        scheme=scheme,
    )
    assert (result.kind, result.bad, result.notes, result.scheme) == ("dlib", [], [], scheme)
    first, other, third = result.faces
    np.testing.assert_array_equal(first.landmarks, list(points.values()))
    np.testing.assert_array_equal(first.provided_box, [10, 12, 50, 57])
    assert first.visibility.tolist() == [-1, -1, -1, -1]
    assert (first.stated_size, third.stated_size) == ((640, 480), None)
    assert (first.name, other.name) == ("train/000001:a.jpg", "train/000002:a.jpg")
    assert (third.group, third.image_path) == ("one/b.jpg", images / "one/b.jpg")
    assert other.visible.tolist() == [True, True, False, True]
    assert np.isnan(other.landmarks[2]).all()
    np.testing.assert_array_equal(other.landmarks[0], [points["left"][0] + 100, points["left"][1]])


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("spelling", ["{}", "{:02d}", "{:03d}"])
def test_numbered_parts(images, first, spelling):
    points = {spelling.format(i + first): (10 + i, 2 * i) for i in range(68)}
    result = read(images, ("file='a.jpg'", box_of(points)), scheme=IBUG68)
    np.testing.assert_array_equal(result.faces[0].landmarks, list(points.values()))


def test_landmark_names_that_are_numbers(images):
    fields = {"name": "numbers", "names": ["4", "3", "2"], "normalizer": [0, 1]}
    points = {"02": (1, 2), "3": (3, 4), "4": (5, 6)}
    result = read(images, ("file='a.jpg'", box_of(points)), scheme=LandmarkScheme.from_dict(fields))
    np.testing.assert_array_equal(result.faces[0].landmarks, [[5, 6], [3, 4], [1, 2]])


def test_count_from_and_splits(images, four_points):
    scheme, points = four_points
    result = read(
        images, ("file='a.jpg'", box_of(points)), scheme=scheme, split="test", count_from=1
    )
    assert result.faces[0].split == "test"
    np.testing.assert_array_equal(result.faces[0].landmarks, np.array(list(points.values())) - 1)
    np.testing.assert_array_equal(result.faces[0].provided_box, [9, 11, 49, 56])


def test_skipped_boxes_are_counted(images, four_points):
    scheme, points = four_points
    boxes = box_of(points, ignore=1) + box_of({}) + box_of(points)
    result = read(images, ("file='a.jpg'", boxes), ("file='one/b.jpg'", ""), scheme=scheme)
    assert len(result.faces) == 1
    path = images.parent / "labels.xml"
    assert result.notes == [
        f"{path}: 1 image without points",
        f"{path}: 2 face boxes without points",
    ]


@pytest.mark.parametrize("count_from", [0, 1])
def test_points_at_zero_or_minus_one_are_missing(images, four_points, count_from):
    scheme, points = four_points
    boxes = box_of(points | {"tip": (-1, -1)}) + box_of(points | {"left": (0, 0), "tip": (0, 5)})
    result = read(images, ("file='a.jpg'", boxes), scheme=scheme, count_from=count_from)
    first, second = result.faces
    assert first.visible.tolist() == [True, True, False, True]
    assert second.visible.tolist() == [False, True, True, True]
    np.testing.assert_array_equal(second.landmarks[2], np.array([0, 5]) - count_from)
    note = f"{images.parent / 'labels.xml'}: 1 point at (-1, -1) and 1 point at (0, 0)"
    assert f"{note} treated as missing" in result.notes


def test_utf8_file_name_in_xml_declared_as_latin_1(images, four_points):
    scheme, points = four_points
    (images / "één.jpg").write_bytes(b"")
    result = read(images, ("file='één.jpg'", box_of(points)), scheme=scheme)
    assert result.faces[0].image_path == images / "één.jpg"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (lambda p: ("file='nothing.jpg'", box_of(p)), "no image 'nothing.jpg' in images/"),
        (lambda p: ("", box_of(p)), "no image path"),
        (lambda p: ("file='one/b.jpg'", box_of(p | {"left": ("a", 1)})), "x of the part 'left'"),
        (lambda p: ("file='one/b.jpg'", box_of(p, top="")), "top of a box"),
        (
            lambda p: ("file='one/b.jpg'", box_of(p).replace("'tip'", "'chin'")),
            "2 points 'chin' in one face",
        ),
    ],
)
def test_bad_entries_are_listed(images, four_points, entry, reason):
    scheme, points = four_points
    result = read(images, ("file='a.jpg'", box_of(points)), entry(points), scheme=scheme)
    assert len(result.faces) == 1
    (bad,) = result.bad
    assert bad.name.startswith("labels.xml: ")
    assert reason in bad.reason


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            {"left": "lefd"},
            "labels.xml: a.jpg: the point label 'lefd' is not a landmark of four; did",
        ),
        ({"left": "ear"}, "'ear' is not a landmark of four; use the names in the scheme"),
        ({"left": "01", "right": "02"}, "'01' (and 1 more) is not a landmark of four"),
        (
            {"left": "0", "right": "1", "tip": "2", "chin": "9"},
            "are numbered 0 to 9, and four has 4",
        ),
        (
            {"left": "5", "right": "6", "tip": "7", "chin": "8"},
            "are numbered 5 to 8, and four has 4",
        ),
        ({"left": "1", "right": "2", "tip": "3", "chin": "03"}, "numbered 1 to 3; with neither 0"),
    ],
)
def test_wrong_labels_raise(images, four_points, names, reason):
    scheme, points = four_points
    points = {names.get(name, name): xy for name, xy in points.items()}
    with pytest.raises(InputError, match=re.escape(reason)):
        read(images, ("file='a.jpg'", box_of(points)), scheme=scheme)


def test_file_without_points_raises(images, four_points):
    for entries in ((), (("file='a.jpg'", box_of({})),)):
        with pytest.raises(InputError, match="no points in it"):
            read(images, *entries, scheme=four_points[0])


def test_scheme_with_given_normalizer_raises(images):
    fields = {"name": "four", "names": ["a", "b"], "normalizer": "given"}
    with pytest.raises(InputError, match="normalizer of four is 'given'"):
        read(images, scheme=LandmarkScheme.from_dict(fields))


def test_dlib_export_matches_the_csv(shared):
    case = shared / "cases/foreign_exports"
    result = dlib.read(shared / "data/300w/lfpw/trainset", {"": case / "dlib.xml"}, IBUG68)
    assert [face.group for face in result.faces] == ["image_0001.jpg", "image_0002.jpg"]
    for face in result.faces:
        pts = face.image_path.with_suffix(".pts").read_text().split("{")[1].split("}")[0]
        true = np.array(pts.split(), float).reshape(68, 2) - 1
        assert abs(face.landmarks - true).max() < 0.5001  # whole pixels

import csv
import re

import numpy as np
import pytest

from lcgcn_jax.data.formats import cvat
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import IBUG68, get_scheme

NOT_A_FACE = "<tag label='x'/><polygon label='x' points='1,2;3,4;5,6'/><mask label='x' rle='1'/>"


def point_of(label, *points, **attributes):
    attribute_text = " ".join(f"{name}='{value}'" for name, value in attributes.items())
    places = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return f"<points label='{label}' source='manual' {attribute_text} points='{places}'></points>"


def points_of(points, **attributes):
    return "".join(point_of(name, xy, **attributes) for name, xy in points.items())


def skeleton_of(points, missing=(), occluded=()):
    parts = (
        point_of(name, xy, outside=int(name in missing), occluded=int(name in occluded))
        for name, xy in points.items()
    )
    return f"<skeleton label='face' source='manual' z_order='0'>{''.join(parts)}</skeleton>"


def box_of(x0, y0, x1, y1, **attributes):
    attribute_text = " ".join(f"{name}='{value}'" for name, value in attributes.items())
    return f"<box label='head' {attribute_text} xtl='{x0}' ytl='{y0}' xbr='{x1}' ybr='{y1}'></box>"


def read(images, *entries, scheme, split="", **options):
    path = images.parent / "annotations.xml"
    body = "".join(
        f"<image id='0' {attribute_text}>{shapes}</image>" for attribute_text, shapes in entries
    )
    path.write_text(
        "<?xml version='1.0' encoding='utf-8'?><annotations><version>1.1</version><meta/>"
        f"{body}</annotations>"
    )
    return cvat.read(images, {split: path}, scheme, **options)


def test_shapes_that_are_no_points_are_counted(images, four_points):
    scheme, points = four_points
    line = "<polyline label='jaw' points='1,2;3,4'></polyline>"
    result = read(images, ("name='a.jpg'", skeleton_of(points) + line), scheme=scheme)
    assert len(result.faces) == 1
    assert any("1 shape of the type polyline ignored" in note for note in result.notes)


def shifted(points, by):
    return {name: [x + by, y] for name, (x, y) in points.items()}


def array(points):
    return np.array(list(points.values()))


def test_skeletons_are_faces(images, four_points):
    scheme, points = four_points
    shapes = skeleton_of(dict(reversed(points.items())), missing=["tip"], occluded=["chin"])
    result = read(
        images,
        ("name='a.jpg' width='640' height='480'", NOT_A_FACE + shapes),
        ("name='images/one/b.jpg'", skeleton_of(points) + skeleton_of(shifted(points, 100))),
        ("name='two/p.jpg'", ""),
        scheme=scheme,
    )
    assert (result.kind, result.bad) == ("cvat", [])
    assert result.notes == [f"{images.parent / 'annotations.xml'}: 1 image without points"]
    first, second, third = result.faces
    assert first.visible.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(first.landmarks[[0, 1, 3]], array(points)[[0, 1, 3]])
    assert first.visibility.tolist() == [0, 0, -1, 1]
    assert (first.stated_size, first.split) == ((640, 480), "train")
    assert (second.name, third.name) == ("train/000002:one/b.jpg", "train/000003:one/b.jpg")
    np.testing.assert_array_equal(third.landmarks, array(points) + np.array([100, 0]))


def test_points_of_an_image_or_a_group_are_faces(images, four_points):
    scheme, points = four_points
    other = shifted(points, 100)
    grouped = points_of(points, group_id=1) + points_of(other, group_id=2)
    grouped += box_of(100, 0, 200, 99, group_id=2)
    result = read(
        images,
        ("name='a.jpg'", points_of(points, group_id=0) + box_of(1, 2, 60, 70)),
        ("name='one/b.jpg'", grouped),
        scheme=scheme,
    )
    for face, want in zip(result.faces, (points, points, other), strict=True):
        np.testing.assert_array_equal(face.landmarks, array(want))
    np.testing.assert_array_equal(result.faces[0].provided_box, [1, 2, 60, 70])
    assert result.faces[1].provided_box is None
    np.testing.assert_array_equal(result.faces[2].provided_box, [100, 0, 200, 99])


def test_box_in_the_group_of_a_skeleton_is_its_face_box(images, four_points):
    scheme, points = four_points
    other = shifted(points, 100)
    first, second = (
        skeleton_of(p).replace("<skeleton", f"<skeleton group_id='{n}'")
        for n, p in ((1, points), (2, other))
    )
    one_group = first + second.replace("'2'", "'1'")
    boxes = box_of(100, 0, 200, 99, group_id=2) + box_of(1, 2, 60, 70, group_id=1)
    entries = ("name='a.jpg'", first + boxes + second), ("name='one/b.jpg'", one_group + boxes)
    result = read(images, *entries, scheme=scheme)
    assert result.bad == []
    boxes = [face.provided_box for face in result.faces]
    assert [box is None or box[0] for box in boxes] == [1, 100, True, True]


@pytest.mark.parametrize("corner", [0, -1])
def test_box_of_zeros_is_ignored(images, four_points, corner):
    scheme, points = four_points
    box = box_of(corner, corner, corner, corner)
    result = read(images, ("name='a.jpg'", points_of(points) + box), scheme=scheme)
    assert [face.provided_box for face in result.faces] == [None]


def test_points_are_grouped_by_boxes(images, four_points):
    scheme, points = four_points
    boxes = box_of(0, 0, 60, 60) + box_of(100, 0, 160, 60)
    result = read(
        images,
        ("name='a.jpg'", boxes + points_of(points) + points_of(shifted(points, 100))),
        ("name='one/b.jpg'", boxes + points_of(points)),
        ("name='two/p.jpg'", boxes + points_of(shifted(points, 30))),
        scheme=scheme,
    )
    assert [face.provided_box[0] for face in result.faces] == [0, 100, 0]
    np.testing.assert_array_equal(result.faces[1].landmarks, array(shifted(points, 100)))
    assert "'right' at (75, 21) lies in 0 of 2 face boxes; in CVAT, draw" in result.bad[0].reason


def test_shape_with_all_landmarks_is_a_face(images):
    points = [(10 + i, 2 * i) for i in range(68)]
    shapes = point_of("face", *points) + point_of("face", *reversed(points))
    result = read(images, ("name='a.jpg'", shapes), scheme=IBUG68)
    np.testing.assert_array_equal(result.faces[0].landmarks, points)
    np.testing.assert_array_equal(result.faces[1].landmarks, points[::-1])


def test_numbered_skeleton_points_count_from_one(images, four_points):
    scheme, points = four_points
    numbered = {str(i): xy for i, xy in enumerate(points.values(), start=1)}
    result = read(images, ("name='a.jpg'", skeleton_of(numbered, missing="4")), scheme=scheme)
    np.testing.assert_array_equal(result.faces[0].landmarks[:3], array(points)[:3])


def test_subsets_of_a_project_are_splits(images, four_points):
    scheme, points = four_points
    entries = [
        (f"name='a.jpg' subset='{subset}'", skeleton_of(points))
        for subset in ("Train", "Validation", "test", "default")
    ]
    result = read(images, *entries, scheme=scheme)
    assert [face.split for face in result.faces] == ["train", "validation", "test", "train"]
    result = read(images, *entries, scheme=scheme, split="test")
    assert {face.split for face in result.faces} == {"test"}


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        (lambda p: points_of(p) * 2, "2 points 'left' in one face; in CVAT, draw"),
        (lambda p: points_of(p) + skeleton_of(p), "4 points without a face, but others have one"),
        (
            lambda p: points_of(p, group_id=1) + box_of(1, 2, 3, 4, group_id=1) * 2,
            "2 boxes for one",
        ),
        (lambda p: point_of("face", *list(p.values())[:3]), "3 points in one shape 'face'"),
        (lambda p: skeleton_of(p).replace("15.50,", "15.50;"), "are not x,y;x,y"),
        (lambda p: skeleton_of(p).replace("15.50,", "nan,"), "a coordinate of 'left' is 'nan'"),
        (lambda p: points_of(p) + "<box label='x' xtl='1'/>", "ytl of a box is None"),
    ],
)
def test_bad_images_are_listed(images, four_points, shapes, reason):
    scheme, points = four_points
    result = read(
        images,
        ("name='a.jpg'", skeleton_of(points)),
        ("name='one/b.jpg'", shapes(points)),
        scheme=scheme,
    )
    assert len(result.faces) == 1
    assert result.bad[0].name == "annotations.xml: one/b.jpg"
    assert reason in result.bad[0].reason


def test_wrong_labels_or_files_raise(images, four_points):
    scheme, _ = four_points
    with pytest.raises(InputError, match=re.escape("'lefft' is not a landmark of four; did you")):
        read(images, ("name='a.jpg'", points_of({"lefft": (1, 2)})), scheme=scheme)
    with pytest.raises(InputError, match="no points in it"):
        read(images, ("name='a.jpg'", NOT_A_FACE), scheme=scheme)


def test_cvat_export_matches_the_csv(shared):
    case = shared / "cases/foreign_exports"
    scheme = get_scheme(case.parent / "five_points.yaml")
    result = cvat.read(shared / "data/300w/lfpw/trainset", {"test": case / "cvat.xml"}, scheme)
    with (case / "points.csv").open() as file:
        for row, face in zip(csv.DictReader(file), result.faces, strict=True):
            points = [[float(row[f"{axis}_{name}"]) for axis in "xy"] for name in scheme.names]
            np.testing.assert_allclose(face.landmarks, points, atol=0.01)
            assert face.group == row["image"]

import csv
import json

import numpy as np
import pytest

from lcgcn_jax.data.formats import labelme
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import get_scheme


def shape_of(label, *points, kind="point", group=None, **flags):
    fields = {"label": label, "points": [list(xy) for xy in points], "group_id": group}
    return fields | {"shape_type": kind, "flags": flags, "description": ""}


def shapes_of(points, group=None):
    return [shape_of(label, xy, group=group) for label, xy in points.items()]


def write(path, shapes, image="a.jpg", **fields):
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content | {"imageData": None} | fields))
    return path


def array(points):
    return np.array(list(points.values()))


@pytest.fixture
def labels(images):
    return images.parent / "labels"


def test_single_file(images, labels, four_points):
    scheme, points = four_points
    shapes = [shape_of("head", (60, 50), (5, 8), kind="rectangle")]
    shapes += shapes_of(dict(reversed(points.items())))
    shapes += [shape_of("hair", (1, 2), (3, 4), (5, 6), kind="polygon")]
    path = write(labels / "a.json", shapes, imageWidth=640, imageHeight=480)
    result = labelme.read(images, {"test": path}, scheme, count_from=1)
    assert (result.kind, result.bad, result.notes) == ("labelme", [], [])
    (face,) = result.faces
    np.testing.assert_array_equal(face.landmarks, array(points) - 1)
    np.testing.assert_array_equal(face.provided_box, [4, 7, 59, 49])
    assert (face.stated_size, face.split) == ((640, 480), "test")
    assert face.name == "test/000001:a.jpg"


@pytest.mark.parametrize("form", ["folder", "pattern", "files"])
def test_one_file_per_image(images, labels, four_points, form):
    scheme, points = four_points
    write(labels / "2.json", shapes_of(points), "..\\images\\one\\b.jpg")
    write(
        labels / ("1.JSON" if form == "folder" else "1.json"), shapes_of(points), "../images/a.jpg"
    )
    write(labels / "._1.json", [])
    write(labels / "3.json", [], "two/p.jpg")
    arguments = {"folder": labels, "pattern": labels / "[0-9].json"}
    arguments["files"] = [labels / f"{i}.json" for i in (1, 2, 3)]
    result = labelme.read(images, {"": arguments[form]}, scheme)
    assert [face.group for face in result.faces] == ["a.jpg", "one/b.jpg"]
    assert len(result.notes) == 1
    assert "1 image without points" in result.notes[0]


def test_files_next_to_their_images(images, four_points):
    scheme, points = four_points
    for folder in ("two", "three"):
        write(images / folder / "p.json", shapes_of(points), "p.jpg")
    result = labelme.read(images, {"": images}, scheme)
    assert [face.group for face in result.faces] == ["three/p.jpg", "two/p.jpg"]


def test_occluded_flag_sets_the_visibility(images, labels, four_points):
    scheme, points = four_points
    flags = {"left": {"occluded": True}, "right": {"occluded": False}}
    shapes = [shape_of(name, xy, **flags.get(name, {})) for name, xy in points.items()]
    result = labelme.read(images, {"": write(labels / "a.json", shapes)}, scheme)
    assert result.faces[0].visibility.tolist() == [1, 0, -1, -1]
    assert result.faces[0].visible.all()


def test_groups_are_faces(images, labels, four_points):
    scheme, points = four_points
    other = {name: (x + 100, y) for name, (x, y) in points.items() if name != "tip"}
    shapes = shapes_of(points, group=0) + shapes_of(other, group=5)
    shapes.append(shape_of("face", (110, 10), (160, 70), kind="rectangle", group=5))
    result = labelme.read(images, {"": write(labels / "a.json", shapes)}, scheme)
    first, second = result.faces
    np.testing.assert_array_equal(first.landmarks, array(points))
    assert first.provided_box is None
    assert second.visible.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(second.provided_box, [110, 10, 160, 70])


def test_image_flags_are_attributes(images, labels, four_points):
    scheme, points = four_points
    write(labels / "1.json", shapes_of(points), flags={"blur": True, "dark": False})
    write(labels / "2.json", shapes_of(points), "b.jpg", flags={"hat": True})
    write(labels / "3.json", shapes_of(points), "two/p.jpg", flags=None)
    result = labelme.read(images, {"": labels}, scheme)
    assert result.attribute_names == ("blur", "dark", "hat")
    assert [face.attributes for face in result.faces] == [
        (True, False, False),
        (False, False, True),
        (False, False, False),
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"imagePath": "nothing.jpg"}, "no image 'nothing.jpg'"),
        ({"imagePath": None}, "no image path"),
        ({"shapes": [1]}, "a shape is not an object"),
        ({"shapes": [shape_of("tip", (1, 2), (3, 4))]}, "'tip' has 2 locations"),
        ({"shapes": [shape_of("tip")]}, "not a list of x and y"),
        ({"shapes": [shape_of("tip", (1, 2, 3))]}, "not a list of x and y"),
        ({"shapes": [shape_of("tip", (1, "a"))]}, "a coordinate of 'tip' is 'a'"),
        ({"shapes": [shape_of("tip", (1, 2), group=[0])] * 2}, "2 points 'tip' in one face"),
        ({"shapes": [shape_of("tip", (1, 2))] * 2}, "2 points 'tip' in one face; in LabelMe, give"),
    ],
)
def test_bad_files_are_listed(images, labels, four_points, change, reason):
    scheme, points = four_points
    write(labels / "1.json", shapes_of(points))
    fields = {"shapes": shapes_of(points), "image": "one/b.jpg"} | change
    write(labels / "2.json", **fields)
    (labels / "3.json").write_text("{")
    (labels / "4.json").write_text('{"images": [], "annotations": []}')
    result = labelme.read(images, {"": labels}, scheme)
    assert len(result.faces) == 1
    assert {bad.name for bad in result.bad} == {"2.json", "3.json", "4.json"}
    reasons = {bad.name: bad.reason for bad in result.bad}
    assert reason in reasons["2.json"]
    assert reasons["3.json"].startswith("not JSON in UTF-8")
    assert reasons["4.json"].startswith("the format is COCO keypoints JSON")


def test_shapes_that_are_no_points_are_counted(images, labels, four_points):
    scheme, points = four_points
    line = {"label": "jaw", "points": [[1, 2], [3, 4]], "shape_type": "linestrip"}
    path = write(labels / "1.json", [*shapes_of(points), line, line])
    result = labelme.read(images, {"": path}, scheme)
    assert len(result.faces) == 1
    assert f"{path}: 2 shapes of the type linestrip ignored; a landmark is a point" in result.notes


def test_file_name_in_another_encoding(images, labels, four_points):
    scheme, points = four_points
    try:
        (images / "\udce9.jpg").write_bytes(b"")
    except (OSError, UnicodeError):
        pytest.skip("this file system has names in UTF-8 only")
    path = write(labels / "1.json", shapes_of(points), "\udce9.jpg")
    result = labelme.read(images, {"": path}, scheme)
    assert result.faces == []
    assert "is not a name in UTF-8" in result.bad[0].reason


def test_wrong_labels_or_files_raise(images, labels, four_points):
    scheme, _ = four_points
    path = write(labels / "a.json", [shape_of("chinn", (1, 2))])
    with pytest.raises(InputError, match="'chinn' is not a landmark of four; did you mean 'chin'"):
        labelme.read(images, {"": path}, scheme)
    with pytest.raises(InputError, match="no points in it"):
        labelme.read(images, {"": write(labels / "a.json", [])}, scheme)
    with pytest.raises(InputError, match="no JSON files here"):
        labelme.read(images, {"": images}, scheme)
    with pytest.raises(InputError, match="no JSON files here"):
        labelme.read(images, {"": images / "*.json"}, scheme)
    with pytest.raises(InputError, match="cannot be read"):
        labelme.read(images, {"": images / "nothing.json"}, scheme)


def test_labelme_export_matches_the_csv(shared):
    case = shared / "cases/foreign_exports"
    scheme = get_scheme(case.parent / "five_points.yaml")
    images = shared / "data/300w/lfpw/trainset"
    result = labelme.read(images, {"": case / "labelme_*.json"}, scheme)
    with (case / "points.csv").open() as file:
        for row, face in zip(csv.DictReader(file), result.faces, strict=True):
            points = [[float(row[f"{axis}_{name}"]) for axis in "xy"] for name in scheme.names]
            np.testing.assert_allclose(face.landmarks, points, atol=0.01)
            assert face.group == row["image"]

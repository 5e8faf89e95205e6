import base64
import csv
import json

import numpy as np
import pytest

from lcgcn_jax.data.formats import label_studio
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import get_scheme

SIZE = (200, 100)


def region_of(name, **fields):
    return {
        "id": name,
        "from_name": "points",
        "to_name": "image",
        "original_width": SIZE[0],
        "original_height": SIZE[1],
        "image_rotation": 0,
    } | fields


def key_point(label, xy, **fields):
    value = {"x": xy[0] / SIZE[0] * 100, "y": xy[1] / SIZE[1] * 100, "width": 0.5}
    value["keypointlabels"] = [label]
    name = f"{label}{xy}"
    return region_of(name, type="keypointlabels", value=value) | fields


def key_points(points, **fields):
    return [key_point(label, xy, **fields) for label, xy in points.items()]


def box_of(name, x, y, width, height, **value):
    scaled = {"x": x / 2, "y": y, "width": width / 2, "height": height, "rotation": 0} | value
    value = scaled | {"rectanglelabels": ["face"]}
    return region_of(name, type="rectanglelabels", value=value)


def task_of(results, image="a.jpg", **fields):
    annotations = [{"id": 7, "result": results, "was_cancelled": False}]
    return {"id": 1, "data": {"image": image}, "annotations": annotations} | fields


def shifted(points, by):
    return {name: [x + by, y] for name, (x, y) in points.items()}


def read(images, *tasks, scheme, **options):
    path = images.parent / "project.json"
    path.write_text(json.dumps(tasks))
    return label_studio.read(images, {"": path}, scheme, **options)


def check(face, points):
    np.testing.assert_allclose(face.landmarks, list(points.values()), atol=1e-9)


def test_percent_is_converted_to_pixels(images, four_points):
    scheme, points = four_points
    result = read(images, task_of(key_points(dict(reversed(points.items())))), scheme=scheme)
    assert (result.kind, result.bad, result.notes) == ("label-studio", [], [])
    check(result.faces[0], points)
    assert (result.faces[0].stated_size, result.faces[0].group) == (SIZE, "a.jpg")
    del points["tip"]
    result = read(images, task_of(key_points(points)), scheme=scheme, count_from=1)
    assert result.faces[0].visible.tolist() == [True, True, False, True]
    np.testing.assert_allclose(result.faces[0].landmarks[0], np.array(points["left"]) - 1)


def test_view_rotation_does_not_move_points(images, four_points):
    scheme, points = four_points
    for rotation in (90, 180, 270):
        turned = key_points(points, image_rotation=rotation)
        check(read(images, task_of(turned), scheme=scheme).faces[0], points)


def test_boxes_with_children_are_faces(images, four_points):
    scheme, points = four_points
    other = shifted(points, 20)
    results = [box_of("A", 0, 0, 60, 60), box_of("B", 20, 0, 60, 60)]
    results += key_points(points, parentID="A") + key_points(other, parentID="B")
    result = read(images, task_of(results[::-1]), scheme=scheme)
    by_box = {face.provided_box[0]: face for face in result.faces}
    check(by_box[0], points)
    check(by_box[20], other)
    np.testing.assert_allclose(by_box[20].provided_box, [20, 0, 80, 60])


def test_boxes_around_key_points_are_faces(images, four_points):
    scheme, points = four_points
    other = shifted(points, 100)
    boxes = [box_of("A", 10, 10, 50, 60), box_of("B", 110, 10, 50, 60)]
    result = read(images, task_of(boxes + key_points(points) + key_points(other)), scheme=scheme)
    check(result.faces[0], points)
    check(result.faces[1], other)


def test_rotated_box(images, four_points):
    scheme, points = four_points
    results = [box_of("A", 60, 10, 40, 50, rotation=90), *key_points(points)]
    result = read(images, task_of(results), scheme=scheme)
    np.testing.assert_allclose(result.faces[0].provided_box, [10, 10, 60, 50])


def test_labels_and_choices_separate_from_the_point(images, four_points):
    scheme, points = four_points
    results = []
    for label, xy in points.items():
        point = key_point(label, xy)
        place = {key: point["value"][key] for key in ("x", "y", "width")}
        results.append(point | {"type": "keypoint", "value": place})
        results.append(point | {"type": "labels", "value": place | {"labels": [label]}})
    polygon = region_of("P", type="polygonlabels", value={"points": [[1, 2]], "closed": True})
    ellipse = region_of("E", type="ellipselabels", value={"x": 1, "y": 2, "radiusX": 3})
    choice = {"id": "c", "type": "choices", "value": {"choices": ["good"]}}
    result = read(images, task_of([*results, polygon, ellipse, choice]), scheme=scheme)
    check(result.faces[0], points)


def test_occluded_choice_sets_the_visibility(images, four_points):
    scheme, points = four_points
    results = key_points(points)
    choice = results[0] | {"type": "choices", "value": {"choices": ["Occluded"]}}
    result = read(images, task_of([*results, choice]), scheme=scheme)
    check(result.faces[0], points)
    assert result.faces[0].visibility.tolist() == [1, -1, -1, -1]


def test_json_min(images, four_points):
    scheme, points = four_points
    size = {"original_width": SIZE[0], "original_height": SIZE[1]}
    values = [region["value"] | size for region in key_points(points)]
    record = {
        "id": 1,
        "image": "/data/upload/1/0123abcd-a.jpg",
        "points": values,
        "annotator": 1,
        "created_at": "2026-01-01",
    }
    other = {"id": 2, "photo": "b.jpg", "kp": values, "note": "blurred"}
    result = read(images, record, other, record, scheme=scheme)
    check(result.faces[0], points)
    check(result.faces[1], points)
    assert [face.group for face in result.faces] == ["a.jpg", "one/b.jpg"]
    assert result.bad[0].reason == "another annotation of this task; keep one of them"


S3 = base64.b64encode(b"s3://bucket/one/b.jpg").decode()


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/data/upload/1/a.jpg", "a.jpg"),
        ("/data/upload/12/0123abcd-a.jpg", "a.jpg"),
        ("/data/upload/1/0123abcd-c_d.jpg", "one/c d.jpg"),
        ("/data/upload/1/c_d.jpg", "one/c d.jpg"),
        ("/data/local-files/?d=photos/one/b.jpg", "one/b.jpg"),
        ("/data/local-files/?d=photos%2Fone%2Fc%20d.jpg", "one/c d.jpg"),
        ("/data/local-files/?d=photos%5Cone%5Cb.jpg", "one/b.jpg"),
        ("http://localhost:8080/data/local-files/?d=one/b.jpg&x=1", "one/b.jpg"),
        ("s3://bucket/one/b.jpg", "one/b.jpg"),
        ("https://host.example/x/one/b.jpg?X-Amz-Date=1&d=2", "one/b.jpg"),
        (f"/tasks/1/resolve/?fileuri={S3}", "one/b.jpg"),
        (r"C:\images\one\b.jpg", "one/b.jpg"),
        ("0123abcd-e.jpg", "0123abcd-e.jpg"),
    ],
)
def test_image_locations(images, four_points, location, expected):
    scheme, points = four_points
    (images / "0123abcd-e.jpg").write_bytes(b"")
    task = task_of(key_points(points), location)
    face = read(images, task, scheme=scheme).faces[0]
    assert face.image_path == images / expected


def test_cancelled_and_duplicate_annotations(images, four_points):
    scheme, points = four_points
    done = {"result": key_points(points)}
    skipped = {"result": key_points(shifted(points, 9)), "was_cancelled": True}
    truth = done | {"ground_truth": True}
    other = {"result": key_points(shifted(points, 9))}
    for annotations in ([skipped, done], [other, truth]):
        task = task_of([], annotations=annotations, predictions=[other])
        check(read(images, task, scheme=scheme).faces[0], points)
    result = read(
        images,
        task_of([], annotations=[done, other]),
        task_of([], annotations=[skipped], id=2),
        task_of([], annotations=[], id=3),
        task_of(key_points(points), id=4),
        scheme=scheme,
    )
    assert "2 annotations of one task; keep one" in result.bad[0].reason
    assert result.notes == [f"{images.parent / 'project.json'}: 2 images without points"]
    assert len(result.faces) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.update(data={"image": "nothing.jpg"}), "no image 'nothing.jpg'"),
        (lambda t: t.update(data={"text": "b"}), "0 fields of its data are images"),
        (lambda t: t.update(data={"image": "data:image/png;base64,xx"}), "embedded"),
        (lambda t: t.update(annotations="x"), "annotations are not a list"),
        (lambda t: t.update(annotations=[{"result": "x"}]), "result is not a list"),
        (lambda t: t.update(annotations=[{"result": ["x"]}]), "a result is not an object"),
        (lambda t: t["annotations"][0]["result"].pop(), None),
        (lambda t: t["annotations"][0]["result"].extend(t["annotations"][0]["result"]), None),
        (lambda t: t["annotations"][0]["result"][0].pop("original_width"), "no original_width"),
        (lambda t: t["annotations"][0]["result"][0].update(original_width=9), "9 x 100 and 200"),
        (lambda t: t["annotations"][0]["result"][0]["value"].update(x="a"), "x is 'a'"),
        (lambda t: t["annotations"][0]["result"][0]["value"].update(x=1e308), "too large"),
        (lambda t: t["annotations"][0]["result"][0]["value"].pop("keypointlabels"), "has 0 labels"),
        (
            lambda t: t["annotations"][0]["result"][0].update(parentID="F"),
            "without a face, but",
        ),
        (
            lambda t: t["annotations"][0]["result"][0].update(parentID=["F"]),
            "without a face, but",
        ),
        (
            lambda t: t["annotations"][0]["result"].append(key_point("tip", (1, 2))),
            "2 points 'tip' in one face; in Label Studio, draw",
        ),
    ],
)
def test_bad_tasks_are_listed(images, four_points, change, reason):
    scheme, points = four_points
    task = task_of(key_points(points), id=2)
    change(task)
    result = read(images, task_of(key_points(points)), task, "x", scheme=scheme)
    reasons = {bad.name: bad.reason for bad in result.bad}
    assert reasons.pop("project.json: task number 3") == "not a task of Label Studio"
    if reason is None:
        assert (len(result.faces), reasons) == (2, {})
    else:
        assert len(result.faces) == 1
        assert reason in reasons["project.json: task 2"]


def test_wrong_labels_or_files_raise(images, four_points):
    scheme, _ = four_points
    with pytest.raises(InputError, match="'tipp' is not a landmark of four; did you mean 'tip'"):
        read(images, task_of([key_point("tipp", (1, 2))]), scheme=scheme)
    with pytest.raises(InputError, match="no points in it"):
        read(images, task_of([]), scheme=scheme)
    with pytest.raises(InputError, match="no points in it"):
        read(images, scheme=scheme)


def test_label_studio_export_matches_the_csv(shared):
    case = shared / "cases/foreign_exports"
    scheme = get_scheme(case.parent / "five_points.yaml")
    images = shared / "data/300w/lfpw/trainset"
    result = label_studio.read(images, {"": case / "label_studio.json"}, scheme)
    with (case / "points.csv").open() as file:
        for row, face in zip(csv.DictReader(file), result.faces, strict=True):
            points = [[float(row[f"{axis}_{name}"]) for axis in "xy"] for name in scheme.names]
            np.testing.assert_allclose(face.landmarks, points, atol=0.01)
            assert face.group == row["image"]

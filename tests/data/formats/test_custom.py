"""Tests of `data.formats.custom`: CSV rows and COCO annotations as faces."""

import csv
import json
import math

import cv2
import numpy as np
import pytest
from augmentations import NO_AUGMENTATION

from lcgcn_jax.data import records
from lcgcn_jax.data.augment import AugmentConfig, augment_face
from lcgcn_jax.data.crops import crop_face
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.formats import custom
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import LandmarkScheme, get_scheme

NAMES = ("left", "right", "tip", "chin")
POINTS = np.array([[15.5, 20.0], [45.0, 21.0], [30.0, 35.25], [31.0, 50.0]])


def scheme(normalizer=("left", "right")):
    fields = {"name": "four", "names": NAMES, "mirror_pairs": [["left", "right"]]}
    return LandmarkScheme.from_dict(fields | {"normalizer": normalizer})


@pytest.fixture
def images(tmp_path):
    """A folder of images, with another image outside of it."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 3), np.uint8)
    for name in ("images/one/a.png", "images/b.png", "outside.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), noise)
    (tmp_path / "images/link.png").symlink_to(tmp_path / "outside.png")
    return tmp_path / "images"


def row_of(points=POINTS, image="one/a.png", **values):
    row = {"image": image}
    for name, (x, y) in zip(NAMES, points, strict=True):
        row |= {f"x_{name}": x, f"y_{name}": y}
    return row | values


def without(*names):
    return {f"{axis}_{name}": "" for name in names for axis in "xy"}


def write_csv(path, rows, columns=None):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_rows(images, rows, normalizer=("left", "right"), **options):
    path = write_csv(images.parent / "points.csv", rows)
    return custom.read_csv(images, {"": path}, scheme(normalizer), **options)


def test_csv_row_becomes_a_face(images):
    values = {"x0": 10, "y0": 12, "x1": 50, "y1": 55, "split": "test", "group": "me", "subset": "s"}
    rows = [row_of(**values), row_of(image="b.png", **{name: "" for name in values})]
    rows[1] |= {"split": "train", **without("tip")}
    annotations = read_rows(images, rows)
    assert (annotations.kind, annotations.bad, annotations.absent, annotations.attribute_names) == (
        "csv",
        [],
        [],
        (),
    )
    first, second = annotations.faces
    np.testing.assert_array_equal(first.landmarks, POINTS)
    assert first.visible.all()
    np.testing.assert_array_equal(first.provided_box, [10, 12, 50, 55])
    assert (first.name, first.split) == ("test/000002:one/a.png", "test")
    assert (first.group, first.subset) == ("me", "s")
    assert first.image_path.samefile(images / "one/a.png")
    assert second.visible.tolist() == [True, True, False, True]
    assert np.isnan(second.landmarks[2]).all()
    assert (second.group, second.subset, second.provided_box) == ("b.png", "", None)
    assert math.isnan(second.normalizer)


def test_csv_coordinates_may_count_from_one(images):
    box = {"x0": 10, "y0": 12, "x1": 50, "y1": 55}
    (face,) = read_rows(images, [row_of(**box)], count_from=1).faces
    np.testing.assert_array_equal(face.landmarks, POINTS - 1)
    np.testing.assert_array_equal(face.provided_box, [9, 11, 49, 54])


def test_csv_points_may_be_numbered(images):
    columns = {
        f"{axis}_{i}": value
        for i, p in enumerate(POINTS)
        for axis, value in zip("xy", p, strict=True)
    }
    (face,) = read_rows(images, [{"image": "b.png", **columns}]).faces
    np.testing.assert_array_equal(face.landmarks, POINTS)


def test_hrnet_facial_lists_are_read(images):
    row = {"image_name": "b.png", "scale": 0.2, "center_w": 31, "center_h": 36}
    for i, (x, y) in enumerate(POINTS):
        row |= {f"original_{i}_x": x, f"original_{i}_y": y}
    (face,) = read_rows(images, [row], count_from=1).faces
    np.testing.assert_array_equal(face.landmarks, POINTS - 1)
    np.testing.assert_allclose(face.provided_box, [10, 15, 50, 55])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"image": "one/none.png"}, "no image 'one/none.png' in images/"),
        ({"image": ""}, "no image path"),
        ({"image": "../outside.png"}, "leaves images/"),
        ({"image": "one/../../outside.png"}, "leaves images/"),
        ({"image": "/etc/passwd"}, "leaves images/"),
        ({"image": "link.png"}, "link that leaves images/"),
        ({"image": "a" * 5000}, "no image"),
        ({"image": "a\0b"}, "no image"),
        ({"x_tip": ""}, "one of x_tip and y_tip is empty"),
        ({"x_tip": "wide"}, "x_tip: 'wide' is not a number"),
        ({"x_tip": "nan"}, "one of x_tip and y_tip is empty"),
        ({"x_tip": "1_2"}, "x_tip: '1_2' is not a number"),
        ({"x_tip": "12,5"}, "x_tip: '12,5' is not a number"),
        ({f"{axis}_{name}": 0 for name in NAMES for axis in "xy"}, "no point has a location"),
        ({f"{axis}_{name}": -2 for name in NAMES[:2] for axis in "xy"}, "lie at (-2, -2)"),
        ({f"{axis}_{name}": 20.5 for name in NAMES[:3] for axis in "xy"}, "lie at (20.5, 20.5)"),
        ({f"{axis}_{n}": 5 + i / 9 for i, n in enumerate(NAMES) for axis in "xy"}, "span 0.33 px"),
        ({"image": r"C:\photos\none.png"}, "no image"),
        ({"image": r"..\outside.png"}, "leaves images/"),
        ({"x_tip": "1e999"}, "leave the cell of a missing number empty"),
        (without(*NAMES), "no point has a location"),
        ({"x1": 3}, "the box [5.0, 6.0, 3.0, 50.0] has no extent"),
        ({"x1": ""}, "the box [5.0, 6.0, nan, 50.0] has a missing or infinite number"),
        ({"split": "val"}, "the split 'val' is none of train, validation, test"),
        ({"split": ""}, "the split is empty"),
        ({"normalizer": -2}, "the normalizer -2 is not a positive"),
    ],
)
def test_bad_csv_rows_are_listed_and_skipped(images, values, reason):
    good = row_of(x0=5, y0=6, x1=40, y1=50, split="train", normalizer=30)
    annotations = read_rows(images, [good, good | values, good], "given")
    assert len(annotations.faces) == 2
    (bad,) = annotations.bad
    assert bad.name == "points.csv:3"
    assert reason in bad.reason


def test_csv_row_with_too_few_fields_is_listed(images):
    path = write_csv(images.parent / "points.csv", [row_of(), row_of()])
    path.write_text(path.read_text() + "b.png,1,2\n\n")
    annotations = custom.read_csv(images, {"": path}, scheme())
    assert [str(bad) for bad in annotations.bad] == ["points.csv:4: 3 fields, expected 9"]
    assert len(annotations.faces) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        ("i\0m\0a\0g\0e\0", "NUL bytes; save it as CSV UTF-8"),
        ("image,x_left,y_left\n", "no column 'x_right'"),
        ("image,x_0,y_0,x_1,y_1,x_2,y_2\n", "no column 'x_3'"),
        ("image,image\n", "two columns are named 'image'"),
        ("HEADER,splt\n", "unknown column 'splt'; did you mean 'split'?"),
        ("HEADER,x_nose,y_nose\n", "unknown column 'x_nose'"),
        ("HEADER,x0,y0,x1\n", "no column 'y1'"),
        (
            "HEADER,normalizer\n",
            "there is a normalizer, but that of four is the distance from left",
        ),
        ("image_name,scale,center_w\n", "no column 'center_h'"),
        ("HEADER\nb.png,\xff\n", "not a CSV in UTF-8"),
        (
            f"HEADER\n{'9' * 200_000},\n",
            "line 2: field larger than field limit (131072); check its quotes",
        ),
    ],
)
def test_malformed_csv_raises_a_one_line_error(tmp_path, text, message):
    path = tmp_path / "points.csv"
    text = text.replace("HEADER", ",".join(row_of()))
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        custom.read_csv(tmp_path, {"": path}, scheme())
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [custom.read_csv, custom.read_coco])
def test_missing_file_raises(tmp_path, read):
    with pytest.raises(InputError, match=r"gone: cannot be read: No such file"):
        read(tmp_path, {"": tmp_path / "gone"}, scheme())


def test_given_normalizer_requires_a_column(images):
    with pytest.raises(InputError, match="no column 'normalizer'"):
        read_rows(images, [row_of()], "given")
    rows = [row_of(normalizer=12.5), row_of(normalizer="")]
    first, second = read_rows(images, rows, "given").faces
    assert first.normalizer == 12.5
    assert math.isnan(second.normalizer)


def keypoints_of(points=POINTS, visibility=(2, 2, 1, 2)):
    return [float(v) for row, seen in zip(points, visibility, strict=True) for v in (*row, seen)]


def coco_of(*annotations, category=(), **fields):
    face = {"id": 7, "image_id": 3, "category_id": 1, "keypoints": keypoints_of()}
    return {
        "images": [{"id": 3, "file_name": "one/a.png"}, {"id": 4, "file_name": "../outside.png"}],
        "annotations": [face | changes for changes in annotations],
        "categories": [{"id": 1, "name": "face", "keypoints": list(category)}],
    } | fields


def read_coco(images, content, normalizer=("left", "right"), **options):
    path = images.parent / "points.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return custom.read_coco(images, {"train": path}, scheme(normalizer), **options)


@pytest.mark.parametrize(
    "file_name",
    [
        "b.png",
        "/home/me/project/images/b.png",
        r"D:\faces\b.png",
        "upload/1/b.png",
        "images/0a1b2c3d-b.png",
        "images%2Fb.png",
    ],
)
def test_coco_image_paths_of_another_machine_are_matched(images, file_name):
    content = coco_of({}, images=[{"id": 3, "file_name": file_name}])
    (face,) = read_coco(images, content).faces
    assert (face.image_path, face.group) == (images / "b.png", "b.png")


def test_coco_image_path_that_matches_two_images_is_listed(images):
    (images / "two").mkdir()
    (images / "two/a.png").write_bytes((images / "one/a.png").read_bytes())
    content = coco_of({}, images=[{"id": 3, "file_name": "/home/me/a.png"}])
    annotations = read_coco(images, content)
    assert annotations.faces == []
    assert "'one/a.png' or 'two/a.png'" in annotations.bad[0].reason


def test_coco_annotation_becomes_a_face(images):
    hidden = {"id": 8, "keypoints": keypoints_of(visibility=(2, 0, 1, 2))}
    content = coco_of({"bbox": [10, 12, 40, 43]}, hidden)
    annotations = read_coco(images, content, count_from=1)
    first, second = annotations.faces
    np.testing.assert_array_equal(first.landmarks, POINTS - 1)
    np.testing.assert_array_equal(first.provided_box, [9, 11, 49, 54])
    assert first.visible.all()
    assert first.name == "train/000001:one/a.png"
    assert second.visible.tolist() == [True, False, True, True]
    assert second.provided_box is None
    assert first.group == second.group == "one/a.png"


def test_coco_keypoints_are_matched_by_name(images):
    order = [2, 0, 3, 1]
    moved = [POINTS[i] for i in order]
    moved.insert(1, [1.0, 2.0])
    names = [NAMES[i] for i in order]
    names.insert(1, "ear")
    content = coco_of({"keypoints": keypoints_of(moved, [2] * 5)}, category=names)
    np.testing.assert_array_equal(read_coco(images, content).faces[0].landmarks, POINTS)
    unnamed = coco_of({}, category=["a", "b", "c", "d"])
    np.testing.assert_array_equal(read_coco(images, unnamed).faces[0].landmarks, POINTS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_id": 9}, "no image with the id 9"),
        ({"image_id": [1]}, "not a COCO annotation"),
        ({"image_id": 4}, "leaves images/"),
        ({"keypoints": keypoints_of()[:-3]}, "9 numbers for the keypoints, expected 12"),
        ({"keypoints": keypoints_of()[:-1]}, "11 numbers"),
        ({"keypoints": [1, "2"]}, None),
        ({"keypoints": [1, "b"]}, "not a list of numbers"),
        ({"keypoints": [1, "1_2"]}, "not a list of numbers"),
        ({"keypoints": [10**400]}, "not a list of numbers"),
        ({"keypoints": 5}, "not a list of numbers"),
        ({"keypoints": keypoints_of(visibility=(2, 2, 3, 2))}, "none of 0, 1 and 2"),
        ({"keypoints": keypoints_of(POINTS * 0)}, "no point has a location"),
        ({"keypoints": keypoints_of(POINTS * np.nan)}, "no point has a location"),
        ({"keypoints": keypoints_of(POINTS * [np.nan, 1])}, "one coordinate of left is missing"),
        ({"keypoints": keypoints_of(POINTS * np.inf)}, "NaN or infinite"),
        ({"keypoints": POINTS.ravel().tolist()}, "8 numbers for the keypoints, expected 12"),
        ({"bbox": [1, 2, 3]}, "not x, y, width and height"),
        ({"iscrowd": "true"}, "iscrowd is 'true'; expected 0 or 1"),
        ({"iscrowd": 2}, "iscrowd is 2; expected 0 or 1"),
        ({"bbox": [1, 2, 0, 3]}, "has no extent"),
        ({"normalizer": 5}, "there is a normalizer"),
    ],
)
def test_bad_coco_annotations_are_listed(images, changes, reason):
    annotations = read_coco(images, coco_of({}, changes, {}))
    assert len(annotations.faces) == 2
    (bad,) = annotations.bad
    assert bad.name == "points.json: annotation 7"
    assert (reason or "") in bad.reason


def test_coco_annotation_that_is_not_an_object_is_listed(images):
    content = coco_of({})
    content["annotations"] += ["words"]
    annotations = read_coco(images, content)
    assert [str(bad) for bad in annotations.bad] == [
        "points.json: annotation number 2: not a COCO annotation"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON in UTF-8"),
        ('{"images": [], "annotations": [1], "annotations": []}', "'annotations' occurs twice"),
        ("[" * 100_000, "not JSON in UTF-8"),
        ("[]", "not COCO's keypoints"),
        ("{}", "not COCO's keypoints"),
        (coco_of({}, images=[{"id": 1}]), "not COCO's keypoints"),
        (coco_of({}, categories=["face"]), "not COCO's keypoints"),
        (coco_of({}, category=["left", "right", "tip", "jaw"]), "keypoint 'chin' (but 'jaw')"),
    ],
)
def test_malformed_coco_raises_a_one_line_error(images, content, message):
    with pytest.raises(InputError) as caught:
        read_coco(images, content)
    assert str(caught.value).startswith(f"{images.parent / 'points.json'}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_coco_images_with_the_same_id_raise(images):
    content = coco_of({}) | {"categories": []}
    content["images"] = [{"id": 3, "file_name": n} for n in ("one/a.png", "b.png")]
    with pytest.raises(InputError, match=r"'one/a\.png' and 'b\.png' both have the id 3"):
        read_coco(images, content)
    content["images"] = [{"id": i, "file_name": "one/a.png"} for i in (3, "3", 3.0)]
    assert len(read_coco(images, content).faces) == 1
    content["images"] = [
        {"id": 3, "file_name": "b.png", "width": width, "height": 60} for width in (64, 128)
    ]
    with pytest.raises(InputError, match="two sizes, 64 x 60 and 128 x 60"):
        read_coco(images, content)


@pytest.mark.parametrize(("stored", "used"), [(3, "3"), ("3", 3), ("3", "3"), (3, 3.0)])
def test_coco_ids_match_as_numbers_and_as_text(images, stored, used):
    content = coco_of({"image_id": used, "category_id": str(used)})
    content["images"][0]["id"] = content["categories"][0]["id"] = stored
    if used == 3.0 and isinstance(used, float):
        content["annotations"][0]["category_id"] = 3.0
    assert len(read_coco(images, content).faces) == 1


def test_duplicate_coco_annotation_ids_give_a_note(images):
    annotations = read_coco(images, coco_of({}, {"image_id": 3}, {"id": 8}))
    assert len(annotations.faces) == 3
    assert "1 annotation ids are duplicated (such as 7)" in annotations.notes[0]


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (64, 60, (64, 60)),
        (64.0, "60", (64, 60)),
        (0, 60, None),
        (None, None, None),
        (-64, 60, None),
        (math.nan, 60, None),
        ([64], 60, None),
        (True, 60, None),
    ],
)
def test_coco_stated_image_size(images, width, height, size):
    content = coco_of({})
    content["images"][0] |= {"width": width, "height": height}
    assert read_coco(images, content).faces[0].stated_size == size
    assert read_coco(images, coco_of({})).faces[0].stated_size is None


def reversed_face(**changes):
    names = NAMES[::-1]
    return coco_of({"keypoints": keypoints_of(POINTS[::-1], [2] * 4)} | changes, category=names)


def test_coco_category_of_annotations(images):
    content = reversed_face(category_id=0)
    with pytest.raises(InputError, match=r"category_id 0, which is not among .* 1 \(face\)"):
        read_coco(images, content)
    del content["annotations"][0]["category_id"]
    np.testing.assert_array_equal(read_coco(images, content).faces[0].landmarks, POINTS)
    content["categories"].append({"id": 2, "name": "cat"})
    with pytest.raises(
        InputError, match=r"annotation 7 has no category_id; .*1 \(face\), 2 \(cat\)"
    ):
        read_coco(images, content)
    content = reversed_face() | {"categories": []}
    assert len(read_coco(images, content).faces) == 1


def test_coco_categories_of_other_objects_are_skipped(images):
    content = reversed_face()
    body = keypoints_of(POINTS[:3], [2] * 3)
    content["annotations"] += [
        {"id": i, "image_id": 3, "category_id": i, "keypoints": body} for i in (2, 3)
    ]
    content["categories"] += [
        {"id": 2, "name": "body", "keypoints": ["left", "knee", "foot"]},
        {"id": 3, "name": "car", "keypoints": ["wheel", "door", "roof"]},
    ]
    annotations = read_coco(images, content)
    np.testing.assert_array_equal(annotations.faces[0].landmarks, POINTS)
    assert (len(annotations.faces), annotations.bad) == (1, [])
    (note,) = annotations.notes
    assert "2 annotations skipped: 1 of category 'body', 1 of category 'car'" in note


def test_coco_keypoint_names_match_in_any_case(images):
    content = reversed_face()
    content["categories"][0]["keypoints"] = [f" {name.upper()}" for name in NAMES[::-1]]
    np.testing.assert_array_equal(read_coco(images, content).faces[0].landmarks, POINTS)


def test_unknown_coco_keypoint_names_give_a_note(images):
    (note,) = read_coco(images, coco_of({}, category=["a", "b", "c", "d"])).notes
    assert "category 'face' names none of the landmarks of four" in note
    assert read_coco(images, coco_of({}, category=["1", "2", "3", "4"])).notes == []


@pytest.mark.parametrize(
    "changes",
    [
        {"keypoints": []},
        {"keypoints": None},
        {"keypoints": [0] * 12},
        {"iscrowd": 1, "segmentation": {"counts": [1], "size": [1, 1]}},
    ],
)
def test_skipped_coco_annotations_are_counted(images, changes):
    annotations = read_coco(images, coco_of({}, {"id": 8} | changes))
    assert (len(annotations.faces), annotations.bad) == (1, [])
    (note,) = annotations.notes
    assert "1 annotations skipped: 1 " in note
    with pytest.raises(InputError, match=r"points\.json: no annotation is a face; skipped: 1 "):
        read_coco(images, coco_of(changes))


def test_coco_visibility_zero_with_coordinates_gives_a_note(images):
    annotations = read_coco(images, coco_of({"keypoints": keypoints_of(visibility=(2, 0, 2, 0))}))
    assert annotations.faces[0].visible.tolist() == [True, False, True, False]
    (note,) = annotations.notes
    assert "2 keypoints with coordinates but visibility 0" in note


@pytest.mark.parametrize("place", [(0, 0), (-1, -1), (None, None), (math.nan, math.nan)])
def test_labeled_coco_points_without_coordinates_are_missing(images, place):
    keypoints = keypoints_of()
    keypoints[3:5] = place
    (face,) = read_coco(images, coco_of({"keypoints": keypoints})).faces
    assert face.visible.tolist() == [True, False, True, True]


def test_coco_json_in_utf16_is_read(images):
    path = images.parent / "points.json"
    path.write_bytes(json.dumps(coco_of({})).encode("utf-16"))
    assert len(custom.read_coco(images, {"": path}, scheme()).faces) == 1


def test_coco_normalizer(images):
    (face,) = read_coco(images, coco_of({"normalizer": 12.5}), "given").faces
    assert face.normalizer == 12.5


def prepared(images, rows, normalizer=("left", "right")):
    out = images.parent / "out"
    report = records.prepare(read_rows(images, rows, normalizer), out)
    return open_dataset(out), report


def test_missing_points_are_masked_in_the_crop(images):
    dataset, report = prepared(images, [row_of(split="train", **without("left"))])
    assert report.bad == []
    (record,) = dataset.source("train")
    x0, y0 = record["to_source"][:, 2]
    # The box of the three located points.
    np.testing.assert_allclose(record["box"] + [x0, y0, x0, y0], [30, 21, 45, 50])
    crop = crop_face(record, 32)
    assert crop["visible"].tolist() == [False, True, True, True]
    assert np.isnan(crop["landmarks"][0]).all()
    np.testing.assert_allclose(crop["source_landmarks"][1:], POINTS[1:], atol=1e-4)
    assert math.isnan(crop["normalizer"])


def test_missing_point_is_mirrored_with_the_face(images):
    dataset, _ = prepared(images, [row_of(**without("left"))])
    (record,) = dataset.source("train")
    plain, mirrored = (
        augment_face(
            record,
            dataset.scheme,
            32,
            AugmentConfig(**(vars(NO_AUGMENTATION) | {"mirror": mirror})),
            np.random.default_rng(0),
        )
        for mirror in (0.0, 1.0)
    )
    assert mirrored["visible"].tolist() == [True, False, True, True]
    assert np.isnan(mirrored["landmarks"][1]).all()
    np.testing.assert_allclose(
        mirrored["landmarks"][0], [31, 0] + plain["landmarks"][1] * [-1, 1], atol=1e-4
    )


def test_given_normalizer_is_in_the_crop_in_image_pixels(images):
    dataset, _ = prepared(images, [row_of(normalizer=12.5), row_of(normalizer="")], "given")
    crops = [crop_face(record, 32) for record in dataset.source("train")]
    np.testing.assert_array_equal([crop["normalizer"] for crop in crops], [12.5, np.nan])


@pytest.mark.parametrize("missing", [("left", "right", "tip"), ("left", "tip", "chin")])
def test_face_with_one_point_is_rejected(images, missing):
    _, report = prepared(images, [row_of(), row_of(**without(*missing))])
    (bad,) = report.bad
    assert bad.reason == "the landmarks have no extent"


def test_stated_validation_split_replaces_the_hashed_one(images):
    rows = [row_of(split="train", group=str(i)) for i in range(30)]
    hashed, _ = prepared(images, rows)
    assert hashed.num_faces == {"train": 26, "validation": 4}
    named = records.prepare(
        read_rows(images, [*rows, row_of(split="validation")]), images.parent / "named"
    )
    assert named.num_faces == {"train": 30, "validation": 1}


def test_coco_sample_is_read(shared):
    src = shared / "data/coco_sample"
    annotations = custom.read_coco(
        src, {"": src / "annotations.json"}, get_scheme("ibug68"), count_from=1
    )
    assert annotations.bad == []
    assert [face.visible.all() for face in annotations.faces] == [True, True]
    for face in annotations.faces:
        low, high = face.landmarks.min(axis=0), face.landmarks.max(axis=0)
        assert (face.provided_box[:2] < low).all()
        assert (face.provided_box[2:] > high).all()


def test_coco_fields_may_be_null(images):
    changes = {"normalizer": None, "bbox": [None] * 4, "iscrowd": None}
    annotations = read_coco(images, coco_of(changes))
    assert (len(annotations.faces), annotations.bad, annotations.notes) == (1, [], [])
    assert annotations.faces[0].provided_box is None


def test_repeated_faces_give_a_note(images):
    rows = [row_of(split="train"), row_of(split="train"), row_of(split="test")]
    assert [note for note in read_rows(images, rows).notes if "repeated" in note] == [
        f"{images.parent / 'points.csv'}: 2 faces repeated with the same landmarks; remove the copies"
    ]

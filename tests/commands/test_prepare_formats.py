"""`lcgcn prepare` with the exports of labeling tools."""

import csv
import json

import cv2
import numpy as np
import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.data.dataset import open_dataset

NAMES = ("left", "right", "tip", "chin")
POINTS = ((15.5, 20.0), (45.0, 21.0), (30.0, 35.25), (31.0, 50.0))
FACE = dict(zip(NAMES, POINTS, strict=True))
SIZE = (64, 60)
IMAGES = ("a.png", "b.png")


def dlib(image):
    parts = "".join(f"<part name='{n}' x='{x}' y='{y}'/>" for n, (x, y) in FACE.items())
    box = f"<box top='10' left='10' width='40' height='45'>{parts}</box>"
    return f"<image file='{image}' width='{SIZE[0]}' height='{SIZE[1]}'>{box}</image>"


def cvat(image):
    points = "".join(
        f"<points label='{n}' outside='0' occluded='0' points='{x},{y}'/>"
        for n, (x, y) in FACE.items()
    )
    skeleton = f"<skeleton label='face'>{points}</skeleton>"
    return f"<image name='{image}' width='{SIZE[0]}' height='{SIZE[1]}'>{skeleton}</image>"


def label_studio(image):
    size = {"original_width": SIZE[0], "original_height": SIZE[1]}
    regions = [
        {
            "type": "keypointlabels",
            "value": {"x": x / 0.64, "y": y / 0.6, "width": 1, "keypointlabels": [name]},
        }
        | size
        for name, (x, y) in FACE.items()
    ]
    return {"data": {"image": f"/data/upload/1/{image}"}, "annotations": [{"result": regions}]}


def labelme(image):
    shapes = [{"label": name, "points": [xy], "shape_type": "point"} for name, xy in FACE.items()]
    size = {"imageWidth": SIZE[0], "imageHeight": SIZE[1]}
    return {"shapes": shapes, "imagePath": image, "imageData": None} | size


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Folder with two images and their annotations in each format."""
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    (tmp_path / "images").mkdir()
    for image in IMAGES:
        cv2.imwrite(str(tmp_path / "images" / image), noise + ord(image[0]))
        (tmp_path / f"{image[0]}.json").write_text(json.dumps(labelme(image)))
    for name, write, root in (("dlib", dlib, "dataset"), ("cvat", cvat, "annotations")):
        body = "".join(map(write, IMAGES))
        body = f"<images>{body}</images>" if name == "dlib" else body
        (tmp_path / f"{name}.xml").write_text(f"<{root}>{body}</{root}>")
    (tmp_path / "label-studio.json").write_text(json.dumps([label_studio(i) for i in IMAGES]))
    with (tmp_path / "points.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", *(f"{axis}_{name}" for name in NAMES for axis in "xy")])
        table.writerows([image, *np.ravel(POINTS)] for image in IMAGES)
    scheme = {"name": "four", "names": NAMES, "mirror_pairs": [["left", "right"]]}
    (tmp_path / "four.json").write_text(json.dumps(scheme))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(layout, *files):
    options = ["--src", "images", "--scheme", "four.json", "--out", "out"]
    return main(["prepare", layout, "--annotations", *files, *options])


@pytest.mark.parametrize(
    ("layout", "files"),
    [
        ("csv", ["points.csv"]),
        ("dlib", ["dlib.xml"]),
        ("cvat", ["cvat.xml"]),
        ("label-studio", ["label-studio.json"]),
        ("labelme", ["a.json", "b.json"]),
        ("labelme", ["[ab].json"]),
        ("labelme", ["train=a.json", "test=b.json"]),
    ],
)
def test_all_formats_give_the_same_points(folder, layout, files):
    assert prepare(layout, *files) == 0
    dataset = open_dataset(folder / "out")
    assert sum(dataset.num_faces.values()) == len(IMAGES)
    for record in dataset.source("+".join(dataset.splits)):
        points = record["landmarks"] + record["to_source"][:, 2]
        np.testing.assert_allclose(points, POINTS, atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "file", "right"),
    [
        ("csv", "dlib.xml", "dlib"),
        ("csv", "a.json", "labelme"),
        ("coco", "cvat.xml", "cvat"),
        ("coco", "label-studio.json", "label-studio"),
        ("dlib", "cvat.xml", "cvat"),
        ("cvat", "points.csv", "csv"),
    ],
)
def test_wrong_format_is_an_error_that_names_the_right_one(folder, capsys, layout, file, right):
    assert prepare(layout, file) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(f"; run 'lcgcn prepare {right}' with the same options\n")
    assert err.startswith(f"lcgcn: error: {file}: the format is ")
    assert err.count("\n") == 1
    assert not (folder / "out").exists()


def test_resized_image_is_an_error(folder, capsys):
    for image in IMAGES:
        cv2.imwrite(str(folder / "images" / image), np.zeros((30, 32, 3), np.uint8))
    assert prepare("cvat", "cvat.xml") == 2
    err = capsys.readouterr().err
    assert "64 x 60" in err
    assert "32 x 30" in err


def test_landmark_that_no_face_has_is_reported(folder, capsys):
    text = (folder / "points.csv").read_text()
    (folder / "points.csv").write_text(text.replace("31.0,50.0", ",").replace("31.0,50", ","))
    assert prepare("csv", "points.csv") == 0
    assert (
        "1 landmark without a location in any face, so not trained: chin" in capsys.readouterr().out
    )


def test_files_with_and_without_a_split_are_an_error(folder, capsys):
    assert prepare("labelme", "train=a.json", "b.json") == 2
    assert "some files have a split and others not" in capsys.readouterr().err

"""Pre-annotations of `lcgcn predict`, corrected as in a labeling tool, are read back by `lcgcn prepare`."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import PIL.Image
import pytest

from lcgcn_jax import geometry
from lcgcn_jax.commands import predict
from lcgcn_jax.commands.main import main
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.landmarks import LandmarkScheme

FIELDS = {
    "name": "five",
    "names": ["eye left", "eye_right", "nose & tip", "mund_links_ü", "mund rechts"],
    "mirror_pairs": [[0, 1], [3, 4]],
    "contours": [{"name": "mouth", "indices": [3, 4]}],
}
SCHEME = LandmarkScheme.from_dict(FIELDS)
SHAPE = np.array([[0.2, 0.21], [0.8, 0.2], [0.5, 0.55], [0.3, 0.9], [0.71, 0.88]])
FILES = {"coco": "coco.json", "cvat": "cvat.xml", "label-studio": "label_studio.json"}
# Name -> size as stored, EXIF orientation, and number of faces.
IMAGES = {
    "a.jpg": ((90, 60), 1, 2),
    "with space & ampersand.png": ((64, 64), 1, 1),
    "Gesichter/größe 'x'.jpg": ((70, 50), 6, 1),
    "Gesichter/日本/a.jpg": ((81, 60), 3, 1),
    "mirrored #1%20.jpg": ((70, 50), 5, 3),
    "empty.png": ((40, 40), 1, 0),
}


class Model(LandmarkModel):
    """Fake model with five points per box, of which some are occluded."""

    def __init__(self, has_visibility=True):
        self.scheme, self.config, self.has_visibility = SCHEME, {"graph": None}, has_visibility

    def predict_boxed(self, images, **options):
        def face(box):
            points = box[:2] + SHAPE * (box[2:] - box[:2])
            visible = (np.arange(5) + int(box[0])) % 3 / 2.0 if self.has_visibility else None
            return Face(box, points, np.ones(5), points, visibility=visible, scheme=SCHEME)

        return [[face(box) for box in image.boxes] for image in images]


@pytest.fixture
def model(monkeypatch):
    model = Model()
    monkeypatch.setattr(predict, "load_model", lambda *args, **kwargs: model)
    return model


@pytest.fixture
def folder(tmp_path):
    """Folder with images, a file of boxes, and the scheme."""
    boxes = {}
    for name, (size, orientation, num_faces) in IMAGES.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
        PIL.Image.fromarray(noise).save(path, **({"exif": exif} if orientation > 1 else {}))
        boxes[name] = [[3.3 + 10.21 * i, 5, 25 + 10.21 * i, 30.7] for i in range(num_faces)]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    (tmp_path / "five.json").write_text(json.dumps(FIELDS))
    return tmp_path


@pytest.fixture
def run(folder, capsys):
    """Function that runs `lcgcn predict` on the images, and returns the folder of the results."""

    def run(format, *options, code=0):
        out = folder / f"out_{format}"
        words = ["predict", folder / "images", "--boxes", folder / "boxes.json", "--out", out]
        assert main([str(w) for w in (*words, "--format", format, *options)]) == code
        return out

    return run


def prepare(folder, format, file, *options, src="images", others=()):
    """Faces of `lcgcn prepare`: (image, number of the face from the left) -> record."""
    out = folder / "dataset"
    words = ["prepare", format, "--src", folder / src, "--annotations"]
    words += [f"test={path}" for path in (file, *others)]
    words += ["--scheme", folder / "five.json", "--out", out, "--overwrite", *options]
    assert main([str(word) for word in words]) == 0
    records = list(open_dataset(out).source("test"))
    records.sort(key=lambda record: record["landmarks"][0, 0] + record["to_source"][0, 2])
    faces = {}
    for record in records:
        name = record["group"]
        faces[name, sum(name == other for other, _ in faces)] = record
    return faces


def expected_faces(run):
    """Landmarks and occlusion by the JSON of `predict`, in upright pixels."""
    faces = {}
    for path in run("json").rglob("*.json"):
        result = json.loads(path.read_text())
        name = result["image"].split("/images/")[1]
        for i, face in enumerate(result["faces"]):
            faces[name, i] = np.array(face["landmarks"]), np.array(face["visibility"]) < 0.5
    return faces


def check(faces, expected, atol=2e-3):
    assert faces.keys() == expected.keys()
    for key, (landmarks, is_occluded) in expected.items():
        record = faces[key]
        x0, y0 = record["to_source"][:, 2]
        np.testing.assert_allclose(record["landmarks"] + [x0, y0], landmarks, atol=atol)
        assert record["visible"].all()
        assert record["visibility"].tolist() == is_occluded.astype(int).tolist()


@pytest.mark.parametrize("format", FILES)
def test_files_of_the_parts_of_a_job_are_read_together(model, folder, run, format):
    expected = expected_faces(run)
    for part in ("1/2", "2/2"):
        out = run(format, "--no-overlay", "--shard", part, "--overwrite")
    stem, suffix = FILES[format].split(".")
    first, second = sorted(out.glob(f"{stem}-*-of-00002.{suffix}"))
    check(prepare(folder, format, first, others=[second]), expected)


def saved_by_tool(file, format):
    """Change a file as the tool does when a person saves everything without a correction."""
    if format == "label-studio":
        tasks = json.loads(file.read_text())
        for number, task in enumerate(tasks, start=1):
            result = task["predictions"][0]["result"][::-1]
            task |= {"id": number, "annotations": [{"id": number, "result": result}]}
        file.write_text(json.dumps(tasks))
    elif format == "cvat":
        root = ET.parse(file).getroot()
        for points in root.iter("points"):
            x, y = map(float, points.get("points").split(","))
            points.set("points", f"{x:.2f},{y:.2f}")
        ET.ElementTree(root).write(file)
    else:
        content = json.loads(file.read_text())
        content["annotations"].reverse()
        file.write_text(json.dumps(content))


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("options", [(), ("--count-from", "0.5"), ("--stored-pixels",)])
def test_round_trip_without_corrections(model, folder, run, format, options):
    expected = expected_faces(run)
    file = run(format, "--no-overlay", *options) / FILES[format]
    assert [path.name for path in file.parent.rglob("*.png")] == []
    if "--stored-pixels" in options:
        faces = prepare(folder, format, file, *options)
        assert faces.keys() == expected.keys()
        for name, (size, orientation, num_faces) in IMAGES.items():
            stored = expected["a.jpg", 0][0]
            if num_faces:
                affine = geometry.upright_transform(orientation, *size)
                points = geometry.transform_points(affine, stored)
                if geometry.is_mirrored(orientation):
                    points = points[list(SCHEME.mirror)]
                record = faces[name, 0]
                points = points - record["to_source"][:, 2]
                np.testing.assert_allclose(record["landmarks"], points, atol=2e-3)
        return
    check(prepare(folder, format, file, *options), expected)
    saved_by_tool(file, format)
    faces = prepare(folder, format, file, *options)
    check(faces, expected, atol=6e-3)
    boxes = json.loads((folder / "boxes.json").read_text())
    for (name, i), record in faces.items():
        box = record["provided_box"] + np.tile(record["to_source"][:, 2], 2)
        if format == "cvat":
            assert np.isnan(box).all()
        else:
            size, orientation, _ = IMAGES[name]
            width, height = size[::-1] if orientation >= 5 else size
            clipped = np.minimum(boxes[name][i], np.tile([width, height], 2))
            np.testing.assert_allclose(box, clipped, atol=0.51)


def correct(file, format):
    """Move the first landmark of the first face of a.jpg to (7, 8) and mark the second as occluded."""
    if format == "cvat":
        root = ET.parse(file).getroot()
        image = next(image for image in root.iter("image") if image.get("name") == "a.jpg")
        first, second, third = image.find("skeleton").findall("points")[:3]
        first.set("points", "7.00,8.00")
        second.set("occluded", "1")
        third.set("outside", "1")
        ET.ElementTree(root).write(file)
        return
    content = json.loads(file.read_text())
    if format == "coco":
        ids = {image["file_name"]: image["id"] for image in content["images"]}
        face = next(a for a in content["annotations"] if a["image_id"] == ids["a.jpg"])
        face["keypoints"][:2] = [7, 8]
        face["keypoints"][5:9] = [1, 0, 0, 0]
    else:
        task = next(t for t in content if t["data"]["image"].endswith("images/a.jpg"))
        regions = task["predictions"][0]["result"]
        for region in regions:
            value = region["value"]
            if region["id"] == "face1-0":
                value |= {"x": 7 / 90 * 100, "y": 8 / 60 * 100}
            if region["id"] == "face1-1" and "choices" in value:
                value["choices"] = ["occluded"]
        task["predictions"][0]["result"] = [r for r in regions if r["id"] != "face1-2"]
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("format", FILES)
def test_corrections_are_read_back(model, folder, run, format):
    file = run(format) / FILES[format]
    correct(file, format)
    saved_by_tool(file, format)
    faces = prepare(folder, format, file)
    face = next(r for (name, i), r in faces.items() if name == "a.jpg" and not r["visible"].all())
    corner = face["to_source"][:, 2]
    np.testing.assert_allclose(face["landmarks"][0] + corner, [7, 8], atol=1e-3)
    assert face["visible"].tolist() == [True, True, False, True, True]
    assert face["visibility"][[1, 2]].tolist() == [1, -1]


@pytest.mark.parametrize("format", FILES)
def test_tool_shows_the_images(model, folder, run, format, capsys):
    """All images are listed with their upright size, also those without faces."""
    out = run(format, "--count-from", "0.5")
    assert (out / "a.png").is_file()
    assert f"{out / FILES[format]}\n" in capsys.readouterr().out
    sizes = {}
    for name, (size, orientation, _) in IMAGES.items():
        sizes[name] = size[::-1] if orientation >= 5 else size
    if format == "label-studio":
        tasks = json.loads((out / FILES[format]).read_text())
        assert len(tasks) == len(IMAGES)
        assert sum(not task["predictions"][0]["result"] for task in tasks) == 1
        config = ET.parse(out / "label_studio_config.xml").getroot()
        labels = [label.get("value") for label in config.iter("Label")]
        assert labels == ["face", *SCHEME.names]
        names = {element.get("name") for element in config} - {None}
        regions = [region for task in tasks for region in task["predictions"][0]["result"]]
        assert {region["from_name"] for region in regions} | {"image"} == names
        first = next(r for r in regions if r["id"] == "face1-0")
        assert first["value"]["x"] * first["original_width"] / 100 == pytest.approx(
            3.3 + 0.2 * 21.7 + 0.5
        )
    elif format == "cvat":
        root = ET.parse(out / FILES[format]).getroot()
        shown = {
            i.get("name"): (int(i.get("width")), int(i.get("height"))) for i in root.iter("image")
        }
        assert shown == sizes
        (label,) = json.loads((out / "cvat_labels.json").read_text())
        assert label["type"] == "skeleton"
        assert [part["name"] for part in label["sublabels"]] == list(SCHEME.names)
        svg = ET.fromstring(f"<svg>{label['svg']}</svg>")
        circles = svg.findall("circle")
        assert [circle.get("data-label-name") for circle in circles] == list(SCHEME.names)
        assert all(5 < float(c.get(axis)) < 95 for c in circles for axis in ("cx", "cy"))
        assert float(circles[0].get("cx")) < float(circles[1].get("cx"))
        assert len(svg.findall("line")) == 1
    else:
        content = json.loads((out / FILES[format]).read_text())
        shown = {i["file_name"]: (i["width"], i["height"]) for i in content["images"]}
        assert shown == sizes
        assert content["categories"][0]["skeleton"] == [[4, 5]]
        assert content["annotations"][0]["keypoints"][:2] == [
            pytest.approx(3.3 + 0.2 * 21.7 + 0.5, abs=1e-3),
            pytest.approx(5 + 0.21 * 25.7 + 0.5, abs=1e-3),
        ]


def test_label_studio_predictions_are_read_with_a_note(model, folder, run, capsys):
    file = run("label-studio") / FILES["label-studio"]
    assert len(prepare(folder, "label-studio", file)) == 8
    assert "read the predictions, which nobody corrected" in capsys.readouterr().out
    assert len(prepare(folder, "label-studio", file, src=".")) == 8
    tasks = json.loads(file.read_text())
    tasks[0] |= {"annotations": []}
    file.write_text(json.dumps(tasks))
    words = ["prepare", "label-studio", "--src", folder / "images", "--annotations", file]
    words += ["--scheme", folder / "five.json", "--out", folder / "none"]
    assert main([str(word) for word in words]) == 2, "an export without submitted annotations"


def test_unknown_visibility(model, folder, run):
    model.has_visibility = False
    for format, label in (("label-studio", -1), ("coco", 0), ("cvat", 0)):
        faces = prepare(folder, format, run(format) / FILES[format])
        assert {int(v) for record in faces.values() for v in record["visibility"]} == {label}


def test_points_outside_the_image_in_label_studio(model, folder, run):
    """Label Studio rejects an import with locations outside the image."""
    boxes = {name: [] for name in IMAGES} | {"a.jpg": [[-10, 10, 75, 100]]}
    (folder / "boxes.json").write_text(json.dumps(boxes))
    tasks = json.loads((run("label-studio") / FILES["label-studio"]).read_text())
    (regions,) = filter(None, (task["predictions"][0]["result"] for task in tasks))
    box = regions[0]["value"]
    assert (box["x"], box["y"] + box["height"]) == (0, 100)
    values = [region["value"][axis] for region in regions for axis in "xy"]
    assert min(values) >= 0
    assert max(values) == 100


def test_options_that_do_not_fit(model, folder, run, capsys):
    out = run("cvat", "--no-overlay")
    for format, options, message in (
        ("cvat", ("--no-overlay",), f"{out / 'cvat.xml'}: already exists"),
        ("cvat", ("--skip-existing",), "--skip-existing: annotation files are written as a whole"),
        ("csv", ("--geometry",), "--geometry needs --format json or jsonl"),
        ("json", ("--geometry",), "--geometry: the scheme five is neither ibug68 nor wflw98"),
        (
            "json",
            ("--count-from", "1"),
            "--count-from applies to --format coco, cvat, label-studio",
        ),
    ):
        run(format, *options, code=2)
        assert message in capsys.readouterr().err
    run("cvat", "--no-overlay", "--overwrite")
    (folder / "images/a\x01b.jpg").write_bytes((folder / "images/a.jpg").read_bytes())
    run("coco", code=2)
    assert "cannot hold the character '\\x01'" in capsys.readouterr().err


def test_interrupted_run_writes_the_finished_images(model, folder, run, monkeypatch):
    predict_boxed = model.predict_boxed

    def stop(images, **options):
        if len(images) > 1 or images[0].pixels.shape[:2] != (60, 90):
            raise KeyboardInterrupt
        return predict_boxed(images, **options)

    monkeypatch.setattr("lcgcn_jax.inference.batch_predict.is_full_batch", bool)
    monkeypatch.setattr(model, "predict_boxed", stop)
    words = ["predict", folder / "images/a.jpg", folder / "images/empty.png", "--whole-image"]
    words += ["--out", folder / "out", "--format", "coco"]
    assert main([str(word) for word in words]) == 130
    content = json.loads((folder / "out/coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.jpg"]

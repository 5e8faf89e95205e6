import csv
import json

import cv2
import numpy as np
import PIL.Image
import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.data.formats.pts import read_pts
from lcgcn_jax.geometry import transform_points
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference import batch_predict
from lcgcn_jax.inference.video import VideoWriter, open_video
from lcgcn_jax.models.bundles import load_bundle, save_bundle


@pytest.fixture
def photo(tmp_path):
    """Image file with a face-like blob, 300 x 200 pixels."""
    image = np.full((200, 300, 3), 90, np.uint8)
    cv2.ellipse(image, (150, 100), (50, 70), 0, 0, 360, (160, 180, 220), cv2.FILLED)
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), image)
    return path


def test_json_and_overlay_are_in_image_pixels(small_run, photo, tmp_path):
    out = tmp_path / "out"
    boxes = ["--box", "100,30,200,170", "--box", "110.5,40,190,160"]
    arguments = ["--model", str(small_run), str(photo), *boxes, "--out", str(out)]
    assert main(["predict", *arguments]) == 0
    result = json.loads((out / "photo.json").read_text())
    assert list(result) == ["image", "width", "height", "scheme", "names", "faces"]
    assert len(result["names"]) == 98
    assert (result["width"], result["height"]) == (300, 200)
    assert len(result["faces"]) == 2
    for face in result["faces"]:
        assert list(face) == ["box", "score", "landmarks", "confidence", "heatmap_landmarks"]
        assert np.shape(face["landmarks"]) == np.shape(face["heatmap_landmarks"]) == (98, 2)
        assert np.shape(face["confidence"]) == (98,)
        assert np.isfinite(face["landmarks"]).all()
    assert result["faces"][1]["box"] == [110.5, 40, 190, 160]
    overlay = cv2.imread(str(out / "photo.png"))
    assert overlay.shape[1:] == (300, 3)
    assert (overlay[:200] != cv2.imread(str(photo))).any()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("400,30,500,170", "the center of the box is outside the "),
        ("100,30,200", "a box is four numbers"),
        ("a,b,c,d", "a box is four numbers"),
        ("nan,30,200,170", "a box is four numbers"),
        ("200,30,100,170", "x1 and y1 have to be larger"),
    ],
)
def test_invalid_box_is_an_error_and_nothing_is_written(
    error_line, small_run, photo, tmp_path, box, message
):
    out = tmp_path / "out"
    error = error_line("predict", "--model", small_run, photo, f"--box={box}", "--out", out)
    assert message in error
    assert not out.exists()


def test_edges_of_a_model_without_a_graph_are_an_error(error_line, small_run, photo, tmp_path):
    model, out = tmp_path / "heatmaps_only", tmp_path / "out"
    save_bundle(model, load_bundle(small_run).without_graph(), "")
    arguments = ["--model", model, photo, "--whole-image", "--draw-edges", "--out", out]
    error = error_line("predict", *arguments)
    assert f"--draw-edges: {model} has no graph" in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "the image file is empty"),
        ("text.jpg", b"no image", "cannot be decoded"),
        ("missing.jpg", None, "cannot be read"),
    ],
)
def test_invalid_image_is_an_error(error_line, small_run, tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    error = error_line(
        "predict", "--model", small_run, path, "--box", "0,0,9,9", "--out", tmp_path / "o"
    )
    assert str(path) in error
    assert message in error


def test_truncated_jpeg_is_an_error(error_line, small_run, photo, tmp_path):
    path = tmp_path / "cut.jpg"
    encoded = cv2.imencode(".jpg", cv2.imread(str(photo)))[1].tobytes()
    path.write_bytes(encoded[: len(encoded) // 2])
    error = error_line(
        "predict", "--model", small_run, path, "--box", "0,0,99,99", "--out", tmp_path / "o"
    )
    assert f"{path}: the image file is truncated" in error


def test_results_are_not_overwritten_unless_asked(error_line, small_run, photo, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "photo.json").write_text("precious")
    arguments = [
        "--model",
        str(small_run),
        str(photo),
        "--box",
        "100,30,200,170",
        "--out",
        str(out),
    ]
    assert "already exists" in error_line("predict", *arguments)
    assert (out / "photo.json").read_text() == "precious"
    assert main(["predict", *arguments, "--overwrite"]) == 0
    assert json.loads((out / "photo.json").read_text())["faces"]


@pytest.fixture
def predict(small_run, tmp_path):
    """Function that runs `lcgcn predict`, by default with the small model, and returns the exit code."""

    def run(*arguments, model=small_run):
        options = ["--model", model, *arguments, "--out", tmp_path / "out"]
        return main(["predict", *map(str, options)])

    return run


def image(folder, name, size=(120, 90)):
    """Writes an image file with a face-like blob."""
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    cv2.ellipse(image, (60, 45), (25, 35), 0, 0, 360, (160, 180, 220), cv2.FILLED)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(image).save(folder / name)
    return folder / name


def faces_in(path):
    return json.loads(path.read_text())["faces"]


@pytest.mark.slow
def test_faces_of_real_images_are_detected(predict, shared, detector_model, tmp_path, capsys):
    photos = shared / "data/photos"
    assert (
        predict(
            photos / "2008*.jpg",
            photos / "2009_004587.jpg",
            "--detector-model",
            detector_model,
            model="w300-lcgcn-small",
        )
        == 0
    )
    captured = capsys.readouterr()
    assert f"{photos}/2008_001322.jpg: 3 faces; " in captured.out
    assert captured.err == ""
    for name, count in (("2008_001322", 3), ("2009_004587", 2)):
        faces = faces_in(tmp_path / "out" / f"{name}.json")
        assert len(faces) == count
        for face in faces:
            x0, y0, x1, y1 = face["box"]
            low, high = np.min(face["landmarks"], axis=0), np.max(face["landmarks"], axis=0)
            # The detector's box is mapped to that of the landmarks.
            side = max(x1 - x0, y1 - y0)
            np.testing.assert_allclose([*low, *high], [x0, y0, x1, y1], atol=0.2 * side)


def test_folder_with_invalid_files_is_finished(predict, tmp_path, capsys):
    folder = tmp_path / "photos"
    image(folder, "good.jpg")
    (folder / "cut.jpg").write_bytes((folder / "good.jpg").read_bytes()[:500])
    (folder / "empty.png").touch()
    image(folder, "sub/also good.tif")
    assert predict(folder, "--whole-image") == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"left out: {folder}/cut.jpg: the image file is truncated; use a complete JPEG or PNG file",
        f"left out: {folder}/empty.png: the image file is empty; use a complete JPEG or PNG file",
    ]
    written = sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")
    )
    assert written == [
        "good.json",
        "good.png",
        "sub/also good.json",
        "sub/also good.png",
    ]


def test_results_refer_to_the_upright_image(predict, tmp_path):
    upright = np.asarray(PIL.Image.open(image(tmp_path, "a.png")))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # rotate clockwise for display
    turned = PIL.Image.fromarray(np.rot90(upright))
    turned.save(tmp_path / "b.png", exif=exif)
    assert predict(tmp_path / "a.png", tmp_path / "b.png", "--whole-image") == 0
    a, b = (json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in "ab")
    assert (b["width"], b["height"]) == (a["width"], a["height"]) == (120, 90)
    np.testing.assert_allclose(a["faces"][0]["landmarks"], b["faces"][0]["landmarks"], atol=0.01)


def test_whole_image_is_a_crop_of_one_face(predict, photo, tmp_path):
    assert predict(photo, "--whole-image") == 0
    (face,) = faces_in(tmp_path / "out/photo.json")
    # Its crop, 1.25 times as large, is the image: 300 x 200.
    np.testing.assert_allclose(face["box"], [29.5, 19.5, 269.5, 179.5])


def test_file_of_boxes(predict, tmp_path, capsys):
    for name in ("a.png", "b.png", "c.png"):
        image(tmp_path / "photos", name)
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,x0,y0,x1,y1\na.png,35,10,85,80\nb.png,35,10,85,80\nb.png,30,15,80,75\n")
    assert predict(tmp_path / "photos", "--boxes", boxes) == 1
    assert [len(faces_in(tmp_path / f"out/{name}.json")) for name in "ab"] == [1, 2]
    assert capsys.readouterr().err == f"left out: {tmp_path}/photos/c.png: no face box in {boxes}\n"


def test_boxes_with_width_and_height(predict, photo, tmp_path):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,x,y,width,height\nphoto.png,100,30,100,140\n")
    faces = []
    for options in (
        ["--box", "100,30,200,170"],
        ["--box", "100,30,100,140", "--box-format", "xywh"],
        ["--boxes", boxes, "--box-format=xywh"],
    ):
        assert predict(photo, *options, "--overwrite") == 0
        faces.append(faces_in(tmp_path / "out/photo.json"))
    assert faces[0] == faces[1] == faces[2]
    assert faces[0][0]["box"] == [100, 30, 200, 170]


def test_box_may_start_outside_the_image(predict, photo, tmp_path):
    assert predict(photo, "--box", "-10,-.5,200,170") == 0
    assert faces_in(tmp_path / "out/photo.json")[0]["box"] == [-10, -0.5, 200, 170]


def test_68_landmarks_of_a_model_with_98(predict, photo, tmp_path):
    assert predict(photo, "--whole-image", "--scheme", "ibug68", "--draw-edges") == 0
    result = json.loads((tmp_path / "out/photo.json").read_text())
    assert (result["scheme"], len(result["names"])) == ("ibug68", 68)
    (face,) = result["faces"]
    assert len(face["landmarks"]) == len(face["confidence"]) == 68


def test_faces_below_the_minimum_confidence_are_left_out(predict, photo, tmp_path):
    assert predict(photo, "--whole-image", "--min-confidence", "1") == 0
    assert faces_in(tmp_path / "out/photo.json") == []


def test_csv_and_pts_equal_the_json(small_run, photo, tmp_path):
    boxes = ["--box", "100,30,200,170", "--box", "110.5,40,190,160"]
    for kind in ("json", "csv", "pts"):
        options = ["--model", small_run, photo, *boxes, "--format", kind, "--out", tmp_path / kind]
        assert main(["predict", *map(str, options)]) == 0
    faces = faces_in(tmp_path / "json/photo.json")
    with (tmp_path / "csv/photo.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 98
    points = np.array([[float(row["x"]), float(row["y"])] for row in rows]).reshape(2, 98, 2)
    for i, face in enumerate(faces):
        np.testing.assert_allclose(points[i], face["landmarks"], atol=2e-3)
        pts = read_pts(tmp_path / f"pts/photo_face{i + 1}.pts", 98)
        np.testing.assert_allclose(pts - 1, face["landmarks"], atol=2e-3)
    assert not (tmp_path / "csv/photo.json").exists()


def test_pts_files_of_an_earlier_run_are_deleted(predict, photo, tmp_path):
    box = ["--box", "100,30,200,170"]
    assert predict(photo, *box, *box, "--format", "pts") == 0
    assert predict(photo, *box, "--format", "pts", "--overwrite") == 0
    assert [path.name for path in (tmp_path / "out").glob("*.pts")] == ["photo_face1.pts"]


def test_image_without_a_face(predict, photo, shared, detector_model, tmp_path, capsys):
    assert predict(photo, "--detector-model", detector_model) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"no face found in: {photo}; give the box of a missed face with --box")
    assert faces_in(tmp_path / "out/photo.json") == []
    face = shared / "data/photos/2009_004587.jpg"
    assert predict(photo, face, "--detector-model", detector_model, "--overwrite") == 0


def test_large_image(predict, tmp_path):
    """An image of 40 megapixels."""
    path = image(tmp_path, "large.jpg", size=(8000, 5000))
    assert predict(path, "--box", "35,10,85,80") == 0
    assert json.loads((tmp_path / "out/large.json").read_text())["width"] == 8000


def test_overlays_of_large_images_are_reduced(predict, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_predict, "_MAX_OVERLAY_SIDE", 100)
    assert predict(photo, "--box", "100,30,200,170") == 0
    overlay = cv2.imread(str(tmp_path / "out/photo.png"))
    assert max(overlay.shape) == 100
    assert json.loads((tmp_path / "out/photo.json").read_text())["width"] == 300


@pytest.fixture
def clip(shared, tmp_path):
    """Video of a moving and growing image of two faces, 12 frames of 400 x 500 pixels."""
    image = read_image(shared / "data/photos/2009_004587.jpg")
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, frames_per_second=24.0) as writer:
        for i in range(12):
            scale = 1 + 0.01 * i
            affine = np.array([[scale, 0, -3 * i], [0, scale, -i]])
            writer.write(cv2.warpAffine(image, affine, (400, 500)))
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_video_has_json_lines_and_an_annotated_video(
    predict, clip, detector_model, tmp_path, capsys
):
    options = ["--model", "w300-lcgcn-small", "--detector-model", detector_model]
    assert predict(clip, *options) == 0
    out = tmp_path / "out"
    lines = read_lines(out / "clip.jsonl")
    assert [line["frame"] for line in lines] == list(range(12))
    assert all(len(line["names"]) == 68 and line["scheme"] == "ibug68" for line in lines)
    np.testing.assert_allclose([line["time"] for line in lines], np.arange(12) / 24, atol=1e-6)
    boxes = {}
    for line in lines:
        assert len(line["faces"]) == 2
        for face in line["faces"]:
            keys = [
                "track",
                "box",
                "score",
                "landmarks",
                "confidence",
                "heatmap_landmarks",
                "expected_error",
                "visibility",
                "predicted_error",
                "reliable",
            ]
            assert list(face) == keys
            boxes.setdefault(face["track"], []).append(face["box"])
    # Two faces, with one track each, that move with the image.
    assert sorted(boxes) == [0, 1]
    for track in boxes.values():
        track = np.array(track)
        assert len(track) == 12
        affine = np.array([[1.11, 0, -33], [0, 1.11, -11]])
        expected = transform_points(affine, track[0].reshape(2, 2)).reshape(4)
        np.testing.assert_allclose(track[-1], expected, atol=0.15 * (track[0, 2] - track[0, 0]))
    with open_video(out / "clip.mp4") as video:
        frames = list(video.frames)
        assert video.frames_per_second == 24
    assert len(frames) == 12
    assert frames[0].pixels.shape[0] >= 500
    captured = capsys.readouterr()
    assert f"{clip}: 12 frames, 24 faces, " in captured.out
    assert "frames per second" in captured.out
    assert "frame/s" in captured.err
    assert not list(out.glob(".*")), "no temporary file remains"

    before = read_lines(out / "clip.jsonl")
    assert predict(clip, *options, "--smooth", "--overwrite") == 0
    after = read_lines(out / "clip.jsonl")
    assert after[0] == before[0]

    def points(lines, key):
        return np.array(
            [
                [face[key] for face in sorted(line["faces"], key=lambda f: f["track"])]
                for line in lines
            ]
        )

    np.testing.assert_array_equal(
        points(after, "heatmap_landmarks"), points(before, "heatmap_landmarks")
    )
    jitter = [
        np.abs(np.diff(points(lines, "landmarks"), n=2, axis=0)).mean() for lines in (before, after)
    ]
    assert jitter[1] < 0.85 * jitter[0], "of a face that moves all the time"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "csv"], "the landmarks of a video are JSON lines; leave out --format"),
        (["--fps", "0"], "--fps: 0 has to be at least 0.01"),
    ],
)
def test_invalid_options_for_videos(error_line, small_run, tmp_path, options, message):
    (tmp_path / "clip.mp4").touch()
    arguments = ["--model", small_run, tmp_path / "clip.mp4", "--out", tmp_path / "out"]
    assert message in error_line("predict", *arguments, *options)


def test_empty_video_is_an_error(error_line, small_run, tmp_path):
    (tmp_path / "clip.mp4").touch()
    arguments = ["--model", small_run, tmp_path / "clip.mp4", "--out", tmp_path / "out"]
    error = error_line("predict", *arguments, "--whole-image")
    assert f"{tmp_path}/clip.mp4: no frame of a video can be read" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--smooth"], "--max-frames apply to videos, but no input is a video"),
        (["--fps", "25"], "--max-frames apply to videos, but no input is a video"),
        (["--detect-every", "5"], "--max-frames apply to videos, but no input is a video"),
        (["--max-frames", "0"], "--max-frames: 0 has to be at least 1"),
        (["--boxes", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--box", "0,0,9,9", "--whole-image"], "not allowed with argument"),
        (["--format", "xml"], "invalid choice: 'xml'"),
        (["--box-format", "xywh"], "--box-format applies to --box and --boxes"),
        (["--box", "9,9,0,9", "--box-format", "xywh"], "width and height have to be positive"),
        (["--box", "9,9,9", "--box-format", "xywh"], "four numbers x,y,width,height"),
        (["--min-score", "1.5"], "--min-score: 1.5 has to be at most 1"),
        (["--min-confidence", "nan"], "--min-confidence: nan has to be at least 0"),
        (["--min-confidence", "x"], "--min-confidence: invalid float value: 'x'"),
        (["--whole-image", "--min-score", "0.5"], "--min-score applies to detected faces"),
        ([], "give --detector-model FILE, --box X0,Y0,X1,Y1, --boxes FILE or --whole-image"),
    ],
)
def test_invalid_options(error_line, small_run, photo, tmp_path, monkeypatch, options, message):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["--model", small_run, photo, "--out", tmp_path / "out"]
    assert message in error_line("predict", *arguments, *options)
    assert not (tmp_path / "out").exists()


def test_box_needs_a_single_input(error_line, small_run, photo, tmp_path):
    other = image(tmp_path, "b.png")
    error = error_line("predict", "--model", small_run, photo, other, "--box", "0,0,9,9")
    assert "--box needs a single input, got 2; use --boxes" in error


def test_input_is_never_overwritten(error_line, small_run, photo):
    before = photo.read_bytes()
    arguments = ["--model", small_run, photo, "--whole-image", "--out", photo.parent]
    error = error_line("predict", *arguments, "--overwrite")
    assert f"{photo}: is one of the inputs; choose another --out" in error
    assert photo.read_bytes() == before


def test_unwritable_folder_is_an_error(error_line, small_run, photo, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    arguments = ["--model", small_run, photo, "--whole-image", "--out"]
    error = error_line("predict", *arguments, tmp_path / "file" / "out")
    assert f"{tmp_path}/file/out: cannot be written to; choose another --out" in error
    # The superuser of a container can write anywhere.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "cannot be written to" in error_line("predict", *arguments, tmp_path / "out")


def test_edges_are_drawn(predict, photo, tmp_path):
    assert predict(photo, "--whole-image") == 0
    plain = cv2.imread(str(tmp_path / "out/photo.png"))
    assert predict(photo, "--whole-image", "--draw-edges", "--overwrite") == 0
    assert (cv2.imread(str(tmp_path / "out/photo.png")) != plain).any()

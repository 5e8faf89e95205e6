import json

import cv2
import numpy as np
import pytest

from lcgcn_jax.commands.main import main


@pytest.fixture
def photo(tmp_path):
    """A picture file with a face-like blob, 300 x 200."""
    image = np.full((200, 300, 3), 90, np.uint8)
    cv2.ellipse(image, (150, 100), (50, 70), 0, 0, 360, (160, 180, 220), cv2.FILLED)
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), image)
    return path


def test_json_and_overlay_in_the_photographs_pixels(small_run, photo, tmp_path):
    out = tmp_path / "out"
    boxes = ["--box", "100,30,200,170", "--box", "110.5,40,190,160"]
    arguments = ["--model", str(small_run), str(photo), *boxes, "--out", str(out)]
    assert main(["predict", *arguments]) == 0
    result = json.loads((out / "photo.json").read_text())
    assert list(result) == ["image", "width", "height", "faces"]
    assert (result["width"], result["height"]) == (300, 200)
    assert len(result["faces"]) == 2
    for face in result["faces"]:
        assert list(face) == ["box", "landmarks", "confidence", "heatmap_landmarks"]
        assert np.shape(face["landmarks"]) == np.shape(face["heatmap_landmarks"]) == (98, 2)
        assert np.shape(face["confidence"]) == (98,)
        assert np.isfinite(face["landmarks"]).all()
    assert result["faces"][1]["box"] == [110.5, 40, 190, 160]
    overlay = cv2.imread(str(out / "photo.png"))
    assert overlay.shape == (200, 300, 3)
    assert (overlay != cv2.imread(str(photo))).any()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("400,30,500,170", "its centre is outside the picture, which is 300 x 200"),
        ("100,30,200", "a box is four numbers"),
        ("a,b,c,d", "a box is four numbers"),
        ("nan,30,200,170", "a box is four numbers"),
        ("200,30,100,170", "x1 and y1 have to be larger"),
    ],
)
def test_bad_box_is_refused_and_nothing_is_written(
    refused, small_run, photo, tmp_path, box, message
):
    out = tmp_path / "out"
    said = refused("predict", "--model", small_run, photo, f"--box={box}", "--out", out)
    assert message in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "the image file is empty"),
        ("text.jpg", b"no picture", "cannot be decoded"),
        ("missing.jpg", None, "cannot be read"),
    ],
)
def test_bad_picture_is_refused(refused, small_run, tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    said = refused(
        "predict", "--model", small_run, path, "--box", "0,0,9,9", "--out", tmp_path / "o"
    )
    assert str(path) in said
    assert message in said


def test_truncated_jpeg_is_refused(refused, small_run, photo, tmp_path):
    path = tmp_path / "cut.jpg"
    encoded = cv2.imencode(".jpg", cv2.imread(str(photo)))[1].tobytes()
    path.write_bytes(encoded[: len(encoded) // 2])
    said = refused(
        "predict", "--model", small_run, path, "--box", "0,0,99,99", "--out", tmp_path / "o"
    )
    assert f"{path}: the image file is truncated" in said


def test_results_are_not_overwritten_unless_asked(refused, small_run, photo, tmp_path):
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
    assert "already exists" in refused("predict", *arguments)
    assert (out / "photo.json").read_text() == "precious"
    assert main(["predict", *arguments, "--overwrite"]) == 0
    assert json.loads((out / "photo.json").read_text())["faces"]

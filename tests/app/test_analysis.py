"""Views of an analyzed image: coordinates, selection, edges, files for download."""

import base64
import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from lcgcn_jax.app import analysis as views
from lcgcn_jax.app import uploads
from lcgcn_jax.app.analysis import Selection
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference import results
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.visualize.landmark_details import draw_predicted_errors, strongest_edges

SCHEME = LandmarkScheme.from_dict({"name": "five", "num_landmarks": 5})


class FixedModel(LandmarkModel):
    """Model that finds these faces in every image."""

    def __init__(self, faces):
        self.scheme, self.faces = SCHEME, list(faces)

    def predict(self, image, boxes=None):
        return self.faces


def make_face(x, y, side, **fields):
    unit = np.array([[0.2, 0.3], [0.8, 0.3], [0.5, 0.6], [0.3, 0.8], [0.7, 0.8]])
    landmarks = np.array([x, y]) + side * unit
    edges = np.full((5, 5), 0.1)
    edges[2] = [0.05, 0.3, 0.4, 0.05, 0.2]
    return Face(
        box=np.array([x, y, x + side, y + side], float),
        landmarks=landmarks,
        confidence=np.linspace(0.5, 0.9, 5),
        heatmap_landmarks=landmarks + 1,
        scheme=SCHEME,
        **{"edges": edges, "predicted_error": np.full(5, 0.02 * side), **fields},
    )


@pytest.fixture
def analyze(tmp_path):
    """Analyzes an image of a size with these faces."""

    def run(*faces, size=(300, 400)):
        path = tmp_path / "photo.png"
        cv2.imwrite(str(path), np.full((*size, 3), 90, np.uint8))
        return views.analyze(path, FixedModel(faces))

    return run


def test_files_have_the_content_of_predict(analyze):
    face = make_face(50, 60, 100)
    result = analyze(face)
    expected = results.describe_image(Path("photo.png"), 400, 300, [face], SCHEME)
    assert json.loads(result.to_json()) == json.loads(json.dumps(expected))
    assert result.to_csv() == results.format_csv([face], SCHEME)
    assert result.describe() == "photo.png: 400 x 300 pixels, 1 face"


def test_large_images_are_downsampled_for_the_screen_only(analyze):
    face = make_face(1600, 1200, 800)
    result = analyze(face, size=(2400, 3200))
    assert result.pixels.shape == (1200, 1600, 3)
    np.testing.assert_array_equal(result.faces[0].landmarks, face.landmarks)
    np.testing.assert_allclose(result.shown[0].landmarks, (face.landmarks + 0.5) / 2 - 0.5)
    np.testing.assert_allclose(result.shown[0].predicted_error, face.predicted_error / 2)


def test_a_click_selects_the_next_landmark(analyze):
    result = analyze(make_face(10, 10, 100), make_face(200, 50, 120))
    x, y = result.shown[1].landmarks[3]
    assert views.select_in_overview(result, float(x) + 5, float(y) - 5) == Selection(1, 3)
    assert views.select_in_overview(result, 395.0, 295.0) is None
    # In the view of the second face, the same landmark is at another place.
    face, _ = views._view(result, 1)
    x, y = face.landmarks[3]
    assert views.select_in_view(result, Selection(1), float(x) + 9, float(y)) == Selection(1, 3)
    assert views.select_in_view(result, Selection(1, 3), 0.0, 0.0) == Selection(1)


def test_edges_of_the_selected_landmark(analyze):
    result = analyze(make_face(50, 60, 100))
    assert strongest_edges(result.faces[0].edges, 2, 3) == [(1, 0.3), (4, 0.2), (0, 0.05)]
    name = SCHEME.names[1].replace("_", " ")
    assert views.edge_table(result, Selection(0, 2))[0] == [f"{name} (1)", "0.300", "1.5"]
    text = views.describe_landmark(result, Selection(0, 2))
    assert "predicted error 2.0 pixels" in text
    assert "edge to itself 0.400" in text
    plain, selected = (views.face_view(result, Selection(0, i), ()) for i in (None, 2))
    face, _ = views._view(result, 0)
    middle = (face.landmarks[1] + face.landmarks[2]) / 2
    x, y = np.round(middle).astype(int)
    assert (plain[y, x] == 90).all()
    assert selected[y, x].tolist() == [255, 170, 0]


def test_layers_change_the_images(analyze):
    result = analyze(make_face(50, 60, 100))
    images = [
        views.overview(result, Selection(), layers) for layers in ((), *([x] for x in views.LAYERS))
    ]
    assert all((images[0] != other).any() for other in images[1:])
    radius = result.shown[0].predicted_error[0]
    drawn = draw_predicted_errors(result.pixels, result.shown)
    x, y = result.shown[0].landmarks[0].round().astype(int)
    assert (drawn[y, x + int(radius) - 1] != 90).any()
    assert (drawn[y, x + int(radius) + 3] == 90).all()


def test_models_without_graph_errors_or_faces(analyze):
    result = analyze(make_face(50, 60, 100, edges=None, predicted_error=None))
    assert views.edge_table(result, Selection(0, 2)) == []
    assert "no graph" in views.describe_landmark(result, Selection(0, 2))
    assert views.face_view(result, Selection(0, 2), views.LAYERS) is not None
    empty = analyze()
    assert "No face found" in empty.describe()
    assert views.face_view(empty, Selection(), views.LAYERS) is None
    assert views.select_in_overview(empty, 1.0, 1.0) is None
    assert views.edge_table(empty, Selection(0, 2)) == []
    assert json.loads(empty.to_json())["faces"] == []


def png(width, height):
    header = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    chunk = b"IHDR" + struct.pack(">II", width, height) + header[24:29]
    return header[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + header[33:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "the image file is empty"),
        ("text.jpg", b"hello", "the image cannot be decoded; upload a complete JPEG or PNG file"),
        ("page.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be decoded"),
        ("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "convert it to JPEG"),
        ("huge.png", png(10_000, 6_000), "10000 x 6000 pixels; the limit is 50 megapixels"),
        ("bomb.png", png(2**31 - 1, 2**31 - 1), "the limit is 50 megapixels"),
        ("long.jpg", b"\xff\xd8" + bytes(uploads.MAX_IMAGE_BYTES), "has 30 MB; the limit is 30 MB"),
        ("a\nb.jpg", b"", r"a\nb.jpg: the image file is empty"),
    ],
)
def test_unusable_images_are_errors_of_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        uploads.read_upload(tmp_path / name)
    text = str(caught.value)
    assert message in text
    assert len(text.splitlines()) == 1
    assert str(tmp_path) not in text


def test_truncated_and_rotated_images(tmp_path):
    encoded = uploads.SAMPLE.read_bytes()
    assert uploads.read_upload(uploads.SAMPLE).shape == (512, 512, 3)
    (tmp_path / "cut.jpg").write_bytes(encoded[: len(encoded) // 2])
    with pytest.raises(InputError, match=r"cut\.jpg: the image file is truncated"):
        uploads.read_upload(tmp_path / "cut.jpg")


def test_videos_are_limited(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(4):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    uploads.check_video(path)
    monkeypatch.setattr(uploads, "MAX_VIDEO_FRAMES", 3)
    with pytest.raises(InputError, match=r"clip\.mp4: the video has more than 3 frames"):
        uploads.check_video(path)
    monkeypatch.setattr(uploads, "MAX_VIDEO_PIXELS", 100)
    with pytest.raises(InputError, match=r"clip\.mp4: the frames have 64 x 48 pixels"):
        uploads.check_video(path)
    monkeypatch.setattr(uploads, "MAX_VIDEO_BYTES", 10)
    with pytest.raises(InputError, match=r"clip\.mp4: has 0 MB; the limit is 0 MB"):
        uploads.check_video(path)
    path.write_bytes(b"no video")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"clip\.mp4: no frame of a video can be read"):
        uploads.check_video(path)


def test_download_links(analyze):
    pytest.importorskip("gradio", reason="needs: the extra app")
    from lcgcn_jax.app.page import _download_links

    result = analyze(make_face(50, 60, 100))
    links = _download_links(result)
    data = links.partition("data:application/json;base64,")[2].partition('"')[0]
    assert base64.b64decode(data).decode() == result.to_json()
    assert 'download="photo.csv"' in links

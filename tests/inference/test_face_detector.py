import hashlib
import io

import cv2
import numpy as np
import pytest

from lcgcn_jax.data.formats.pts import read_pts
from lcgcn_jax.errors import InputError
from lcgcn_jax.geometry import box_of_landmarks
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference import face_detector
from lcgcn_jax.inference.face_detector import BoxMap, Detections, FaceDetector


def some_detections(count, seed=0):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 100, (count, 2)), rng.uniform(30, 90, (count, 2))
    points = corner[:, None] + rng.uniform(0.2, 0.8, (count, 5, 2)) * size[:, None]
    return Detections(np.hstack([corner, corner + size]), points, np.ones(count))


def mirrored(boxes):
    return np.stack([-boxes[:, 2], boxes[:, 1], -boxes[:, 0], boxes[:, 3]], axis=1)


@pytest.mark.parametrize("points", [False, True])
def test_fit_finds_the_map_that_made_the_boxes(points):
    """One of constants, which knows no left and right: o = (0, 0.1), r = (0.9, 0.8)."""
    coefficients = np.zeros((11, 4))
    coefficients[-1] = (0, 0.1, 0.9, 0.8)
    detections = some_detections(60)
    boxes = BoxMap(coefficients)(detections)
    fitted = face_detector.fit_box_map(detections, boxes, points=points)
    np.testing.assert_allclose(fitted.coefficients, coefficients, atol=1e-9)
    x0, y0, x1, y1 = detections.boxes[0]
    width, height = x1 - x0, y1 - y0
    center = (x0 + x1) / 2, (y0 + y1) / 2 + 0.1 * height
    expected = [
        center[0] - 0.45 * width, center[1] - 0.4 * height,
        center[0] + 0.45 * width, center[1] + 0.4 * height,
    ]  # fmt: skip
    np.testing.assert_allclose(boxes[0], expected)


def test_map_treats_mirror_images_alike():
    detections = some_detections(20)
    points = (detections.points * (-1.0, 1.0))[:, [1, 0, 2, 4, 3]]
    image = Detections(mirrored(detections.boxes), points, detections.scores)
    there = face_detector.BOX_MAP(detections)
    np.testing.assert_allclose(face_detector.BOX_MAP(image), mirrored(there), atol=0.05)


def test_crop_errors_are_parts_of_the_true_side():
    true = np.array([[10.0, 20.0, 50.0, 100.0]])
    offset, scale = face_detector.crop_errors(np.array([[14.0, 12.0, 62.0, 100.0]]), true)
    np.testing.assert_allclose(offset, [[0.1, -0.05]])
    np.testing.assert_allclose(scale, [np.log(1.1)])


@pytest.fixture(scope="module")
def detector(detector_model):
    return FaceDetector(detector_model)


def test_boxes_on_whole_images_are_those_of_the_landmarks(detector, shared):
    """Images of which the map has seen at most small cuts; the first is 1,600 px wide."""
    detected, mapped, true = [], [], []
    for points in sorted((shared / "data/300w_fullsize").glob("*/trainset/*.pts")):
        (path,) = (p for p in points.parent.glob(f"{points.stem}.*") if p.suffix != ".pts")
        found = detector.detect(read_image(path))
        assert len(found) == 1
        landmarks = read_pts(points, 68) - 1
        true.append(box_of_landmarks(landmarks, np.ones(68, bool)))
        detected.append(found.boxes[0])
        mapped.append(face_detector.BOX_MAP(found)[0])
    offset, scale = face_detector.crop_errors(np.stack(mapped), np.stack(true))
    before, _ = face_detector.crop_errors(np.stack(detected), np.stack(true))
    assert len(true) == 5
    assert np.linalg.norm(offset, axis=1).max() < 0.08
    assert np.abs(scale).max() < 0.12
    assert np.linalg.norm(before, axis=1).min() > np.linalg.norm(offset, axis=1).max()


@pytest.mark.parametrize(
    ("name", "faces"),
    [("2008_001322.jpg", (3, 3)), ("2009_004587.jpg", (2, 2)), ("bald_guys.jpg", (23, 26))],
)
def test_every_face_of_a_group_is_found_once(detector, shared, name, faces):
    image = read_image(shared / "data/photos" / name)
    found = detector.detect(image)
    assert faces[0] <= len(found) <= faces[1]
    assert (np.diff(found.scores) <= 0).all()
    height, width = image.shape[:2]
    centers = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    assert ((centers > 0) & (centers < (width, height))).all()
    # Eyes above mouth, left before right.
    assert (found.points[:, :2, 1].mean(axis=1) < found.points[:, 3:, 1].mean(axis=1)).all()
    assert (found.points[:, 0, 0] < found.points[:, 1, 0]).all()


def test_boxes_grow_with_the_image(detector, shared):
    image = read_image(shared / "data/photos/2009_004587.jpg")
    larger = cv2.resize(image, None, fx=7, fy=7, interpolation=cv2.INTER_CUBIC)
    boxes, grown = detector.face_boxes(image), detector.face_boxes(larger)
    assert larger.shape[0] * larger.shape[1] > 9e6
    order, grown_order = boxes[:, 0].argsort(), grown[:, 0].argsort()
    side = (boxes[:, 2:] - boxes[:, :2]).max()
    np.testing.assert_allclose(grown[grown_order] / 7, boxes[order], atol=0.1 * side)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 500, 3), (2000, 7, 3), (240, 320, 3)])
def test_picture_without_a_face_gives_none(detector, shape):
    found = detector.detect(np.full(shape, 128, np.uint8))
    assert len(found) == 0
    assert face_detector.BOX_MAP(found).shape == (0, 4)


def test_faces_of_which_little_is_seen_have_no_box(detector, monkeypatch):
    """Of three detections the second has its center outside, and the third comes out inside out."""
    boxes = np.array([[10.0, 10, 50, 60], [-50, 10, -10, 60], [60, 10, 90, 40]])
    found = Detections(boxes, np.zeros((3, 5, 2)), np.array([0.9, 0.8, 0.7]))
    monkeypatch.setattr(detector, "detect", lambda image: found)
    monkeypatch.setattr(face_detector, "BOX_MAP", lambda found: found.boxes)
    found.boxes[2] = found.boxes[2, [2, 1, 0, 3]]
    kept, scores = detector.scored_boxes(np.zeros((80, 100, 3), np.uint8))
    np.testing.assert_array_equal(kept, boxes[:1])
    np.testing.assert_array_equal(scores, [0.9])


def test_of_two_boxes_of_which_one_holds_most_of_the_other_the_surer_is_kept():
    face, beside = [10.0, 10, 50, 50], [40.0, 10, 90, 60]
    with_chest = [0.0, 0, 60, 100]
    mostly = [12.0, 8, 52, 48]
    boxes = np.array([face, with_chest, beside, mostly, face])
    assert face_detector._without_nested(boxes) == [0, 2]
    kept = face_detector._without_nested(boxes[::-1])
    np.testing.assert_array_equal(boxes[::-1][kept], [face, beside])
    assert face_detector._without_nested(boxes[[1, 0]]) == [0]
    assert face_detector._without_nested(np.zeros((0, 4))) == []


def test_no_box_of_a_crowd_holds_most_of_another(detector, shared):
    boxes = detector.face_boxes(read_image(shared / "data/photos/bald_guys.jpg"))
    assert 23 <= len(boxes) <= 25
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared_parts = (high - low).clip(min=0).prod(axis=2) / areas[None]
    np.fill_diagonal(shared_parts, 0)
    assert shared_parts.max() <= 0.75


def test_detector_finds_faces_in_gray_and_rgba(detector, shared):
    image = read_image(shared / "data/photos/2009_004587.jpg")
    boxes = detector.face_boxes(image)
    rgba = np.dstack([image, np.zeros_like(image[..., 0])])
    np.testing.assert_array_equal(detector.face_boxes(rgba), boxes)
    assert len(detector.face_boxes(image.mean(axis=2).astype(np.uint8))) == 2
    with pytest.raises(InputError, match="float32 array"):
        detector.detect(image.astype(np.float32))


def test_opencv_log_is_as_before_after_quiet_blocks_in_threads():
    log = cv2.utils.logging
    before = log.getLogLevel()
    first, second = face_detector.quiet_opencv(), face_detector.quiet_opencv()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert log.getLogLevel() == log.LOG_LEVEL_SILENT
    second.__exit__(None, None, None)
    assert log.getLogLevel() == before


@pytest.mark.parametrize("content", [b"", b"no model" * 50, None])
def test_what_is_no_detector_is_named(tmp_path, content, capfd):
    path = tmp_path / "yunet.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"yunet\.onnx: (not a YuNet|no such file)"):
        FaceDetector(path)
    assert capfd.readouterr().err == ""


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lcgcn_jax" / "models"


def test_without_network_the_ways_out_are_named(cache):
    with pytest.raises(InputError) as caught:
        FaceDetector()
    message = str(caught.value)
    assert "no network in tests" in message
    for way in ("--detector-model FILE", "--box X0,Y0,X1,Y1", "--boxes FILE", "--whole-image"):
        assert way in message
    assert "\n" not in message
    assert not cache.exists()


def test_other_content_is_not_kept(cache, monkeypatch):
    page = io.BytesIO(b"<html>Please log in</html>")
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: page)
    with pytest.raises(InputError, match="what came is not the expected file"):
        face_detector.fetch_detector_model()
    assert not cache.exists()


def test_model_is_fetched_once(cache, monkeypatch):
    asked = []

    def answer(url, timeout):
        asked.append(url)
        return io.BytesIO(b"the model")

    monkeypatch.setattr("urllib.request.urlopen", answer)
    monkeypatch.setattr(face_detector, "MODEL_SHA256", hashlib.sha256(b"the model").hexdigest())
    for _ in range(2):
        assert face_detector.fetch_detector_model().read_bytes() == b"the model"
    assert asked == [face_detector.MODEL_URL]
    assert [path.name for path in cache.iterdir()] == [face_detector.MODEL_FILE]


def test_known_file_is_the_expected_one(detector_model):
    content = detector_model.read_bytes()
    assert hashlib.sha256(content).hexdigest() == face_detector.MODEL_SHA256

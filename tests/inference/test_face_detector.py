import errno
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from lcgcn_jax.data.formats.pts import read_pts
from lcgcn_jax.errors import InputError
from lcgcn_jax.geometry import box_of_landmarks, transform_points, upright_transform
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference import box_map, face_detector
from lcgcn_jax.inference.box_map import BoxMap, Detections
from lcgcn_jax.inference.face_detector import FaceDetector


def random_detections(count, seed=0):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 100, (count, 2)), rng.uniform(30, 90, (count, 2))
    points = corner[:, None] + rng.uniform(0.2, 0.8, (count, 5, 2)) * size[:, None]
    return Detections(np.hstack([corner, corner + size]), points, np.ones(count))


def mirrored(boxes):
    return np.stack([-boxes[:, 2], boxes[:, 1], -boxes[:, 0], boxes[:, 3]], axis=1)


@pytest.mark.parametrize("points", [False, True])
def test_fit_recovers_the_map_of_the_boxes(points):
    """A symmetric map of constants, o = (0, 0.1) and r = (0.9, 0.8)."""
    coefficients = np.zeros((11, 4))
    coefficients[-1] = (0, 0.1, 0.9, 0.8)
    detections = random_detections(60)
    boxes = BoxMap(coefficients)(detections)
    fitted = box_map.fit_box_map(detections, boxes, points=points)
    np.testing.assert_allclose(fitted.coefficients, coefficients, atol=1e-9)
    x0, y0, x1, y1 = detections.boxes[0]
    width, height = x1 - x0, y1 - y0
    center = (x0 + x1) / 2, (y0 + y1) / 2 + 0.1 * height
    expected = [
        center[0] - 0.45 * width, center[1] - 0.4 * height,
        center[0] + 0.45 * width, center[1] + 0.4 * height,
    ]  # fmt: skip
    np.testing.assert_allclose(boxes[0], expected)


def test_map_is_symmetric():
    detections = random_detections(20)
    points = (detections.points * (-1.0, 1.0))[:, [1, 0, 2, 4, 3]]
    mirror_image = Detections(mirrored(detections.boxes), points, detections.scores)
    expected = mirrored(box_map.BOX_MAP(detections))
    np.testing.assert_allclose(box_map.BOX_MAP(mirror_image), expected, atol=0.05)


def test_crop_errors_are_fractions_of_the_true_side():
    true = np.array([[10.0, 20.0, 50.0, 100.0]])
    offset, scale = box_map.crop_errors(np.array([[14.0, 12.0, 62.0, 100.0]]), true)
    np.testing.assert_allclose(offset, [[0.1, -0.05]])
    np.testing.assert_allclose(scale, [np.log(1.1)])


@pytest.fixture(scope="module")
def detector(detector_model):
    return FaceDetector(detector_model)


def test_boxes_in_full_size_images_match_the_landmarks(detector, shared):
    """The map was fitted on small crops of these images at most; the first is 1,600 px wide."""
    detected, mapped, true = [], [], []
    for points in sorted((shared / "data/300w_fullsize").glob("*/trainset/*.pts")):
        (path,) = (p for p in points.parent.glob(f"{points.stem}.*") if p.suffix != ".pts")
        detections = detector.detect(read_image(path))
        assert len(detections) == 1
        landmarks = read_pts(points, 68) - 1
        true.append(box_of_landmarks(landmarks, np.ones(68, bool)))
        detected.append(detections.boxes[0])
        mapped.append(box_map.BOX_MAP(detections)[0])
    offset, scale = box_map.crop_errors(np.stack(mapped), np.stack(true))
    offset_without_map, _ = box_map.crop_errors(np.stack(detected), np.stack(true))
    assert len(true) == 5
    assert np.linalg.norm(offset, axis=1).max() < 0.08
    assert np.abs(scale).max() < 0.12
    assert np.linalg.norm(offset_without_map, axis=1).min() > np.linalg.norm(offset, axis=1).max()


@pytest.mark.parametrize(
    ("name", "faces"),
    [("2008_001322.jpg", (3, 3)), ("2009_004587.jpg", (2, 2)), ("bald_guys.jpg", (23, 26))],
)
def test_each_face_of_a_group_is_detected_once(detector, shared, name, faces):
    image = read_image(shared / "data/photos" / name)
    detections = detector.detect(image)
    assert faces[0] <= len(detections) <= faces[1]
    assert (np.diff(detections.scores) <= 0).all()
    height, width = image.shape[:2]
    centers = (detections.boxes[:, :2] + detections.boxes[:, 2:]) / 2
    assert ((centers > 0) & (centers < (width, height))).all()
    # The eyes are above the mouth, and left comes before right.
    points = detections.points
    assert (points[:, :2, 1].mean(axis=1) < points[:, 3:, 1].mean(axis=1)).all()
    assert (points[:, 0, 0] < points[:, 1, 0]).all()


def test_boxes_scale_with_the_image(detector, shared):
    image = read_image(shared / "data/photos/2009_004587.jpg")
    larger = cv2.resize(image, None, fx=7, fy=7, interpolation=cv2.INTER_CUBIC)
    boxes, larger_boxes = detector.find_faces(image).boxes, detector.find_faces(larger).boxes
    assert larger.shape[0] * larger.shape[1] > 9e6
    boxes, larger_boxes = boxes[boxes[:, 0].argsort()], larger_boxes[larger_boxes[:, 0].argsort()]
    side = (boxes[:, 2:] - boxes[:, :2]).max()
    np.testing.assert_allclose(larger_boxes / 7, boxes, atol=0.1 * side)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 500, 3), (2000, 7, 3), (240, 320, 3)])
def test_image_without_a_face_has_no_detections(detector, shape):
    detections = detector.detect(np.full(shape, 128, np.uint8))
    assert len(detections) == 0
    assert box_map.BOX_MAP(detections).shape == (0, 4)


def test_faces_outside_the_image_and_negative_boxes_are_left_out(detector, monkeypatch):
    """The center of the second box is outside the image, and the third box has a negative width."""
    boxes = np.array([[10.0, 10, 50, 60], [-50, 10, -10, 60], [90, 10, 60, 40]])
    detections = Detections(boxes, np.zeros((3, 5, 2)), np.array([0.9, 0.8, 0.7]))
    monkeypatch.setattr(detector, "detect", lambda image, **_: detections)
    monkeypatch.setattr(face_detector, "BOX_MAP", lambda detections: detections.boxes)
    faces = detector.find_faces(np.zeros((80, 100, 3), np.uint8))
    np.testing.assert_array_equal(faces.boxes, boxes[:1])
    np.testing.assert_array_equal(faces.scores, [0.9])


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_faces_are_found_in_a_rotated_image(detector, shared, quarter_turns):
    """They have the boxes of the upright image, and the rotation that makes them upright."""
    image = read_image(shared / "data/photos/2009_004587.jpg")
    upright = detector.find_faces(image)
    height, width = image.shape[:2]
    rotated = detector.find_faces(np.rot90(image, -quarter_turns))
    np.testing.assert_array_equal(upright.rotations, [0, 0])
    np.testing.assert_array_equal(rotated.rotations, [360 - 90 * quarter_turns] * 2)
    orientation = face_detector._ORIENTATIONS[quarter_turns]
    to_rotated = upright_transform(orientation, width, height)
    corners = transform_points(to_rotated, upright.boxes.reshape(-1, 2, 2))
    expected = np.hstack([corners.min(axis=1), corners.max(axis=1)])
    np.testing.assert_allclose(rotated.boxes, expected, atol=0.5)
    for crop, box in zip(rotated.crops(64), rotated.boxes, strict=True):
        np.testing.assert_allclose(
            transform_points(crop, (box[:2] + box[2:]) / 2), [31.5, 31.5], atol=1e-6
        )


def test_minimum_score(detector, shared):
    image = read_image(shared / "data/photos/bald_guys.jpg")
    scores = detector.find_faces(image).scores
    low, high = detector.find_faces(image, min_score=0.2), detector.find_faces(image, min_score=0.9)
    assert len(low.scores) > len(scores)
    np.testing.assert_array_equal(high.scores, scores[scores >= 0.9])
    assert len(detector.find_faces(image, min_score=1.0).scores) == 0


def test_of_nested_boxes_the_first_is_selected():
    face, neighbor = [10.0, 10, 50, 50], [40.0, 10, 90, 60]
    with_chest = [0.0, 0, 60, 100]
    shifted = [12.0, 8, 52, 48]
    boxes = np.array([face, with_chest, neighbor, shifted, face])
    assert face_detector._suppress_nested(boxes, 0.75) == [0, 2]
    selected = face_detector._suppress_nested(boxes[::-1], 0.75)
    np.testing.assert_array_equal(boxes[::-1][selected], [face, neighbor])
    assert face_detector._suppress_nested(boxes[[1, 0]], 0.75) == [0]
    assert face_detector._suppress_nested(np.zeros((0, 4)), 0.75) == []


def test_boxes_of_a_crowd_are_not_nested(detector, shared):
    boxes = detector.find_faces(read_image(shared / "data/photos/bald_guys.jpg")).boxes
    assert 23 <= len(boxes) <= 25
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    fractions = (high - low).clip(min=0).prod(axis=2) / areas[None]
    np.fill_diagonal(fractions, 0)
    assert fractions.max() <= 0.75


def test_faces_are_detected_in_gray_and_rgba_images(detector, shared):
    image = read_image(shared / "data/photos/2009_004587.jpg")
    boxes = detector.find_faces(image).boxes
    rgba = np.dstack([image, np.zeros_like(image[..., 0])])
    np.testing.assert_array_equal(detector.find_faces(rgba).boxes, boxes)
    assert len(detector.find_faces(image.mean(axis=2).astype(np.uint8)).boxes) == 2
    with pytest.raises(InputError, match="float32 array"):
        detector.detect(image.astype(np.float32))


def test_log_level_is_restored_after_the_last_quiet_block():
    log = cv2.utils.logging
    level = log.getLogLevel()
    first, second = face_detector.quiet_opencv(), face_detector.quiet_opencv()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert log.getLogLevel() == log.LOG_LEVEL_SILENT
    second.__exit__(None, None, None)
    assert log.getLogLevel() == level


@pytest.mark.parametrize("content", [b"", b"no model" * 50, None])
def test_invalid_detector_file_is_an_error(tmp_path, content, capfd):
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


def test_failed_download_is_an_error_with_alternatives(cache):
    with pytest.raises(InputError) as caught:
        FaceDetector()
    message = str(caught.value)
    assert message.startswith(f"{face_detector.MODEL_URL}: cannot be downloaded to {cache}")
    assert "no network in tests" in message
    options = ("--detector-model FILE", "--box X0,Y0,X1,Y1", "--boxes FILE", "--whole-image")
    assert all(option in message for option in options)
    assert "\n" not in message
    assert not list(cache.iterdir())


@pytest.fixture
def downloads(monkeypatch):
    """URLs of downloads; the content of each is `the model`."""
    urls = []

    def download(self, url, output_file, pooch):
        urls.append(url)
        Path(output_file).write_bytes(b"the model")

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", download)
    return urls


def test_download_with_another_checksum_is_an_error(cache, downloads):
    with pytest.raises(InputError, match="is not the expected file"):
        face_detector.fetch_detector_model()
    assert not list(cache.iterdir())


def test_model_is_downloaded_once(cache, downloads, monkeypatch, capfd):
    monkeypatch.setattr(face_detector, "MODEL_SHA256", hashlib.sha256(b"the model").hexdigest())
    for _ in range(2):
        assert face_detector.fetch_detector_model().read_bytes() == b"the model"
    assert downloads == [face_detector.MODEL_URL]
    assert [path.name for path in cache.iterdir()] == [face_detector.MODEL_FILE]
    assert capfd.readouterr() == ("", "")


def test_cache_folder_without_permission_is_an_error(cache, downloads, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(cache))

    monkeypatch.setattr("os.makedirs", refuse)
    with pytest.raises(InputError, match=r"cannot be downloaded to .*Permission denied"):
        face_detector.fetch_detector_model()


def test_checksum_is_that_of_the_file(detector_model):
    content = detector_model.read_bytes()
    assert hashlib.sha256(content).hexdigest() == face_detector.MODEL_SHA256

import jax.numpy as jnp
import numpy as np
import pytest

import lcgcn_jax
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference import robust_crops
from lcgcn_jax.models.lcgcn import normalize_images


@pytest.fixture(scope="module")
def model(small_run):
    return lcgcn_jax.load(small_run)


@pytest.fixture(autouse=True)
def single_crop(monkeypatch):
    """The landmarks of a barely trained model are random, and further crops amplify rounding errors."""
    monkeypatch.setattr(robust_crops, "is_off", lambda *args: False)


def test_loaded_model_has_scheme_and_configuration(model):
    assert model.scheme == lcgcn_jax.WFLW98
    assert model.config["heatmap"]["name"] == "toy"
    assert model.image_size == 64


def test_forward_returns_all_output_fields(model):
    crops = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    output = model.forward(normalize_images(jnp.asarray(crops)))
    assert output.heatmap_logits.shape == (2, 16, 16, 98)
    assert output.landmarks.shape == output.heatmap_landmarks.shape == (2, 98, 2)
    assert output.edges.shape == (2, 98, 98)
    np.testing.assert_allclose(output.edges.sum(-1), 1, atol=1e-5)
    from_crops = model.predict_crops(crops)
    np.testing.assert_allclose(from_crops.landmarks, output.landmarks, atol=1e-3)


def test_face_does_not_depend_on_other_faces_in_the_image(model):
    image = np.random.default_rng(1).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    boxes = [(10, 10, 60, 70), (60, 20, 140, 110), (30, 30, 90, 90)]
    together = model.predict(image, boxes)
    for face, box in zip(together, boxes, strict=True):
        (single,) = model.predict(image, [box])
        # The order of summation depends on the batch size, so that logits differ in the last bit. DARK
        # divides by second derivatives, which are about 0.001 after two training steps.
        np.testing.assert_allclose(face.landmarks, single.landmarks, atol=1e-2)
        np.testing.assert_array_equal(face.box, box)


def test_landmarks_move_with_the_image(model):
    """Shifted pixels have equally shifted landmarks."""
    image = np.random.default_rng(2).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    larger = np.zeros((110, 130, 3), np.uint8)
    larger[20:100, 30:110] = image
    # The crop, of 1.25 x 60 px, is within the pixels that both images have.
    (face,) = model.predict(image, [(10, 10, 70, 70)])
    (moved,) = model.predict(larger, [(40, 30, 100, 90)])
    np.testing.assert_allclose(moved.landmarks, face.landmarks + np.array([30, 20]), atol=0.05)


def test_empty_list_of_boxes_has_no_faces(model):
    assert model.predict(np.zeros((20, 20, 3), np.uint8), []) == []


def test_batch_returns_the_results_of_single_images(model):
    rng = np.random.default_rng(4)
    images = [
        rng.integers(0, 255, (h, w, 3), dtype=np.uint8) for h, w in ((90, 120), (60, 50), (80, 80))
    ]
    boxes = [[(10, 10, 60, 70), (60, 20, 110, 80)], [], [(20, 20, 60, 70)]]
    together = model.predict_batch(images, boxes)
    assert [len(faces) for faces in together] == [2, 0, 1]
    for image, image_boxes, faces in zip(images, boxes, together, strict=True):
        for face, single in zip(faces, model.predict(image, image_boxes), strict=True):
            np.testing.assert_allclose(face.landmarks, single.landmarks, atol=1e-2)
            np.testing.assert_allclose(face.edges.sum(axis=1), 1, atol=1e-5)


def test_faces_are_detected_without_boxes(small_run, shared, detector_model):
    model = lcgcn_jax.load(small_run, detector_model=detector_model)
    path = shared / "data/photos/2009_004587.jpg"
    faces = model.predict(path)
    assert len(faces) == 2
    boxes = model.detector.find_faces(read_image(path)).boxes
    np.testing.assert_array_equal([face.box for face in faces], boxes)
    blank = np.zeros((50, 60, 3), np.uint8)
    assert [len(faces) for faces in model.predict_batch([blank, path])] == [0, 2]


def test_many_faces_are_predicted_in_several_batches(model):
    image = np.random.default_rng(5).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    boxes = [[(10, 10, 40, 40)] * 20] * 4
    faces_of_images = model.predict_batch([image] * 4, boxes)
    assert [len(faces) for faces in faces_of_images] == [20] * 4
    first = faces_of_images[0][0]
    for faces in faces_of_images:
        np.testing.assert_allclose(faces[-1].landmarks, first.landmarks, atol=1e-2)


def test_missing_detector_is_an_error_with_alternatives(model, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(lcgcn_jax.InputError, match="give --detector-model"):
        model.predict(np.zeros((50, 60, 3), np.uint8))

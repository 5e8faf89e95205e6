"""A model in threads, copies and other processes, and the checks of its inputs."""

import concurrent.futures
import copy
import dataclasses
import multiprocessing
import os
import pickle
import subprocess
import sys

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import lcgcn_jax
from lcgcn_jax import geometry
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference import face_prediction, forking, image_inputs
from lcgcn_jax.inference import model as model_module
from lcgcn_jax.inference.face_detector import FaceDetector
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.landmarks import IBUG68, WFLW98, WFLW98_TO_IBUG68, LandmarkScheme
from lcgcn_jax.models import bundles, registry
from lcgcn_jax.models.layers import ConvBN
from lcgcn_jax.uncertainty import UncertaintyModel

SCHEME = LandmarkScheme.from_dict({"name": "three", "num_landmarks": 3, "mirror_pairs": [[0, 2]]})
MODEL = {
    "heatmap": {"name": "one-layer"},
    "decode": "dark",
    "graph": None,
    "bn_momentum": 0.9,
}
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
BOX = (10, 10, 50, 50)


class OneLayer(nnx.Module):
    stride = 4
    feature_channels = 2

    def __init__(self, num_landmarks, *, bn_momentum, dtype, rngs):
        options = {"momentum": bn_momentum, "dtype": dtype, "rngs": rngs}
        self.layer = ConvBN(3, num_landmarks + 2, 3, stride=4, **options)

    def __call__(self, images, *, train):
        x = self.layer(images, train=train)
        return x[..., 2:], x[..., :2]


@pytest.fixture(scope="module")
def bundle(random_bundle):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._HEATMAP_MODELS, "one-layer", OneLayer)
        yield random_bundle(MODEL, SCHEME, 32)


@pytest.fixture(scope="module")
def model(bundle):
    return LandmarkModel(bundle)


def test_threads_return_the_results_of_one_thread(bundle, shared, detector_model):
    model = LandmarkModel(bundle, detector_model)
    photos = [
        read_image(shared / "data/photos" / name) for name in ("2008_001322.jpg", "2009_004587.jpg")
    ]
    images = [cv2.resize(photo, None, fx=0.6, fy=0.6) for photo in photos] + [IMAGE]
    expected = [model.predict(image) for image in images]
    assert [len(faces) for faces in expected] == [3, 2, 0]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(model.predict, images * 3))
    for faces, expected_faces in zip(results, expected * 3, strict=True):
        assert len(faces) == len(expected_faces)
        for face, expected_face in zip(faces, expected_faces, strict=True):
            np.testing.assert_allclose(face.landmarks, expected_face.landmarks, atol=1e-3)


def test_detector_is_loaded_once(bundle, monkeypatch):
    loaded = []

    class Detector(FaceDetector):
        def __init__(self, path):
            loaded.append(path)

    monkeypatch.setattr(model_module, "FaceDetector", Detector)
    model = LandmarkModel(bundle)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        detectors = set(pool.map(lambda _: id(model.detector), range(20)))
    assert len(detectors) == len(loaded) == 1


@pytest.mark.parametrize(
    "copy_model", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copy_predicts_the_same_with_the_same_programs(model, copy_model):
    (expected,) = model.predict(IMAGE, [BOX])
    copied = copy_model(model)
    (face,) = copied.predict(IMAGE, [BOX])
    np.testing.assert_array_equal(face.landmarks, expected.landmarks)
    assert (copied.scheme, copied.config, copied.image_size) == (SCHEME, MODEL, 32)
    assert copied._compiled() is model._compiled()


def test_copies_of_a_deleted_model_share_programs(bundle):
    """A worker of a process pool gets a copy of the model with each task."""
    pickled = pickle.dumps(LandmarkModel(bundle))
    programs = pickle.loads(pickled)._compiled()
    assert pickle.loads(pickled)._compiled() is programs


def test_models_do_not_share_programs(bundle, model):
    assert LandmarkModel(bundle)._compiled() is not model._compiled()


def test_copy_does_not_need_the_detector_file(bundle, shared, detector_model, tmp_path):
    path = tmp_path / "yunet.onnx"
    path.write_bytes(detector_model.read_bytes())
    photo = shared / "data/photos/2009_004587.jpg"
    model = LandmarkModel(bundle, path)
    unused = pickle.dumps(model)
    assert len(model.predict(photo)) == 2
    used = pickle.dumps(model)
    path.unlink()
    assert len(pickle.loads(used).predict(photo)) == 2
    with pytest.raises(lcgcn_jax.InputError, match=r"yunet\.onnx: no such file"):
        pickle.loads(unused).predict(photo)


def test_detector_is_copied(shared, detector_model):
    image = read_image(shared / "data/photos/2009_004587.jpg")
    detector = FaceDetector(detector_model)
    boxes = detector.find_faces(image).boxes
    for copied in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        np.testing.assert_array_equal(copied.find_faces(image).boxes, boxes)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_forked_process_raises_an_error_immediately(model):
    """Also if the model is unpickled there. The worker of the pool survives."""
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        for arguments in ((IMAGE, [BOX]), (IMAGE, [])):
            with pytest.raises(RuntimeError, match=r"forked .*get_context\('spawn'\)"):
                pool.apply_async(model.predict, arguments).get(30)
        with pytest.raises(RuntimeError, match="spawn"):
            pool.apply_async(lcgcn_jax.load, ["w300-lcgcn-small"]).get(30)
    forking.check_not_forked()


@pytest.mark.slow
def test_fork_before_jax_starts_is_allowed():
    """Importing the package does not start JAX."""
    code = """
import os, warnings
import lcgcn_jax.inference
from lcgcn_jax.inference.forking import check_not_forked
pid = os.fork()
if pid == 0:
    check_not_forked()
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_spawned_pool_predicts(shared, detector_model):
    model = lcgcn_jax.load("w300-lcgcn-small", detector_model=detector_model)
    photo = shared / "data/photos/2009_004587.jpg"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (faces,) = pool.map(model.predict, [photo])
    for face, expected in zip(faces, model.predict(photo), strict=True):
        np.testing.assert_allclose(face.landmarks, expected.landmarks, atol=0.05)


def test_reading_and_creating_a_model_traces_once(bundle, tmp_path, monkeypatch):
    bundles.save_bundle(tmp_path / "model", bundle, "")
    traces = []
    create = registry.create_model
    monkeypatch.setattr(
        registry,
        "create_model",
        lambda *args, **kwargs: traces.append(1) or create(*args, **kwargs),
    )
    bundles._structure.cache_clear()
    model = lcgcn_jax.load(tmp_path / "model")
    pickle.loads(pickle.dumps(model)).predict(IMAGE, [BOX])
    assert len(traces) == 1


def test_structure_is_that_of_the_registered_model(bundle, monkeypatch):
    class Wider(OneLayer):
        def __init__(self, num_landmarks, **options):
            super().__init__(num_landmarks + 1, **options)

    before = bundles.abstract_weights(MODEL, 3)[1]
    monkeypatch.setitem(registry._HEATMAP_MODELS, "one-layer", Wider)
    after = bundles.abstract_weights(MODEL, 3)[1]
    name = "heatmap_model.layer.conv.kernel"
    assert before[name].shape != after[name].shape
    before.clear()  # a copy for the caller
    assert bundles.abstract_weights(MODEL, 3)[1].keys() == after.keys()


def test_other_array_types_are_equivalent_to_rgb(model):
    (expected,) = model.predict(IMAGE, [BOX])
    images = [
        IMAGE.astype(np.int64),
        IMAGE[:, ::-1][:, ::-1],
        Image.fromarray(IMAGE),
        np.concatenate([IMAGE, IMAGE[..., :1]], axis=2),
        jnp.asarray(IMAGE),
        IMAGE.tolist(),
    ]
    for image in images:
        (face,) = model.predict(image, [BOX])
        np.testing.assert_array_equal(face.landmarks, expected.landmarks)
    for faces in model.predict_batch(np.stack([IMAGE, IMAGE]), [[BOX]] * 2):
        np.testing.assert_allclose(faces[0].landmarks, expected.landmarks, atol=1e-3)


@pytest.mark.parametrize("path", ["missing.jpg", "null\0byte.jpg", "", "long" * 1000])
def test_unreadable_paths_are_errors_of_one_line(model, path):
    with pytest.raises(lcgcn_jax.InputError, match="cannot be read") as error:
        model.predict(path, [BOX])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "boxes", "message"),
    [
        ([IMAGE, IMAGE], [[BOX]], "1 list of boxes for 2 images"),
        ([IMAGE], [[BOX], [BOX]], "2 lists of boxes for 1 image;"),
        ([IMAGE, IMAGE / 255], [[], []], "image 1: float64 array"),
        (IMAGE, None, r"uint8 array \[60 80 3\] is not a list of images; call predict"),
        ("photo.jpg", None, "'photo.jpg' is not a list of images"),
        (np.zeros(3, np.uint8), None, r"uint8 array \[3\] is not a list of images"),
        ([IMAGE], {"a": [BOX]}, "boxes: .*; give a list"),
        ([IMAGE], "boxes", "'boxes'; give a list"),
    ],
)
def test_invalid_batches_are_errors_of_one_line(model, images, boxes, message):
    with pytest.raises(lcgcn_jax.InputError, match=message) as error:
        model.predict_batch(images, boxes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (BOX, r"image: boxes: \(?\[?10, 10, 50, 50.*give a list of boxes"),
        (np.array(BOX), "give a list of boxes"),
        ([BOX, None], "box None: a box is four numbers"),
        ([BOX[:3]], "box 10,10,50: a box is four numbers"),
        ([[BOX]], "a box is four numbers"),
        ([["a", "b", "c", "d"]], "a box is four numbers"),
        ([["10", "10", "50", "50"]], "a box is four numbers"),
        (["1234"], "box '1234': a box is four numbers"),
        ([(10, 10, np.nan, 50)], "box 10,10,nan,50: a box is four numbers"),
        ([(10, 10, np.inf, 50)], "four numbers"),
        ([(True, False, True, True)], "four numbers"),
        ([(50, 10, 10, 50)], "x1 and y1 have to be larger"),
        ("10,10,50,50", "give a list"),
    ],
)
def test_invalid_boxes_are_errors_of_one_line(model, boxes, message):
    with pytest.raises(lcgcn_jax.InputError, match=message) as error:
        model.predict(IMAGE, boxes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "boxes",
    [
        np.array([BOX]),
        [np.array(BOX, np.float32)],
        iter([list(BOX)]),
        jnp.array([BOX]),
        ((10.0, 10, 50, 50),),
    ],
)
def test_boxes_of_any_sequence_type(model, boxes):
    (face,) = model.predict(IMAGE, boxes)
    np.testing.assert_array_equal(face.box, BOX)


def test_arrays_of_paths_are_batches(model, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(IMAGE).save(path)
    for paths in (np.array([str(path)] * 2), np.array([path, path], object)):
        assert len(model.predict_batch(paths, [[BOX]] * 2)) == 2


def test_empty_inputs_have_empty_results(model):
    assert model.predict_batch([]) == []
    assert model.predict_batch([], []) == []
    assert model.predict_batch([IMAGE, IMAGE], [[], []]) == [[], []]
    for output in (model.predict_crops([]), model.forward(np.zeros((0, 32, 32, 3), np.float32))):
        assert output.landmarks.shape == (0, 3, 2)
        assert output.confidence.shape == (0, 3)
        assert output.edges is None


def test_faces_are_detected_in_images_without_boxes(bundle, shared, detector_model):
    model = LandmarkModel(bundle, detector_model)
    photo = read_image(shared / "data/photos/2009_004587.jpg")
    faces_of_images = model.predict_batch([photo, IMAGE], [None, [BOX]])
    assert [len(faces) for faces in faces_of_images] == [2, 1]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 32, 32, 3), np.uint8),
        np.zeros((1, 16, 16, 3), np.float32),
        np.zeros((32, 32, 3), np.float32),
        np.zeros((1, 3, 32, 32), np.float32),
        None,
        "crops",
    ],
)
def test_forward_requires_normalized_crops(model, images):
    with pytest.raises(
        lcgcn_jax.InputError, match=r"normalized floating-point crops \[b 32 32 3\]"
    ):
        model.forward(images)


@pytest.mark.parametrize("values", [5, None, Image.fromarray(IMAGE), "images"])
def test_value_that_is_no_list_is_an_error_of_one_line(values):
    with pytest.raises(lcgcn_jax.InputError, match=r"^images: .*; give a list$"):
        image_inputs.as_list("images", values)


def test_boxes_with_width_and_height(model):
    (corners,) = model.predict(IMAGE, [BOX])
    (sizes,) = model.predict(IMAGE, [(10, 10, 40, 40)], box_format="xywh")
    np.testing.assert_array_equal(sizes.box, BOX)
    np.testing.assert_array_equal(sizes.landmarks, corners.landmarks)
    ((batch,),) = model.predict_batch([IMAGE], [[(10, 10, 40, 40)]], box_format="xywh")
    np.testing.assert_array_equal(batch.box, BOX)


@pytest.mark.parametrize(
    ("box", "options", "message"),
    [
        (BOX, {"box_format": "xyhw"}, "box_format: unknown value 'xyhw'; did you mean 'xywh'"),
        ((10, 10, 0, 5), {"box_format": "xywh"}, "width and height have to be positive"),
        ((10, 10, -5, 5), {"box_format": "xywh"}, "box 10,10,-5,5: width and height"),
        ((10, 10, 5), {"box_format": "xywh"}, "four numbers x,y,width,height"),
        ((40, 40, 20, 20), {}, "for boxes x,y,width,height, set the box format xywh"),
        (BOX, {"min_score": 60.0}, "min_score: 60.0; give a number from 0 to 1"),
        (BOX, {"min_confidence": -0.1}, "min_confidence: -0.1; give a number from 0 to 1"),
        (BOX, {"min_confidence": float("nan")}, "min_confidence: nan; give a number"),
    ],
)
def test_invalid_arguments_of_predict(model, box, options, message):
    with pytest.raises(lcgcn_jax.InputError) as caught:
        model.predict(IMAGE, [box], **options)
    assert message in str(caught.value)


def test_faces_with_a_low_confidence_are_left_out(model):
    boxes = [BOX, (5, 5, 40, 55), (20, 8, 60, 50)]
    faces = model.predict(IMAGE, boxes)
    confidences = [face.confidence.mean() for face in faces]
    limit = float(np.median(confidences))
    confident = model.predict(IMAGE, boxes, min_confidence=limit)
    expected = [face.box for face in faces if face.confidence.mean() >= limit]
    np.testing.assert_array_equal([face.box for face in confident], expected)
    assert 1 <= len(confident) < 3


def test_model_of_98_landmarks_predicts_68(random_bundle, monkeypatch):
    """All outputs and the calibration have the landmarks of 300W, also in copies of the model."""
    monkeypatch.setitem(registry._HEATMAP_MODELS, "one-layer", OneLayer)
    for name in ("is_off", "is_uncertain"):  # one crop, the given one
        monkeypatch.setattr(face_prediction.robust_crops, name, lambda *args: False)
    calibration = UncertaintyModel(
        1.0, 0.0, np.arange(98) / 98, np.array([-9.0, 9.0]), np.array([1.0, 3.0]), fitted_on={}
    )
    bundle = dataclasses.replace(random_bundle(MODEL, WFLW98, 32), calibration=calibration)
    (face,) = LandmarkModel(bundle).predict(IMAGE, [BOX])
    model = LandmarkModel(bundle, scheme="ibug68")
    assert model.scheme == IBUG68
    rows = list(WFLW98_TO_IBUG68)
    for converted in (model, pickle.loads(pickle.dumps(model))):
        (face68,) = converted.predict(IMAGE, [BOX])
        assert face68.names == IBUG68.names
        for name in ("landmarks", "heatmap_landmarks", "confidence"):
            np.testing.assert_allclose(getattr(face68, name), getattr(face, name)[rows], atol=1e-4)
        np.testing.assert_allclose(
            face68.predicted_error_percent, face.predicted_error_percent[rows], rtol=1e-4
        )
    assert model.predict_crops(IMAGE[None, :32, :32]).landmarks.shape == (1, 68, 2)
    assert model.predict_crops(np.zeros((0, 32, 32, 3), np.uint8)).confidence.shape == (0, 68)
    assert model.bundle.scheme == WFLW98


def test_other_conversions_are_errors(bundle):
    assert LandmarkModel(bundle, scheme="three").scheme == SCHEME
    for name in ("ibug68", "wflw98"):
        with pytest.raises(lcgcn_jax.InputError, match=f"scheme {name}: no conversion from three"):
            LandmarkModel(bundle, scheme=name)


def test_uncertain_face_is_tried_again_in_other_crops(bundle, monkeypatch):
    """The landmarks with the lowest predicted error of all crops are returned."""
    calibration = UncertaintyModel(
        1.0, 0.0, np.zeros(3), np.array([-9.0, 0.0]), np.array([1.0, 10.0]), fitted_on={}
    )
    calibrated = LandmarkModel(dataclasses.replace(bundle, calibration=calibration))
    candidates = []
    predict_faces = face_prediction.FacePredictor._predict_faces

    def record_candidates(self, crops):
        faces = predict_faces(self, crops)
        candidates.extend(faces)
        return faces

    monkeypatch.setattr(face_prediction.FacePredictor, "_predict_faces", record_candidates)
    monkeypatch.setattr(face_prediction.robust_crops, "is_uncertain", lambda *args: False)
    for name in ("is_off", "is_uncertain"):  # one crop, the given one
        monkeypatch.setattr(face_prediction.robust_crops, name, lambda *args: False)
    (first,) = LandmarkModel(bundle).predict(IMAGE, [BOX])
    (certain,) = calibrated.predict(IMAGE, [BOX])
    np.testing.assert_array_equal(certain.landmarks, first.landmarks)
    assert len(candidates) == 2
    candidates.clear()
    monkeypatch.setattr(face_prediction.robust_crops, "is_uncertain", lambda *args: True)
    (face,) = calibrated.predict(IMAGE, [BOX])
    assert 5 <= len(candidates) <= 6
    best = min(candidates, key=lambda candidate: candidate.predicted_error_percent.mean())
    np.testing.assert_array_equal(face.landmarks, best.landmarks)
    np.testing.assert_array_equal(face.box, BOX)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [0, 60, 90, 180, 270])
def test_rotated_face_is_as_accurate_as_the_upright_face(shared, detector_model, degrees):
    model = lcgcn_jax.load("w300-lcgcn-small", detector_model=detector_model)
    image = read_image(shared / "data/photos/2009_004587.jpg")
    upright = model.predict(image)
    side = int(np.hypot(*image.shape[:2])) + 1
    center = ((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2)
    affine = cv2.getRotationMatrix2D(center, degrees, 1.0)
    affine[:, 2] += (side / 2 - center[0], side / 2 - center[1])
    truths = [geometry.transform_points(affine, face.landmarks) for face in upright]
    boxes = [geometry.box_of_landmarks(truth, np.ones(68, bool)) for truth in truths]
    faces = model.predict(cv2.warpAffine(image, affine, (side, side)), boxes)
    for face, truth, upright_face in zip(faces, truths, upright, strict=True):
        unit = np.linalg.norm(truth[36] - truth[45])
        nme = 100 * np.linalg.norm(face.landmarks - truth, axis=1).mean() / unit
        assert nme < 5
        limit = 1.5 * upright_face.predicted_error_percent.mean()
        assert face.predicted_error_percent.mean() < limit


@pytest.mark.slow
def test_predicted_error_of_noise_is_large(shared):
    model = lcgcn_jax.load("w300-lcgcn-small")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    (face,) = model.predict(noise, [(20, 20, 180, 180)])
    assert face.predicted_error_percent.mean() > 30

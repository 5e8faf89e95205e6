"""Second crops, with a fake model that finds colored dots."""

import types

import numpy as np
import pytest

from lcgcn_jax import geometry
from lcgcn_jax.inference import robust_crops
from lcgcn_jax.inference.face_prediction import FacePredictor
from lcgcn_jax.inference.image_inputs import BoxedImage
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.uncertainty import UncertaintyModel

SIZE = 64
NAMES = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
PAIRS = [["left_eye", "right_eye"], ["left_mouth", "right_mouth"]]
FIELDS = {"name": "five", "names": NAMES, "normalizer": NAMES[:2]}
SCHEME = LandmarkScheme.from_dict({**FIELDS, "mirror_pairs": PAIRS})
FACE = np.array([[-30.0, -30], [30, -30], [0, 5], [-20, 30], [20, 30]])
LEVELS = np.array([50, 90, 130, 170, 210])
# The predicted error is 2 % where the fake model is certain, and 12 % elsewhere.
CALIBRATION = UncertaintyModel(
    0.0, 1.0, np.zeros(5), np.log([0.01, 1.0]), np.array([2.0, 12.0]), fitted_on={}
)


class FakeModel:
    """Finds the dots of a face that is rotated by less than 45 degrees; otherwise it is uncertain."""

    def __init__(self):
        self.batches = []

    def __call__(self, crops):
        self.batches.append(len(crops))
        predictions = [self._predict(crop[..., 0].astype(float), crop[..., 1]) for crop in crops]
        landmarks = np.stack([points for points, _ in predictions]).astype(np.float32)
        return types.SimpleNamespace(
            landmarks=landmarks,
            heatmap_landmarks=landmarks,
            confidence=np.full((len(crops), 5), 0.9, np.float32),
            heatmap_std=np.stack([np.full(5, std, np.float32) for _, std in predictions]),
            edges=None,
            visibility=None,
        )

    def _predict(self, crop, is_dot):
        mean_shape = SIZE / 2 + FACE * (SIZE / 75)
        points = []
        for level in LEVELS:
            y, x = np.nonzero((np.abs(crop - level) < 10) & (is_dot > 235))
            if not len(x):
                return mean_shape, 1.0
            points.append((np.median(x), np.median(y)))
        points = np.array(points)
        across = points[1] - points[0]
        if abs(np.degrees(np.arctan2(across[1], across[0]))) > 45:
            return mean_shape, 1.0
        return points, 0.01


def face_image(center=(100, 100), degrees=0.0, size=200, scale=1.0):
    """Image of a face of dots, and its landmarks."""
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = scale * FACE @ rotation + np.array(center)
    image = np.zeros((size, size, 3), np.uint8)
    y, x = np.mgrid[:size, :size]
    for (px, py), level in zip(points, LEVELS, strict=True):
        image[np.maximum(abs(x - px), abs(y - py)) <= max(1, 6 * scale)] = (level, 255, 0)
    return image, points


def true_box(points):
    return geometry.box_of_landmarks(points, np.ones(5, bool))


def changed(box, scale=1.0, shift=(0.0, 0.0)):
    center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    center = center + 2 * half.max() * np.array(shift)
    return np.concatenate([center - scale * half, center + scale * half])


def predict(image, box, *, calibration=CALIBRATION, scheme=SCHEME):
    model = FakeModel()
    predictor = FacePredictor(model, scheme, SIZE, calibration)
    ((face,),) = predictor.predict([BoxedImage(image, [box], [None])])
    return face, model.batches


@pytest.mark.parametrize("calibration", [CALIBRATION, None])
@pytest.mark.parametrize("degrees", [0.0, 7.0, -7.0])
def test_accurate_box_has_one_crop(calibration, degrees):
    image, points = face_image(degrees=degrees)
    face, batches = predict(image, true_box(points), calibration=calibration)
    assert batches == [1]
    np.testing.assert_allclose(face.landmarks, points, atol=1.5)
    assert face.reliable is (None if calibration is None else True)


@pytest.mark.parametrize("calibration", [CALIBRATION, None])
@pytest.mark.parametrize(
    "change", [{"scale": 1.5}, {"scale": 1.2}, {"shift": (0.2, 0.1)}, {"shift": (0, -0.15)}]
)
def test_inaccurate_box_has_a_crop_around_the_landmarks(calibration, change):
    image, points = face_image()
    box = changed(true_box(points), **change)
    face, batches = predict(image, box, calibration=calibration)
    assert batches == [1, 1]
    np.testing.assert_allclose(face.landmarks, points, atol=1.5)
    np.testing.assert_array_equal(face.box, box)
    assert (
        abs(geometry.transform_points(face.crop, true_box(points).reshape(2, 2)).mean() - 31.5) < 2
    )


@pytest.mark.parametrize("degrees", range(30, 360, 30))
def test_rotated_face_is_found_in_an_upright_crop(degrees):
    image, points = face_image(degrees=degrees)
    face, batches = predict(image, true_box(points))
    np.testing.assert_allclose(face.landmarks, points, atol=1.5)
    assert abs((robust_crops.rotation_of(face.crop) + degrees + 180) % 360 - 180) < 5
    assert face.reliable is True
    assert len(batches) <= 4


def test_face_in_a_small_box_is_found_in_a_larger_crop():
    image, points = face_image()
    face, batches = predict(image, changed(true_box(points), 0.5))
    np.testing.assert_allclose(face.landmarks, points, atol=1.5)
    assert batches[:2] == [1, 5]


def test_scheme_without_mirror_pairs_has_the_rotation_of_its_crop():
    image, points = face_image(degrees=90.0)
    scheme = LandmarkScheme.from_dict(FIELDS)
    face, _ = predict(image, changed(true_box(points), 1.4), scheme=scheme)
    np.testing.assert_allclose(face.landmarks, points, atol=1.5)
    assert robust_crops.rotation_of(face.crop) == pytest.approx(-90.0)


@pytest.mark.parametrize("center", [(5, 100), (190, 195)])
def test_face_at_the_border(center):
    """Landmarks outside the image are not found, and the face is not reliable."""
    image, points = face_image(center=center)
    face, _ = predict(image, true_box(points))
    assert np.isfinite(face.landmarks).all()
    assert face.reliable is False


def test_tiny_face():
    image, points = face_image(center=(20, 20), size=40, scale=0.12)
    face, _ = predict(image, changed(true_box(points), 1.5))
    np.testing.assert_allclose(face.landmarks, points, atol=1.0)


@pytest.mark.parametrize("calibration", [CALIBRATION, None])
def test_image_without_a_face_is_not_reliable(calibration):
    image = np.zeros((50, 60, 3), np.uint8)
    face, batches = predict(image, np.array([10.0, 10, 40, 45]), calibration=calibration)
    assert face.reliable is (None if calibration is None else False)
    assert sum(batches) <= 8


def test_second_crops_of_all_images_are_shared_batches():
    """Certain, badly framed and rotated faces in two images: three batches in all."""
    upright, points = face_image()
    rotated, rotated_points = face_image(degrees=180.0)
    box = true_box(points)
    model = FakeModel()
    images = [
        BoxedImage(upright, [box, changed(box, 1.5)], [0.9, 0.8]),
        BoxedImage(rotated, [true_box(rotated_points)] * 2, [0.7, 0.6]),
        BoxedImage(upright, [], []),
    ]
    faces = FacePredictor(model, SCHEME, SIZE, CALIBRATION).predict(images)
    assert model.batches == [4, 10, 1]
    assert [[face.score for face in faces_of] for faces_of in faces] == [[0.9, 0.8], [0.7, 0.6], []]
    for face, truth in zip(faces[0] + faces[1], [points] * 2 + [rotated_points] * 2, strict=True):
        np.testing.assert_allclose(face.landmarks, truth, atol=1.5)


def test_first_crop_of_the_caller():
    """With the crop around the landmarks in the previous frame, a rotated face needs one crop."""
    image, points = face_image(degrees=120.0)
    previous = geometry.crop_transform(true_box(points), SIZE, rotation=-90.0)
    affine = robust_crops.crop_around(points, SCHEME, SIZE, previous)
    model = FakeModel()
    predictor = FacePredictor(model, SCHEME, SIZE, CALIBRATION)
    ((face,),) = predictor.predict([BoxedImage(image, [true_box(points)], [None], [affine])])
    assert model.batches == [1]
    np.testing.assert_allclose(face.landmarks, points, atol=1.5)

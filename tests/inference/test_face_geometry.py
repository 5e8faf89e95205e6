import dataclasses
import functools
from pathlib import Path

import cv2
import numpy as np
import pytest

from lcgcn_jax import geometry
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference import face_geometry, results
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.face_geometry import ARCFACE_TEMPLATE
from lcgcn_jax.landmarks import IBUG68, SCHEMES, WFLW98, LandmarkScheme
from lcgcn_jax.synthetic.curves import FRONTAL_LANDMARKS, Curves
from lcgcn_jax.synthetic.relief import Relief, View
from lcgcn_jax.synthetic.shape_model import fit_shape_model
from lcgcn_jax.synthetic.traits import sample_traits
from lcgcn_jax.visualize.overlays import draw

each_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
CUSTOM = LandmarkScheme.from_dict(
    {
        "name": "six",
        "names": ["eye_out", "eye_top", "eye_in", "eye_low", "nose", "chin"],
        "contours": [{"name": "left_eye", "indices": [0, 1, 2, 3], "closed": True}],
    }
)


@functools.cache
def synthetic(seed, scheme=IBUG68, **pose):
    """Landmarks of a random face, with angles in degrees."""
    traits = sample_traits(np.random.default_rng(seed))
    for name, degrees in pose.items():
        setattr(traits, name, np.radians(degrees))
    curves = Curves(traits)
    relief = Relief(traits, curves)
    points = View(traits, curves, relief).landmarks(FRONTAL_LANDMARKS[scheme.name](curves))
    angles = np.degrees([traits.yaw, traits.pitch, traits.roll])
    return 192 * points - 0.5, angles


def face_of(landmarks, scheme=IBUG68):
    k = len(landmarks)
    box = np.concatenate([landmarks.min(axis=0), landmarks.max(axis=0)])
    return Face(box, landmarks, np.ones(k), landmarks, scheme=scheme)


def wrapped(degrees):
    return (np.asarray(degrees) + 180) % 360 - 180


def rotated(points, degrees):
    affine = geometry.crop_transform(np.array([0, 0, 160, 160.0]), 200, rotation=degrees)
    return geometry.transform_points(affine, points)


@each_scheme
def test_head_pose_of_synthetic_faces(scheme):
    for seed in range(20):
        points, angles = synthetic(seed, scheme)
        assert np.abs(np.array(face_of(points, scheme).head_pose()) - angles).max() < 5


@pytest.mark.parametrize("roll", [0, 40, -120, 175])
@pytest.mark.parametrize("pitch", [-25, 0, 25])
def test_head_pose_is_continuous_over_the_yaw(pitch, roll):
    """No jump where the yaw changes its sign, for upright and rolled faces."""
    yaws = np.arange(-45, 46, 7.5)
    poses = [synthetic(7, yaw=yaw, pitch=pitch, roll=roll)[0] for yaw in yaws]
    errors = wrapped(
        [
            np.array(face_of(p).head_pose()) - (y, pitch, roll)
            for p, y in zip(poses, yaws, strict=True)
        ]
    )
    assert np.abs(errors).max() < 5
    assert np.abs(np.diff(errors, axis=0)).max() < 2.5


def test_head_pose_of_noisy_landmarks():
    """Noise of 3 % of the distance between the eyes, as of predicted landmarks."""
    rng = np.random.default_rng(0)
    errors = []
    for seed in range(20):
        points, angles = synthetic(seed)
        unit = np.linalg.norm(points[36] - points[45])
        noisy = points + rng.normal(0, 0.03 / 1.25 * unit, points.shape)
        errors.append(np.abs(np.array(face_of(noisy).head_pose()) - angles))
    assert (np.percentile(errors, 95, axis=0) < 5).all()


def test_head_pose_of_the_mirrored_face_and_in_the_image():
    points, _ = synthetic(3, yaw=30, pitch=10, roll=-20)
    yaw, pitch, roll = face_of(points).head_pose()
    mirrored = face_of((points * [-1, 1])[list(IBUG68.mirror)]).head_pose()
    np.testing.assert_allclose(mirrored, (-yaw, pitch, -roll), atol=0.01)
    moved = face_of(rotated(3.5 * points, 50.0) + 900).head_pose()
    np.testing.assert_allclose(moved, (yaw, pitch, roll + 50), atol=0.01)


def test_head_pose_with_missing_landmarks():
    points, angles = synthetic(5)
    points = points.copy()
    points[42:48] = np.nan
    assert np.abs(np.array(face_of(points).head_pose()) - angles).max() < 8
    points[20:] = np.nan
    with pytest.raises(InputError, match=r"needs 8 landmarks besides the jaw .* there are 3"):
        face_of(points).head_pose()
    with pytest.raises(InputError, match="the landmarks of the face coincide"):
        face_of(np.ones((68, 2))).head_pose()


def test_stored_shape_model_is_that_of_the_synthetic_faces():
    mean, modes = face_geometry._shape_model()
    expected, _ = fit_shape_model(60)
    assert np.abs(mean - expected).max() < 0.06
    assert modes.shape == (8, *mean.shape)


@each_scheme
@pytest.mark.parametrize("size", [112, 224, 96])
def test_aligned_landmarks_are_at_the_template(scheme, size):
    """The alignment undoes a similarity of landmarks that lie exactly on the template."""
    landmarks = np.full((scheme.num_landmarks, 2), 50.0)
    for name, point in ARCFACE_TEMPLATE.items():
        landmarks[list(scheme.find(name))] = point
    face = face_of(rotated(2.5 * landmarks, 130.0) + 40, scheme)
    affine = face.align_transform(size)
    aligned = geometry.transform_points(affine, face.landmarks)
    np.testing.assert_allclose(aligned, landmarks * size / 112, atol=1e-6)


def test_alignment_is_the_least_squares_similarity():
    points, _ = synthetic(1)
    affine = face_of(points).align_transform()
    sets = [list(IBUG68.find(name)) for name in ARCFACE_TEMPLATE]
    source = np.stack([points[indices].mean(axis=0) for indices in sets])
    target = np.array(list(ARCFACE_TEMPLATE.values()))
    x, y = source.T
    one, zero = np.ones(5), np.zeros(5)
    rows = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, c, d = np.linalg.lstsq(rows, target.T.ravel(), rcond=None)[0]
    np.testing.assert_allclose(affine, [[a, -b, c], [b, a, d]], atol=1e-9)


def test_aligned_crop(tmp_path):
    points, _ = synthetic(1)
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    image = cv2.resize(image, (192, 192), interpolation=cv2.INTER_CUBIC)
    face = face_of(points)
    crop = face.align(image)
    assert (crop.shape, crop.dtype) == ((112, 112, 3), np.uint8)
    x, y = face_geometry._mean_point(points, IBUG68, "nose_bridge_3").round().astype(int)
    u, v = geometry.transform_points(face.align_transform(), np.array([[x, y]], float))[0]
    np.testing.assert_allclose(crop[round(v), round(u)], image[y, x], atol=40)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image[..., ::-1])
    np.testing.assert_array_equal(face.align(path), crop)
    np.testing.assert_array_equal(
        face.align(image[..., 0]), face.align(image[..., :1].repeat(3, 2))
    )
    with pytest.raises(InputError, match="size: 1000000 is more than 8,192 pixels"):
        face.align(image, 10**6)
    with pytest.raises(InputError, match="all landmarks lie outside the image, which is 20 x 20"):
        face_of(points + 500).align(image[:20, :20])


def test_custom_template():
    points = np.random.default_rng(0).uniform(0, 90, (6, 2))
    face = face_of(points, CUSTOM)
    template = {"nose": (10, 20), "chin": (30, 40)}
    aligned = geometry.transform_points(face.align_transform(64, template=template), points[4:])
    np.testing.assert_allclose(aligned, [[10, 20], [30, 40]], atol=1e-9)
    for wrong, message in (
        (None, "needs 'right_eye', which the scheme six lacks; pass template="),
        ({"nose": (1, 2)}, "at least two"),
        ({"nose": (1, 2), "chinn": (3, 4)}, "did you mean 'chin'"),
        ({"nose": (1, 2), "chin": (3, np.nan)}, "not a pair"),
        ({"nose": (1, 2), "chin": (1, 2)}, "coincide"),
    ):
        with pytest.raises(InputError, match=message):
            face.align_transform(64, template=wrong)
    with pytest.raises(InputError, match="size: 0 is not"):
        face.align_transform(0, template=template)
    points[4] = np.nan
    with pytest.raises(InputError, match="the landmark 'nose' is NaN"):
        face.align_transform(64, template=template)


@each_scheme
def test_openness_follows_the_expression(scheme):
    def openness(**expression):
        traits = sample_traits(np.random.default_rng(0))
        traits.yaw = traits.pitch = traits.roll = 0.0
        vars(traits).update({"smile": 0.0, "jaw_drop": 0.0, "eye_open": np.ones(2)} | expression)
        curves = Curves(traits)
        points = FRONTAL_LANDMARKS[scheme.name](curves)
        face = face_of(points, scheme)
        return (*face.eye_openness(), face.mouth_openness())

    left, right, mouth = openness()
    assert left == pytest.approx(right, abs=0.01)
    assert 0.2 < left < 0.45
    assert mouth == pytest.approx(0, abs=0.01)
    wink = openness(eye_open=np.array([0.1, 1.0]), jaw_drop=0.4)
    assert wink[0] < 0.4 * wink[1]
    assert wink[2] > 0.3


def test_openness_of_a_known_shape_and_a_custom_scheme():
    points = np.zeros((68, 2))
    points[36:42] = [[0, 0], [1, -1], [2, -1], [3, 0], [2, 1], [1, 1]]
    points[42:48] = points[36:42] * [1, 0.5] + 9
    assert face_of(points).eye_openness() == pytest.approx((2 / 3, 1 / 3))
    points[39] = points[36]
    with pytest.raises(InputError, match="the corners of 'left_eye' coincide"):
        face_of(points).eye_openness()
    six = np.array([[0, 0], [2, -1], [4, 0], [2, 1], [2, 3], [2, 6.0]])
    assert face_geometry._aspect_ratio(six, CUSTOM, "left_eye") == 0.5
    face = face_of(six, CUSTOM)
    with pytest.raises(InputError, match=r"contour 'right_eye' .* which the scheme six lacks"):
        face.eye_openness()
    with pytest.raises(InputError, match="needs the scheme ibug68 or wflw98, not six"):
        face.head_pose()
    with pytest.raises(InputError, match="has no landmark scheme"):
        dataclasses.replace(face, scheme=None).head_pose()


def test_geometry_for_json():
    points, _ = synthetic(2)
    result = face_geometry.describe_geometry(points, IBUG68)
    assert result["head_pose"].keys() == {"yaw", "pitch", "roll"}
    assert result["eye_openness"].keys() == {"left", "right"}
    points = points.copy()
    points[36] = np.nan
    result = face_geometry.describe_geometry(points, IBUG68)
    assert result["head_pose"]
    assert result["eye_openness"] is None
    nothing = {"head_pose": None, "eye_openness": None, "mouth_openness": None}
    assert face_geometry.describe_geometry(np.zeros((6, 2)), CUSTOM) == nothing
    face = face_of(synthetic(2)[0])
    image = results.describe_image(Path("a.jpg"), 192, 192, [face], IBUG68, geometry=True)
    frame = results.describe_frame(0, 0.0, [face], IBUG68, geometry=True)
    for described in (image["faces"][0], frame["faces"][0]):
        assert described["geometry"]["head_pose"]["yaw"] == pytest.approx(
            face.head_pose().yaw, abs=0.01
        )
    assert "geometry" not in face.to_dict()
    for scheme in (IBUG68, WFLW98):
        face_geometry.require_geometry(scheme)
    with pytest.raises(InputError, match="--geometry: the scheme six is neither"):
        face_geometry.require_geometry(CUSTOM)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"left_eye": (1,), "right_eye": (2, 3)}, "a location is not a pair"),
        ({"left_eye": (), "right_eye": (2, 3)}, "a location is not a pair"),
        ({99: (1, 2), 1: (2, 3)}, "landmark 99: ibug68 has the landmarks 0 to 67"),
    ],
)
def test_unusable_template_is_an_error(template, message):
    with pytest.raises(InputError, match=message):
        face_of(synthetic(1)[0]).align_transform(template=template)


def test_landmarks_go_by_index_in_a_template():
    face = face_of(synthetic(1)[0])
    affine = face.align_transform(template={0: (10, 20), 16: (90, 20)})
    moved = geometry.transform_points(affine, face.landmarks[[0, 16]])
    np.testing.assert_allclose(moved, [[10, 20], [90, 20]], atol=1e-3)


def test_face_with_other_landmarks_than_its_scheme_is_an_error():
    face = face_of(synthetic(1)[0][:40])
    for method in (face.align_transform, face.eye_openness, face.mouth_openness, face.head_pose):
        with pytest.raises(InputError, match="the face has 40 landmarks, and its scheme ibug68 68"):
            method()
    with pytest.raises(InputError, match="draw: a face does not have the landmarks of its scheme"):
        draw(np.zeros((9, 9, 3), np.uint8), face)

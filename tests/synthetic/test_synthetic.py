"""Tests of the synthetic faces and of their writers."""

import cv2
import numpy as np
import pytest

from lcgcn_jax import synthetic
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import IBUG68, SCHEMES, WFLW98, LandmarkScheme

SEEDS = range(160)
PLAIN = {name: False for name in synthetic.ATTRIBUTES}


@pytest.fixture(scope="module")
def faces():
    return [synthetic.draw_face(seed, WFLW98, size=64) for seed in SEEDS]


@pytest.fixture(scope="module")
def plain_seeds(faces):
    """Seeds of faces without any attribute: frontal, sharp, not occluded."""
    return [seed for seed, face in zip(SEEDS, faces, strict=True) if face.attributes == PLAIN]


def test_the_seed_determines_the_face():
    first, again, other = (synthetic.draw_face(seed, WFLW98) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.landmarks, again.landmarks)
    np.testing.assert_array_equal(first.occluded, again.occluded)
    assert first.attributes == again.attributes
    assert np.abs(first.image.astype(int) - other.image).mean() > 5
    assert np.abs(first.landmarks - other.landmarks).mean() > 1


@pytest.mark.slow
def test_landmarks_are_inside_the_image_and_span_half_of_it(faces):
    points = np.stack([face.landmarks for face in faces])
    assert points.dtype == np.float64
    assert points.shape == (len(SEEDS), 98, 2)
    assert points.min() > 0
    assert points.max() < 63
    extent = np.ptp(points, axis=1).max(axis=1) / 64
    assert extent.min() > 0.44
    assert extent.max() < 0.61


@pytest.mark.slow
def test_features_are_in_anatomical_order(faces):
    for face in faces:
        p = face.landmarks
        along = p[72] - p[60]
        across = np.array([-along[1], along[0]])
        left, right = [60, 64, 68, 33, 42, 76, 88, 96], [64, 68, 72, 37, 46, 82, 92, 97]
        assert ((p[right] - p[left]) @ along > 0).all()
        upper, lower = [62, 70, 35, 51, 54, 79, 90, 85], [66, 74, 62, 54, 57, 85, 94, 16]
        assert ((p[lower] - p[upper]) @ across >= 0).all()


@pytest.mark.slow
def test_near_frontal_faces_are_nearly_symmetric(plain_seeds, faces):
    differences = []
    for seed in plain_seeds:
        p = faces[seed].landmarks - faces[seed].landmarks[[60, 72]].mean(axis=0)
        mirrored = (p * (-1, 1))[list(WFLW98.mirror)]
        differences.append((p - mirrored).mean(axis=0) / np.ptp(p, axis=0))
    assert np.abs(np.mean(differences, axis=0)).max() < 0.05


@pytest.mark.parametrize(
    ("wflw", "ibug"),
    [(range(0, 33, 2), range(17)), (range(33, 38), range(17, 22)), (range(42, 47), range(22, 27)),
     (range(51, 60), range(27, 36)), ((60, 64), (36, 39)), ((68, 72), (42, 45)),
     (range(76, 96), range(48, 68))],
    ids=["jaw", "left_brow", "right_brow", "nose", "left_eye", "right_eye", "mouth"],
)  # fmt: skip
def test_schemes_agree_on_shared_landmarks(wflw, ibug):
    for seed in range(4):
        a, b = (synthetic.draw_face(seed, scheme, size=64) for scheme in (WFLW98, IBUG68))
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_allclose(a.landmarks[list(wflw)], b.landmarks[list(ibug)], atol=1e-9)


@pytest.mark.slow
def test_attributes_are_independent_and_have_a_rate_of_20_percent(faces):
    flags = np.array([[face.attributes[name] for name in synthetic.ATTRIBUTES] for face in faces])
    rates = flags.mean(axis=0)
    assert rates.min() > 0.12
    assert rates.max() < 0.28
    correlation = np.corrcoef(flags.T.astype(float))
    assert np.abs(correlation - np.eye(6)).max() < 0.25


@pytest.mark.slow
def test_blur_and_pose_attributes_change_the_image(faces):
    def mean(name, value, score):
        return np.mean([score(face) for face in faces if face.attributes[name] is value])

    def sharpness(face):
        return cv2.Laplacian(cv2.medianBlur(face.image, 3), cv2.CV_64F).std()

    def rotation(face):
        # Yaw: offset of the nose tip from the middle of the eye corners. Roll: slope of the eye line.
        p = face.landmarks
        along = p[72] - p[60]
        return abs((p[54] - p[[60, 72]].mean(axis=0)) @ along) / (along @ along) + abs(
            along[1] / along[0]
        )

    assert mean("blur", True, sharpness) < 0.6 * mean("blur", False, sharpness)
    assert mean("pose", True, rotation) > 1.5 * mean("pose", False, rotation)


@pytest.mark.slow
def test_only_faces_with_the_occlusion_attribute_have_occluded_landmarks(faces):
    num_occluded = np.array([face.occluded.sum() for face in faces])
    flagged = np.array([face.attributes["occlusion"] for face in faces])
    assert num_occluded[~flagged].max() == 0
    assert num_occluded[flagged].min() >= 3
    assert num_occluded[flagged].mean() < 60


@pytest.mark.slow
def test_pupil_landmarks_are_at_the_drawn_pupils(plain_seeds):
    for seed in plain_seeds[:8]:
        face = synthetic.draw_face(seed, WFLW98, size=384)
        gray = cv2.cvtColor(face.image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        for pupil, corners in ((96, (60, 64)), (97, (68, 72))):
            center = face.landmarks[pupil]
            white = 0.5 * center + 0.5 * face.landmarks[list(corners)]
            assert _value(gray, center) < min(_value(gray, point) for point in white)
            assert np.abs(_dark_centroid(gray, center) - center).max() < 1.0


@pytest.mark.slow
def test_jaw_landmarks_are_on_an_image_edge(plain_seeds):
    """The color gradient across the jaw is larger than the gradient across the cheek."""
    for seed in plain_seeds[:8]:
        face = synthetic.draw_face(seed, WFLW98, size=384)
        image = cv2.GaussianBlur(face.image, (0, 0), 2).astype(np.float32)
        jaw = face.landmarks[6:27]
        outward = jaw - face.landmarks[57]
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)

        def change(points, image=image, outward=outward):
            inner, outer = (
                np.array([_value(image, p) for p in points + step * outward]) for step in (-5, 5)
            )
            return np.linalg.norm(outer - inner, axis=1).mean()

        assert change(jaw) > 2 * change(jaw - 16 * outward)


@pytest.mark.slow
def test_the_face_does_not_depend_on_the_image_size(plain_seeds):
    for seed in plain_seeds[:6]:
        small, large = (synthetic.draw_face(seed, WFLW98, size=size) for size in (192, 384))
        np.testing.assert_allclose(large.landmarks, 2 * small.landmarks + 0.5, atol=1e-6)
        halved = cv2.resize(large.image, (192, 192), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(halved.ravel(), small.image.ravel())[0, 1] > 0.98
        a, b = (
            cv2.cvtColor(i, cv2.COLOR_RGB2GRAY).astype(np.float32) for i in (halved, small.image)
        )
        (dx, dy), _ = cv2.phaseCorrelate(a, b)
        assert max(abs(dx), abs(dy)) < 0.15


def test_unsupported_scheme_raises():
    other = LandmarkScheme("two", ("a", "b"), (), (0, 1), "box")
    with pytest.raises(ValueError, match="use wflw98 or ibug68"):
        synthetic.draw_face(0, other)


def test_write_wflw_layout(tmp_path):
    out = tmp_path / "wflw"
    synthetic.write_wflw(out, num_train=5, num_test=3, seed=2)
    lists = out / "WFLW_annotations" / "list_98pt_rect_attr_train_test"
    lines = {
        split: (lists / f"list_98pt_rect_attr_{split}.txt").read_text().splitlines()
        for split in ("train", "test")
    }
    assert {split: len(part) for split, part in lines.items()} == {"train": 5, "test": 3}
    paths, points = [], []
    for line in lines["train"] + lines["test"]:
        fields = line.split()
        assert len(fields) == 196 + 4 + 6 + 1
        landmarks = np.array(fields[:196], float).reshape(98, 2)
        box = np.array(fields[196:200], int).reshape(2, 2)
        assert np.abs(box - [landmarks.min(axis=0), landmarks.max(axis=0)]).max() < 10
        assert set(fields[200:206]) <= {"0", "1"}
        image = cv2.imread(str(out / "WFLW_images" / fields[206]))
        assert image.shape == (192, 192, 3)
        paths.append(fields[206])
        points.append(landmarks)
    assert len(set(paths)) == 8
    assert all(np.abs(a - b).max() > 1 for i, a in enumerate(points) for b in points[:i])


def test_write_300w_layout(tmp_path):
    out = tmp_path / "300w"
    synthetic.write_300w(out, num_train=6, num_test=10)
    counts = {
        "afw": 2, "helen/trainset": 2, "lfpw/trainset": 2, "helen/testset": 2, "lfpw/testset": 2,
        "ibug": 2, "300W/01_Indoor": 2, "300W/02_Outdoor": 2,
    }  # fmt: skip
    assert {folder: len(list((out / folder).glob("*.pts"))) for folder in counts} == counts
    assert len(list(out.rglob("*.pts"))) == 16
    for path in out.rglob("*.pts"):
        lines = path.read_text().split("\n")[:-1]
        if "lfpw" in path.parts:
            assert lines[:3] == ["version: 1", "n_points: 68", "{"]
            assert lines[-1] == "}"
            lines = lines[3:-1]
        points = np.array([line.split() for line in lines], float)
        assert points.shape == (68, 2)
        images = [p for p in path.parent.glob(f"{path.stem}.*") if p.suffix != ".pts"]
        assert [p.suffix for p in images] in ([".jpg"], [".png"])
        assert cv2.imread(str(images[0])).shape == (192, 192, 3)


def test_pts_coordinates_start_at_one_and_wflw_coordinates_at_zero(tmp_path):
    synthetic.write_300w(tmp_path / "300w", num_train=1, num_test=0)
    synthetic.write_wflw(tmp_path / "wflw", num_train=1, num_test=0)
    pts = np.loadtxt(tmp_path / "300w" / "afw" / "synthetic_000000.pts")
    lists = tmp_path / "wflw" / "WFLW_annotations" / "list_98pt_rect_attr_train_test"
    line = (lists / "list_98pt_rect_attr_train.txt").read_text()
    listed = np.array(line.split()[:196], float).reshape(98, 2)
    np.testing.assert_allclose(pts, synthetic.draw_face(0, IBUG68).landmarks + 1, atol=1e-5)
    np.testing.assert_allclose(listed, synthetic.draw_face(0, WFLW98).landmarks, atol=1e-5)


@pytest.mark.parametrize("write", [synthetic.write_wflw, synthetic.write_300w])
def test_writers_are_deterministic_and_do_not_overwrite(tmp_path, write):
    for name in ("a", "b"):
        write(tmp_path / name, num_train=3, num_test=2, seed=1)
    files = sorted(
        p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    assert len(files) >= 5
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with pytest.raises(InputError, match="already exists; choose another path"):
        write(tmp_path / "a", num_train=1, num_test=1)


def test_draw_face_supports_every_built_in_scheme():
    for scheme in SCHEMES.values():
        assert synthetic.draw_face(0, scheme, size=48).landmarks.shape == (scheme.num_landmarks, 2)


def _value(image, point):
    x, y = np.float32(point)
    return cv2.getRectSubPix(image, (1, 1), (float(x), float(y)))[0, 0]


def _dark_centroid(gray, center):
    """Centroid of the dark pixels in a small disc around the expected center of the pupil."""
    y, x = np.indices(gray.shape)
    near = (x - center[0]) ** 2 + (y - center[1]) ** 2 < 5**2
    dark = np.clip(60 - gray, 0, None) * near
    return np.array([(x * dark).sum(), (y * dark).sum()]) / dark.sum()

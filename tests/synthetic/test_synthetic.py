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
    """Faces without any attribute: frontal, sharp, nothing in front of them."""
    return [seed for seed, face in zip(SEEDS, faces, strict=True) if face.attributes == PLAIN]


def test_same_seed_same_face_and_another_seed_another_face():
    first, again, other = (synthetic.draw_face(seed, WFLW98) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.landmarks, again.landmarks)
    np.testing.assert_array_equal(first.occluded, again.occluded)
    assert first.attributes == again.attributes
    assert np.abs(first.image.astype(int) - other.image).mean() > 5
    assert np.abs(first.landmarks - other.landmarks).mean() > 1


def test_landmarks_lie_inside_and_fill_about_half_of_the_picture(faces):
    points = np.stack([face.landmarks for face in faces])
    assert points.dtype == np.float64
    assert points.shape == (len(SEEDS), 98, 2)
    assert points.min() > 0
    assert points.max() < 63
    extent = np.ptp(points, axis=1).max(axis=1) / 64
    assert extent.min() > 0.44
    assert extent.max() < 0.61


def test_features_are_in_order_on_every_face(faces):
    for face in faces:
        p = face.landmarks
        along = p[72] - p[60]
        across = np.array([-along[1], along[0]])
        for left, right in (
            (60, 64),
            (64, 68),
            (68, 72),
            (33, 37),
            (42, 46),
            (76, 82),
            (88, 92),
            (96, 97),
        ):
            assert (p[right] - p[left]) @ along > 0
        for upper, lower in (
            (62, 66),
            (70, 74),
            (35, 62),
            (51, 54),
            (54, 57),
            (79, 85),
            (90, 94),
            (85, 16),
        ):
            assert (p[lower] - p[upper]) @ across >= 0


def test_left_and_right_are_roughly_mirrored_on_near_frontal_faces(plain_seeds, faces):
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
def test_the_schemes_agree_where_they_share_points(wflw, ibug):
    for seed in range(4):
        a, b = (synthetic.draw_face(seed, scheme, size=64) for scheme in (WFLW98, IBUG68))
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_allclose(a.landmarks[list(wflw)], b.landmarks[list(ibug)], atol=1e-9)


def test_attributes_are_neither_rare_nor_common_and_independent(faces):
    flags = np.array([[face.attributes[name] for name in synthetic.ATTRIBUTES] for face in faces])
    rates = flags.mean(axis=0)
    assert rates.min() > 0.12
    assert rates.max() < 0.28
    correlation = np.corrcoef(flags.T.astype(float))
    assert np.abs(correlation - np.eye(6)).max() < 0.25


def test_attributes_are_what_they_say(faces):
    def mean(name, value, score):
        return np.mean([score(face) for face in faces if face.attributes[name] is value])

    def sharpness(face):
        return cv2.Laplacian(cv2.medianBlur(face.image, 3), cv2.CV_64F).std()

    def turn(face):
        # How far the nose tip is off the middle of the eye corners, along the line between them.
        p = face.landmarks
        along = p[72] - p[60]
        return abs((p[54] - p[[60, 72]].mean(axis=0)) @ along) / (along @ along) + abs(
            along[1] / along[0]
        )

    assert mean("blur", True, sharpness) < 0.6 * mean("blur", False, sharpness)
    assert mean("pose", True, turn) > 1.5 * mean("pose", False, turn)


def test_only_an_occluder_occludes(faces):
    covered = np.array([face.occluded.sum() for face in faces])
    flagged = np.array([face.attributes["occlusion"] for face in faces])
    assert covered[~flagged].max() == 0
    assert covered[flagged].min() >= 3
    assert covered[flagged].mean() < 60


def test_the_drawn_pupil_is_at_the_pupil_landmark(plain_seeds):
    for seed in plain_seeds[:8]:
        face = synthetic.draw_face(seed, WFLW98, size=384)
        gray = cv2.cvtColor(face.image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        for pupil, corners in ((96, (60, 64)), (97, (68, 72))):
            center = face.landmarks[pupil]
            white = 0.5 * center + 0.5 * face.landmarks[list(corners)]
            assert _value(gray, center) < min(_value(gray, point) for point in white)
            assert np.abs(_dark_centroid(gray, center) - center).max() < 1.0


def test_the_jaw_is_an_edge_of_the_picture(plain_seeds):
    """The color changes more across the jaw landmarks than the same way across the cheek."""
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


def test_twice_the_size_is_the_same_face_under_the_half_pixel_convention(plain_seeds):
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


def test_another_scheme_is_refused():
    other = LandmarkScheme("two", ("a", "b"), (), (0, 1), "box")
    with pytest.raises(ValueError, match="use wflw98 or ibug68"):
        synthetic.draw_face(0, other)


def test_write_wflw_writes_the_official_layout(tmp_path):
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


def test_write_300w_writes_the_official_layout(tmp_path):
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
            assert lines[:3] == ["version: 1", "n_points:  68", "{"]
            assert lines[-1] == "}"
            lines = lines[3:-1]
        points = np.array([line.split() for line in lines], float)
        assert points.shape == (68, 2)
        images = [p for p in path.parent.glob(f"{path.stem}.*") if p.suffix != ".pts"]
        assert [p.suffix for p in images] in ([".jpg"], [".png"])
        assert cv2.imread(str(images[0])).shape == (192, 192, 3)


def test_pts_files_count_from_one_and_list_files_from_zero(tmp_path):
    synthetic.write_300w(tmp_path / "300w", num_train=1, num_test=0)
    synthetic.write_wflw(tmp_path / "wflw", num_train=1, num_test=0)
    pts = np.loadtxt(tmp_path / "300w" / "afw" / "synthetic_000000.pts")
    lists = tmp_path / "wflw" / "WFLW_annotations" / "list_98pt_rect_attr_train_test"
    line = (lists / "list_98pt_rect_attr_train.txt").read_text()
    listed = np.array(line.split()[:196], float).reshape(98, 2)
    np.testing.assert_allclose(pts, synthetic.draw_face(0, IBUG68).landmarks + 1, atol=1e-5)
    np.testing.assert_allclose(listed, synthetic.draw_face(0, WFLW98).landmarks, atol=1e-5)


@pytest.mark.parametrize("write", [synthetic.write_wflw, synthetic.write_300w])
def test_writing_is_deterministic_and_never_overwrites(tmp_path, write):
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


def test_every_built_in_scheme_can_be_drawn():
    for scheme in SCHEMES.values():
        assert synthetic.draw_face(0, scheme, size=48).landmarks.shape == (scheme.num_landmarks, 2)


def _value(image, point):
    x, y = np.float32(point)
    return cv2.getRectSubPix(image, (1, 1), (float(x), float(y)))[0, 0]


def _dark_centroid(gray, center):
    """Centroid of the pupil: the darkest pixels within a small disc around the expected center."""
    y, x = np.indices(gray.shape)
    near = (x - center[0]) ** 2 + (y - center[1]) ** 2 < 5**2
    dark = np.clip(60 - gray, 0, None) * near
    return np.array([(x * dark).sum(), (y * dark).sum()]) / dark.sum()

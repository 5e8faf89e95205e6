import cv2
import numpy as np
import pytest

from lcgcn_jax.data import w300
from lcgcn_jax.errors import InputError

POINTS = np.random.default_rng(0).uniform(5, 55, (68, 2)).round(3)
BARE = "\n".join(f"{x} {y}" for x, y in POINTS)
HEADED = f"version: 1\nn_points:  68\n{{\n{BARE}\n}}\n"


def write_face(folder, stem, text=HEADED, suffix=".jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    content = text if isinstance(text, bytes) else text.encode()
    (folder / f"{stem}.pts").write_bytes(content)
    if suffix:
        encoded = cv2.imencode(suffix.lower(), np.full((60, 60, 3), 90, np.uint8))[1]
        (folder / f"{stem}{suffix}").write_bytes(encoded.tobytes())


@pytest.mark.parametrize(
    "text",
    [BARE, HEADED, HEADED.replace("\n", "\r\n"), "\ufeff" + BARE, BARE + "\n\n", HEADED.upper()],
    ids=["bare", "headed", "crlf", "bom", "blank lines", "upper case"],
)
def test_points_of_every_dialect_count_from_zero(tmp_path, text):
    write_face(tmp_path / "afw", "1_1", text)
    (face,) = w300.read(tmp_path).faces
    np.testing.assert_allclose(face.landmarks, POINTS - 1)
    assert face.visible.all()
    assert face.provided_box is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n".join(BARE.splitlines()[:66]), "66 points, expected 68"),
        (HEADED.replace("}", "1 2\n}"), "69 points"),
        ("", "0 points"),
        (HEADED.replace(BARE, ""), "0 points"),
        (BARE.replace(str(POINTS[3, 0]), "nan"), "NaN or infinite"),
        (BARE.replace(str(POINTS[3, 0]), "-inf"), "NaN or infinite"),
        (BARE.replace(str(POINTS[3, 0]), "nose"), "not a number"),
        (BARE.replace(str(POINTS[3, 0]), "1 2"), "is not a point"),
        ("\n".join(["12"] * 68), "is not a point"),
        (b"\xff\xfe\x80" + BARE.encode(), "UTF-8"),
    ],
)
def test_bad_points_are_reported_and_reading_goes_on(tmp_path, text, reason):
    write_face(tmp_path / "afw", "1_1", text)
    write_face(tmp_path / "afw", "2_1")
    annotations = w300.read(tmp_path)
    assert [face.name for face in annotations.faces] == ["afw/2_1.jpg"]
    (bad,) = annotations.bad
    assert bad.name == "afw/1_1.pts"
    assert reason in bad.reason


def test_points_without_image_are_reported(tmp_path):
    write_face(tmp_path / "ibug", "image_003_1", suffix="")
    annotations = w300.read(tmp_path)
    assert not annotations.faces
    assert "no image beside it" in annotations.bad[0].reason


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".png", ".Png", ".jpeg", ".JPEG"])
def test_image_suffixes(tmp_path, suffix):
    write_face(tmp_path / "lfpw/testset", "image_0001", suffix=suffix)
    (face,) = w300.read(tmp_path).faces
    assert face.name == f"lfpw/testset/image_0001{suffix}"


def test_subsets_and_splits(tmp_path):
    for folder in ("afw", "helen/trainset", "helen/testset", "lfpw/testset", "ibug"):
        write_face(tmp_path / folder, "1_1")
    write_face(tmp_path / "300W/01_Indoor", "indoor_001", suffix=".png")
    annotations = w300.read(tmp_path)
    assert {face.subset: face.split for face in annotations.faces} == {
        "afw": "train",
        "helen/train": "train",
        "helen/test": "common",
        "lfpw/test": "common",
        "ibug": "challenge",
        "300W/indoor": "test",
    }
    assert annotations.absent == ["lfpw/train", "300W/outdoor"]
    assert annotations.scheme.name == "ibug68"


@pytest.mark.parametrize(
    ("stem", "photograph"),
    [
        ("134212_1", "134212"),
        ("134212_2", "134212"),
        ("image_003_1", "image_003"),
        ("image_092 _01", "image_092"),
        ("image_0001", "image_0001"),
        ("indoor_001", "indoor_001"),
        ("synthetic_000123", "synthetic_000123"),
    ],
)
def test_faces_of_one_photograph_share_a_group(stem, photograph):
    assert w300.photograph_of(stem) == photograph


def test_group_is_of_its_own_folder(tmp_path):
    for folder in ("afw", "helen/trainset"):
        write_face(tmp_path / folder, "12_1")
        write_face(tmp_path / folder, "12_2")
    groups = [face.group for face in w300.read(tmp_path).faces]
    assert groups == ["afw/12"] * 2 + ["helen/trainset/12"] * 2


def test_a_folder_without_subsets_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no 300W subset.*afw/, helen/trainset/"):
        w300.read(tmp_path)


def test_the_real_faces(shared):
    annotations = w300.read(shared / "data/300w")
    subsets = [face.subset for face in annotations.faces]
    counts = {name: subsets.count(name) for name in dict.fromkeys(subsets)}
    assert counts == {"afw": 337, "helen/train": 870, "lfpw/train": 805}
    assert annotations.bad == []
    assert annotations.absent == ["helen/test", "lfpw/test", "ibug", "300W/indoor", "300W/outdoor"]
    assert len({face.name for face in annotations.faces}) == 2012


def test_landmarks_of_cut_and_full_size_photographs_agree(shared):
    cut = {face.name.split(".")[0]: face for face in w300.read(shared / "data/300w").faces}
    full = w300.read(shared / "data/300w_fullsize").faces
    assert len(full) == 5
    for face in full:
        source, target = face.landmarks, cut[face.name.split(".")[0]].landmarks
        design = np.column_stack([source.reshape(-1), np.tile(np.eye(2), (68, 1))])
        fit, *_ = np.linalg.lstsq(design, target.reshape(-1))
        assert np.abs(design @ fit - target.reshape(-1)).max() < 0.1

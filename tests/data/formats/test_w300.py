import cv2
import numpy as np
import pytest

from lcgcn_jax.data.formats import w300
from lcgcn_jax.data.formats.pts import source_image_of
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
    [
        BARE,
        HEADED,
        HEADED.replace("\n", "\r\n"),
        HEADED.replace("\n", "\r"),
        "\ufeff" + BARE,
        BARE + "\n\n",
        HEADED.upper(),
        BARE.replace(" ", "\t"),
        BARE.replace(" ", "  \t "),
        BARE.replace(".", ","),
        BARE.replace(".", ",").replace(" ", ";"),
        BARE.replace(" ", ","),
        BARE.replace(" ", ", "),
        BARE.replace(" ", " , "),
        BARE.replace(".", ",").replace(" ", "; "),
        HEADED.replace("n_points:", "n_points :"),
    ],
    ids=[
        "bare",
        "headed",
        "crlf",
        "cr",
        "bom",
        "blank lines",
        "upper case",
        "tabs",
        "tabs and spaces",
        "decimal commas",
        "decimal commas and semicolons",
        "commas",
        "commas and spaces",
        "commas between spaces",
        "decimal commas, semicolons and spaces",
        "space before the colon",
    ],
)
def test_pts_dialects_give_the_same_landmarks(tmp_path, text):
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
        (BARE.replace(str(POINTS[3, 0]), "1_2"), "not a number"),
        ("\n".join(["12"] * 68), "is not a point"),
        (b"\xff\xfe\x80" + BARE.encode(), "UTF-8"),
    ],
)
def test_bad_pts_files_are_listed_and_skipped(tmp_path, text, reason):
    write_face(tmp_path / "afw", "1_1", text)
    write_face(tmp_path / "afw", "2_1")
    annotations = w300.read(tmp_path)
    assert [face.name for face in annotations.faces] == ["afw/2_1.jpg"]
    (bad,) = annotations.bad
    assert bad.name == "afw/1_1.pts"
    assert reason in bad.reason


def test_pts_file_without_an_image_is_listed(tmp_path):
    write_face(tmp_path / "ibug", "image_003_1", suffix="")
    annotations = w300.read(tmp_path)
    assert not annotations.faces
    assert "no image next to it" in annotations.bad[0].reason


@pytest.mark.parametrize(
    "suffix", [".jpg", ".JPG", ".png", ".Png", ".jpeg", ".JPEG", ".bmp", ".TIF", ".webp"]
)
def test_image_suffixes(tmp_path, suffix):
    write_face(tmp_path / "lfpw/testset", "image_0001", suffix=suffix)
    (face,) = w300.read(tmp_path).faces
    assert face.name == f"lfpw/testset/image_0001{suffix}"


@pytest.mark.parametrize("suffix", [".PTS", ".Pts"])
def test_pts_suffix_matches_in_any_case(tmp_path, suffix):
    write_face(tmp_path / "afw", "1_1")
    write_face(tmp_path / "afw", "2_1")
    (tmp_path / "afw/2_1.pts").rename(tmp_path / f"afw/2_1{suffix}")
    annotations = w300.read(tmp_path)
    assert [face.name for face in annotations.faces] == ["afw/1_1.jpg", "afw/2_1.jpg"]
    assert not annotations.bad


def test_image_names_match_in_any_case(tmp_path):
    for points, image in (("A_1", "a_1"), ("\u00e9_1", "e\u0301_1")):  # composed and decomposed
        write_face(tmp_path / "afw", points, suffix="")
        write_face(tmp_path / "afw", image)
        (tmp_path / f"afw/{image}.pts").unlink()
    faces = w300.read(tmp_path).faces
    assert [face.name for face in faces] == ["afw/a_1.jpg", "afw/e\u0301_1.jpg"]


def test_folder_names_match_in_any_case(tmp_path):
    for folder in ("AFW", "HELEN/Trainset", "Lfpw/TESTSET", "300w/01_indoor"):
        write_face(tmp_path / folder, "12_1")
    faces = w300.read(tmp_path).faces
    assert [face.name for face in faces] == [
        "afw/12_1.jpg",
        "helen/trainset/12_1.jpg",
        "lfpw/testset/12_1.jpg",
        "300W/01_Indoor/12_1.jpg",
    ]
    assert faces[1].group == "helen/trainset/12"


def test_folder_in_two_cases_raises(tmp_path):
    for folder in ("afw", "AFW"):
        write_face(tmp_path / folder, "12_1")
    with pytest.raises(InputError, match="both AFW/ and afw/ exist"):
        w300.read(tmp_path)


@pytest.mark.parametrize("name", ["._1_1.pts", "._1_1.jpg", ".DS_Store", "Thumbs.db"])
def test_system_files_are_skipped(tmp_path, name):
    write_face(tmp_path / "afw", "1_1")
    (tmp_path / "afw" / name).write_bytes(b"\0\5\x16\7")
    annotations = w300.read(tmp_path)
    assert len(annotations.faces) == 1
    assert not annotations.bad
    assert not annotations.notes


def test_ambiguous_or_unreadable_image_is_listed(tmp_path):
    write_face(tmp_path / "afw", "1_1")
    (tmp_path / "afw/1_1.png").write_bytes(b"")
    write_face(tmp_path / "afw", "2_1", suffix="")
    (tmp_path / "afw/2_1.heic").write_bytes(b"")
    write_face(tmp_path / "afw", "3_1")
    (tmp_path / "afw/3_1.PTS").write_text(HEADED)
    annotations = w300.read(tmp_path)
    reasons = {bad.name: bad.reason for bad in annotations.bad}
    assert "two images next to it, 1_1.jpg and 1_1.png" in reasons["afw/1_1.pts"]
    assert "2_1.heic is not one: convert it to JPEG or PNG" in reasons["afw/2_1.pts"]
    assert "afw/3_1.jpg has another .pts file" in reasons["afw/3_1.pts"]
    assert [face.name for face in annotations.faces] == ["afw/3_1.jpg"]


@pytest.mark.parametrize("marker", ["0 0", "-1 -1", "0.000 0.0", "-1.0 -1.000000"])
def test_points_at_zero_or_minus_one_are_missing(tmp_path, marker):
    write_face(tmp_path / "afw", "1_1", "\n".join([marker] * 17 + BARE.splitlines()[17:]))
    annotations = w300.read(tmp_path)
    (face,) = annotations.faces
    assert np.flatnonzero(~face.visible).tolist() == list(range(17))
    assert np.isnan(face.landmarks[:17]).all()
    np.testing.assert_allclose(face.landmarks[17:], POINTS[17:] - 1)
    assert annotations.notes == [
        "17 points at (0, 0) or (-1, -1) treated as missing, in 1 face, such as afw/1_1.jpg"
    ]


def test_points_near_the_corner_are_not_missing(tmp_path):
    points = POINTS.copy()
    points[:4] = [[0, 0.5], [-1, 0], [1, 1], [-1.5, -2.25]]
    write_face(tmp_path / "afw", "1_1", "\n".join(f"{x} {y}" for x, y in points))
    (face,) = w300.read(tmp_path).faces
    np.testing.assert_allclose(face.landmarks, points - 1)
    assert face.visible.all()


def test_merl_rav_signs_are_rejected(tmp_path):
    points = POINTS.copy()
    points[5:8] *= -1
    write_face(tmp_path / "afw", "1_1", "\n".join(f"{x} {y}" for x, y in points))
    write_face(tmp_path / "afw", "2_1", "\n".join(["-1 -1"] * 68))
    first, second = w300.read(tmp_path).bad
    assert "3 points with two negative coordinates" in first.reason
    assert "lcgcn prepare merl-rav" in first.reason
    assert "all points are at (0, 0) or (-1, -1)" in second.reason


def test_points_at_one_place_are_rejected(tmp_path):
    points = POINTS.copy()
    points[:17] = 1
    write_face(tmp_path / "afw", "1_1", "\n".join(f"{x} {y}" for x, y in points))
    (bad,) = w300.read(tmp_path).bad
    assert "17 of 68 points lie at (1, 1)" in bad.reason


def test_lfpw_overlap_is_excluded_from_train(tmp_path):
    for folder in ("lfpw/trainset", "lfpw/testset", "helen/trainset"):
        write_face(tmp_path / folder, "image_0862")
        write_face(tmp_path / folder, "image_0863", suffix=".png")
    annotations = w300.read(tmp_path)
    names = [face.name for face in annotations.faces]
    assert "lfpw/trainset/image_0862.jpg" not in names
    assert len(names) == 5
    (note,) = annotations.notes
    assert note.startswith("1 LFPW training images are left out")
    assert "image_0862" in note
    with_overlap = w300.read(tmp_path, keep_lfpw_overlap=True)
    assert len(with_overlap.faces) == 6
    assert not with_overlap.notes


def test_packed_archives_are_reported(tmp_path):
    (tmp_path / "afw.zip").write_bytes(b"")
    (tmp_path / "300w.zip.001").write_bytes(b"")
    with pytest.raises(InputError, match=r"no 300W subset.*; unpack 300w.zip.001, afw.zip first"):
        w300.read(tmp_path)
    write_face(tmp_path / "ibug", "1_1")
    (note,) = w300.read(tmp_path).notes
    assert "still packed: 300w.zip.001, afw.zip" in note


def test_parent_or_child_folder_is_suggested(tmp_path):
    write_face(tmp_path / "300w_data/afw", "1_1")
    with pytest.raises(InputError, match=r"did you mean --src .*300w_data\?"):
        w300.read(tmp_path)
    with pytest.raises(InputError, match="into the folder of their subset"):
        w300.read(tmp_path / "300w_data/afw")


def test_subsets_are_assigned_to_splits(tmp_path):
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
    ("stem", "image"),
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
def test_faces_of_one_image_share_a_group(stem, image):
    assert source_image_of(stem) == image


def test_groups_differ_between_folders(tmp_path):
    for folder in ("afw", "helen/trainset"):
        write_face(tmp_path / folder, "12_1")
        write_face(tmp_path / folder, "12_2")
    groups = [face.group for face in w300.read(tmp_path).faces]
    assert groups == ["afw/12"] * 2 + ["helen/trainset/12"] * 2


def test_folder_without_subsets_raises(tmp_path):
    with pytest.raises(InputError, match=r"no 300W subset.*afw/, helen/trainset/"):
        w300.read(tmp_path)


@pytest.mark.slow
def test_real_300w_faces_are_read(shared):
    annotations = w300.read(shared / "data/300w")
    subsets = [face.subset for face in annotations.faces]
    counts = {name: subsets.count(name) for name in dict.fromkeys(subsets)}
    assert counts == {"afw": 337, "helen/train": 870, "lfpw/train": 802}
    assert annotations.bad == []
    assert annotations.absent == ["helen/test", "lfpw/test", "ibug", "300W/indoor", "300W/outdoor"]
    assert len({face.name for face in annotations.faces}) == 2009
    (note,) = annotations.notes
    assert "3 LFPW training images are left out" in note


@pytest.mark.slow
def test_landmarks_of_cropped_and_full_size_images_agree(shared):
    cut = {face.name.split(".")[0]: face for face in w300.read(shared / "data/300w").faces}
    full = w300.read(shared / "data/300w_fullsize").faces
    assert len(full) == 5
    for face in full:
        source, target = face.landmarks, cut[face.name.split(".")[0]].landmarks
        design = np.column_stack([source.reshape(-1), np.tile(np.eye(2), (68, 1))])
        fit, *_ = np.linalg.lstsq(design, target.reshape(-1))
        assert np.abs(design @ fit - target.reshape(-1)).max() < 0.1

import cv2
import numpy as np
import pytest

from lcgcn_jax.data.formats import wflw
from lcgcn_jax.errors import InputError

POINTS = np.random.default_rng(0).uniform(5, 55, (98, 2)).round(3)
IMAGE = "7--Cheering/a face.jpg"


def line_of(points=POINTS, box="4 5 56 57", attributes="0 1 0 0 1 0", image=IMAGE):
    return f"{' '.join(str(c) for c in points.reshape(-1))} {box} {attributes} {image}"


def write_tree(src, lines, split="train"):
    image = src / wflw.IMAGES / IMAGE
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(cv2.imencode(".jpg", np.full((60, 60, 3), 90, np.uint8))[1].tobytes())
    path = wflw.list_file(src, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))


def test_line_becomes_a_face(tmp_path):
    write_tree(tmp_path, ["", line_of()])
    annotations = wflw.read(tmp_path)
    (face,) = annotations.faces
    np.testing.assert_array_equal(face.landmarks, POINTS)
    np.testing.assert_array_equal(face.provided_box, [4, 5, 56, 57])
    attributes = dict(zip(annotations.attribute_names, face.attributes, strict=True))
    assert [name for name, value in attributes.items() if value] == ["expression", "occlusion"]
    assert face.name == f"train/000002:{IMAGE}"
    assert (face.group, face.split, face.subset) == (IMAGE, "train", "")
    assert annotations.absent == ["test"]
    assert annotations.scheme.name == "wflw98"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (line_of(POINTS[:97]), "fields, expected 207"),
        (line_of(np.r_[POINTS[:90], np.full((8, 2), -9)]), "8 of 98 points lie at"),
        (line_of(image=""), "fields, expected 207"),
        (line_of(np.full_like(POINTS, np.nan)), "NaN or infinite"),
        (line_of(box="4 5 inf 57"), "NaN or infinite"),
        (line_of(box="4 5 four 57"), "not 206 numbers"),
        (line_of(box="4 5 5_6 57"), "not 206 numbers"),
        (line_of(box="56 5 4 57"), "no extent"),
        (line_of(attributes="0 2 0 0 0 0"), "neither 0 nor 1"),
        (line_of(image="7--Cheering/missing.jpg"), "no image"),
        (line_of(image="/etc/passwd"), "leaves WFLW_images/"),
        (line_of(image="../outside.jpg"), "leaves WFLW_images/"),
        (line_of(image="7--Cheering/../../outside.jpg"), "leaves WFLW_images/"),
        (line_of(image="7--Cheering/link.jpg"), "link that leaves"),
        (line_of().encode() + b"\xff", "UTF-8"),
        ("words", "fields, expected 207"),
    ],
)
def test_bad_lines_are_listed_and_skipped(tmp_path, line, reason):
    write_tree(tmp_path, [line_of(), line, line_of()])
    (tmp_path / "outside.jpg").write_bytes(b"x")
    (tmp_path / wflw.IMAGES / "7--Cheering/link.jpg").symlink_to(tmp_path / "outside.jpg")
    annotations = wflw.read(tmp_path)
    assert [face.name[:12] for face in annotations.faces] == ["train/000001", "train/000003"]
    (bad,) = annotations.bad
    assert bad.name == "list_98pt_rect_attr_train.txt:2"
    assert reason in bad.reason


def test_image_folder_may_be_a_link(tmp_path):
    write_tree(tmp_path / "a", [line_of()])
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert len(wflw.read(tmp_path / "b").faces) == 1


@pytest.mark.parametrize("made", ["nothing", "list", "images"])
def test_folder_without_the_layout_raises(tmp_path, made):
    if made == "list":
        wflw.list_file(tmp_path, "train").parent.mkdir(parents=True)
        wflw.list_file(tmp_path, "train").write_text(line_of())
    if made == "images":
        (tmp_path / wflw.IMAGES).mkdir()
    with pytest.raises(InputError, match=r"no WFLW here; expected WFLW_images/"):
        wflw.read(tmp_path)


def test_byte_order_mark_is_ignored(tmp_path):
    write_tree(tmp_path, [b"\xef\xbb\xbf" + line_of().encode()])
    assert len(wflw.read(tmp_path).faces) == 1


def test_real_wflw_faces_are_read(shared):
    annotations = wflw.read(shared / "data/wflw_sample")
    assert [face.split for face in annotations.faces] == ["train", "test", "test", "test"]
    assert annotations.bad == []
    for face in annotations.faces:
        box = np.concatenate([face.landmarks.min(axis=0), face.landmarks.max(axis=0)])
        np.testing.assert_allclose(box, face.provided_box, atol=8)


def test_points_at_zero_or_minus_one_are_missing(tmp_path):
    points = POINTS.copy()
    points[3], points[9] = 0, -1
    write_tree(tmp_path, [line_of(points)])
    annotations = wflw.read(tmp_path)
    (face,) = annotations.faces
    assert np.flatnonzero(~face.visible).tolist() == [3, 9]
    assert np.isnan(face.landmarks[~face.visible]).all()
    (note,) = annotations.notes
    assert "2 points at (0, 0) or (-1, -1) treated as missing, in 1 face" in note


def test_packed_archives_are_reported(tmp_path):
    (tmp_path / "WFLW_images.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"no WFLW here; .*; unpack WFLW_images.tar.gz first"):
        wflw.read(tmp_path)

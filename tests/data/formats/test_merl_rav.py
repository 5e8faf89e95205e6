import json
import re

import cv2
import numpy as np
import pytest

from lcgcn_jax.commands import main
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.formats import merl_rav
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import IBUG68

ANGLES = np.linspace(0, 2 * np.pi, 68, endpoint=False)
POINTS = np.round(np.stack([60 + 30 * np.cos(ANGLES), 55 + 35 * np.sin(ANGLES)], axis=1), 3)


def write_face(folder, stem, points=POINTS, image=None, suffix=".pts"):
    folder.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(f"{x:.3f} {y:.3f}" for x, y in points)
    (folder / f"{stem}{suffix}").write_text(f"version: 1\nn_points: 68\n{{\n{lines}\n}}\n")
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8)
    cv2.imwrite(str(folder / (image or f"{stem}.jpg")), noise)


def with_points(**changes):
    points = POINTS.copy()
    for index, xy in changes.items():
        points[int(index.removeprefix("p"))] = xy
    return points


def test_official_layout(tmp_path):
    write_face(tmp_path / "frontal/trainset", "image00002")
    write_face(tmp_path / "left/testset", "image00002_1", image="image00002.jpg")
    write_face(tmp_path / "righthalf/trainset", "image00030", suffix=".PTS")
    (tmp_path / "righthalf/trainset/._image00030.pts").write_bytes(b"\0")
    result = merl_rav.read(tmp_path)
    assert (result.kind, result.scheme, result.bad) == ("merl-rav", IBUG68, [])
    assert result.attribute_names == ("frontal", "left", "lefthalf", "right", "righthalf")
    first, second, third = result.faces
    np.testing.assert_allclose(first.landmarks, POINTS - 1)
    assert first.visible.all()
    assert not first.visibility.any()
    assert (first.name, first.split) == ("frontal/trainset/image00002.jpg", "train")
    assert (second.name, second.split) == ("left/testset/image00002_1.jpg", "test")
    assert (second.subset, second.attributes) == ("left", (False, True, False, False, False))
    # Faces of one image share a group across poses.
    assert first.group == second.group == "image00002"
    assert third.attributes == (False, False, False, False, True)
    assert "lefthalf/trainset" in result.absent


def test_signs_are_decoded_as_visibility():
    points = with_points(p3=-POINTS[3], p4=(-1, -1), p5=(0, 0))
    locations, visibility = merl_rav.decode_signs(points)
    assert visibility[3:7].tolist() == [1, 2, -1, 0]
    np.testing.assert_array_equal(locations[3], POINTS[3])
    np.testing.assert_array_equal(np.isfinite(locations).all(axis=1), ~np.isin(range(68), (4, 5)))


@pytest.mark.parametrize(
    ("point", "location", "label"),
    [
        ((-2.5, 50), (-2.5, 50), 0),
        ((50, -2.5), (50, -2.5), 0),
        ((2.5, -50), (-2.5, 50), 1),
        ((-50, 2.5), (50, -2.5), 1),
        ((-1, 50), (-1, 50), 0),
        ((0, 50), (0, 50), 0),
        ((130, 50), (130, 50), 0),
        ((-130, -50), (130, 50), 1),
    ],
)
def test_landmarks_beyond_the_border(point, location, label):
    locations, visibility = merl_rav.decode_signs(with_points(p7=point))
    np.testing.assert_array_equal(locations[7], location)
    assert visibility[7] == label


def test_bad_files_are_listed(tmp_path):
    folder = tmp_path / "frontal/trainset"
    write_face(folder, "image1")
    write_face(folder, "image2", np.full((68, 2), -1.0))
    write_face(folder, "image3", POINTS[:67])
    write_face(folder, "image4", image="other.jpg")
    result = merl_rav.read(tmp_path)
    assert [face.group for face in result.faces] == ["image1"]
    reasons = {bad.name: bad.reason for bad in result.bad}
    assert reasons["frontal/trainset/image2.pts"] == "no landmark has a location"
    assert "67 points, expected 68" in reasons["frontal/trainset/image3.pts"]
    assert "no image next to it" in reasons["frontal/trainset/image4.pts"]


def test_folder_without_the_layout_raises(tmp_path):
    with pytest.raises(InputError, match="no MERL-RAV subset"):
        merl_rav.read(tmp_path)
    write_face(tmp_path / "exact/left/trainset", "image1")
    with pytest.raises(InputError, match=re.escape(f"did you mean --src {tmp_path / 'exact'}?")):
        merl_rav.read(tmp_path)


@pytest.mark.parametrize("option", [[], ["--no-validation"]])
def test_validation_split_is_optional(tmp_path, option, capsys):
    for i in range(4):
        points = with_points(p3=-POINTS[3], p4=(-1, -1))
        write_face(tmp_path / "src/frontal/trainset", f"image{i}", points)
    out = tmp_path / "out"
    code = main.main(["prepare", "merl-rav", f"--src={tmp_path / 'src'}", f"--out={out}", *option])
    assert code == 0
    dataset = open_dataset(out)
    assert ("validation" in dataset.splits) == (not option)
    assert sum(dataset.num_faces.values()) == 4
    record = dataset.source("train")[0]
    assert record["visibility"][2:6].tolist() == [0, 1, 2, 0]
    assert record["visible"][2:6].tolist() == [True, True, False, True]
    assert json.loads((out / "report.json").read_text())["kind"] == "merl-rav"
    assert "no validation split" not in capsys.readouterr().out

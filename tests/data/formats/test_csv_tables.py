"""Tests of `data.formats.csv_tables`: dialects of CSV files."""

import numpy as np
import pytest

from lcgcn_jax.data.formats import custom
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import LandmarkScheme

NAMES = ["left", "right", "tip"]
HEADER = "image,x_left,y_left,x_right,y_right,x_tip,y_tip"
ROW = "one/a b.png,15.5,20,45,21,30,35.25"
POINTS = [[15.5, 20], [45, 21], [30, 35.25]]
SCHEME = LandmarkScheme.from_dict({"name": "three", "names": NAMES})


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "one").mkdir(parents=True)
    (folder / "one/a b.png").write_bytes(b"not read here")
    return folder


def read(images, content, scheme=SCHEME):
    path = images.parent / "points.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return custom.read_csv(images, {"": path}, scheme)


def only_face(result):
    assert result.bad == []
    (face,) = result.faces
    return face


DECIMAL = "one/a b.png;15,5;20;45;21;30,0;35,25"


@pytest.mark.parametrize(
    "content",
    [
        f"{HEADER}\n{ROW}\n",
        f"\ufeff{HEADER}\r\n{ROW}\r\n",
        f"{HEADER}\r{ROW}\r",
        f"{HEADER}\n{ROW}".encode("utf-16"),
        f"{HEADER};\n{ROW};\n".replace(",", ";"),
        f"{HEADER}\n{DECIMAL}\n".replace("image,", "image;")
        .replace(",x", ";x")
        .replace(",y", ";y"),
        f"{HEADER}\n{ROW}\n".replace(",", "\t"),
        f"{HEADER}\n{ROW}\n".replace(",", "|"),
        f"sep=;\r\n{HEADER}\r\n{ROW}\r\n".replace(",", ";"),
        f"{HEADER.upper()}\n{ROW}\n",
        f" {HEADER} \n{ROW}\n".replace(",", ", "),
        f"image,left_x,left_y,right_x,right_y,tip_x,tip_y\n{ROW}\n",
        f"image,x left,y left,x-right,y-right,x.tip,y.tip\n{ROW}\n",
        f"image,x_0,y_0,x_1,y_1,x_2,y_2\n{ROW}\n",
        f"image,0_x,0_y,1_x,1_y,2_x,2_y\n{ROW}\n",
        f"image,x0,y0,x1,y1,x2,y2\n{ROW}\n",
        f",{HEADER}\n0,{ROW}\n",
        f"{HEADER},\n{ROW},\n",
        f"{HEADER},,\n{ROW}\n",
        f"{HEADER}\n{ROW},,,\n,,,,,,\n\n",
        f"# made by hand\n\n{HEADER}\n# a remark, with a comma\n{ROW}\n",
        f"# {HEADER}\n{ROW}\n",
        '"' + HEADER.replace(",", '","') + '"\n"' + ROW.replace(",", '","') + '"\n',
    ],
)
def test_csv_dialects_give_the_same_face(images, content):
    result = read(images, content)
    np.testing.assert_array_equal(only_face(result).landmarks, POINTS)
    assert result.notes == []


@pytest.mark.parametrize("mark", ["", "NA", "N/A", "nan", "NaN", "null", "None", "#N/A", "-"])
def test_not_available_cells_are_missing_points(images, mark):
    face = only_face(read(images, f"{HEADER}\n{ROW.replace('15.5,20', f'{mark},{mark}')}\n"))
    assert face.visible.tolist() == [False, True, True]


@pytest.mark.parametrize("place", [(0, 0), (-1, -1), ("0.0", "-0"), ("-1.00", "-1")])
def test_points_at_zero_or_minus_one_are_missing(images, place):
    result = read(images, f"{HEADER}\n{ROW.replace('15.5,20', '{},{}'.format(*place))}\n")
    assert only_face(result).visible.tolist() == [False, True, True]
    (note,) = result.notes
    assert "1 point at (" in note
    assert "treated as missing" in note


def test_other_columns_are_ignored_with_a_note(images):
    result = read(images, f"{HEADER},comment,Unnamed: 0\n{ROW},good,3\n")
    np.testing.assert_array_equal(only_face(result).landmarks, POINTS)
    assert result.notes == [
        f"{images.parent / 'points.csv'}: ignored columns: 'comment', 'Unnamed: 0'"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{HEADER},groop\n", "unknown column 'groop'; did you mean 'group'?"),
        (f"{HEADER}\n".replace("y_right", "y_rihgt"), "did you mean 'y_right'?"),
        (f"{HEADER},x_ear,y_ear\n", "three has no landmark 'ear' among its 3"),
        (f"{HEADER},ear_x,ear_y\n", "three has no landmark 'ear' among its 3"),
        ("image,x_1,y_1,x_2,y_2,x_3,y_3\n", "no landmark '3' among its 3, numbered from 0"),
        (f"{HEADER}\n".replace("image", "filename"), "rename 'filename'"),
        (f"{HEADER}\n".replace(",", " "), "separated by commas, semicolons or tabs"),
    ],
)
def test_wrong_headers_raise(images, content, message):
    with pytest.raises(InputError) as caught:
        read(images, content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rows",
    [
        f'{ROW},"oops\n{ROW},good\n{ROW},good\n',
        f'{ROW},"oops\n{ROW},"good"\n',
        f'{ROW},good\n{ROW},"good" or "not"\n',
    ],
)
def test_quote_that_is_not_closed_raises(images, rows):
    line = 2 if rows.startswith(f'{ROW},"') else 3
    with pytest.raises(InputError, match=rf"points\.csv: line {line}: .*; check its quotes"):
        read(images, f"{HEADER},note\n{rows}")


def test_dissimilar_column_names_are_not_suggested(images):
    with pytest.raises(InputError) as caught:
        read(images, f"{HEADER}\n".replace("image", "wholly different"))
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    "path", [r"one\a b.png", "./one/a b.png", "one/../one/a b.png", "../images/one/a b.png", "FULL"]
)
def test_image_path_variants_match(images, path):
    full = str(images / "one/a b.png")
    face = only_face(
        read(images, f"{HEADER}\n{ROW}\n".replace("one/a b.png", path.replace("FULL", full)))
    )
    assert face.image_path == images / "one/a b.png"
    assert face.group == "one/a b.png"


def test_image_folder_path_with_dots(images, monkeypatch):
    monkeypatch.chdir(images / "one")
    path = images.parent / "points.csv"
    path.write_text(f"{HEADER}\n{ROW}\n")
    src = custom.Path("../../images")
    assert only_face(custom.read_csv(src, {"": path}, SCHEME)).group == "one/a b.png"

import json
from pathlib import Path

import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.box_files import BoxFile
from lcgcn_jax.inference.sources import InputFile


def box_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return BoxFile(path)


def files(*paths, folder="."):
    return [InputFile(Path(folder) / path, Path(path).with_suffix("")) for path in paths]


def count_boxes(boxes, *paths, folder="."):
    """Number of boxes of each image; None for an image that is not in the file."""
    boxes.assign(files(*paths, folder=folder))
    counts = []
    for file in files(*paths, folder=folder):
        try:
            counts.append(len(boxes.of(file.path)))
        except InputError:
            counts.append(None)
    return counts


BOXES = {"photo.jpg": [[1, 2, 3.5, 4], [5, 6, 7, 8]], "party/photo.jpg": [[9, 9, 10, 10]]}
CSV = "image,x0,y0,x1,y1\nphoto.jpg,1,2,3.5,4\nparty/photo.jpg,9,9,10,10\nphoto.jpg,5,6,7,8\n"


@pytest.mark.parametrize(("name", "text"), [("b.json", json.dumps(BOXES)), ("b.csv", CSV)])
def test_images_are_matched_by_the_end_of_the_path(tmp_path, name, text):
    boxes = box_file(tmp_path, name, text)
    boxes.assign(files("photo.jpg", "party/photo.jpg", "other/photo.png", folder="/home/me"))
    assert boxes.of(Path("/home/me/photo.jpg")) == BOXES["photo.jpg"]
    assert boxes.of(Path("/home/me/party/photo.jpg")) == BOXES["party/photo.jpg"]
    assert boxes.unused == []
    with pytest.raises(InputError, match=rf"other/photo\.png: no face box in .*{name}"):
        boxes.of(Path("/home/me/other/photo.png"))


def test_ambiguous_name_is_an_error(tmp_path):
    boxes = box_file(tmp_path, "b.json", '{"p.jpg": [[1, 2, 3, 4]]}')
    with pytest.raises(InputError) as caught:
        boxes.assign(files("a/p.jpg", "b/p.jpg", folder="in"))
    assert str(caught.value) == (
        f"{tmp_path}/b.json: p.jpg is in/a/p.jpg or in/b/p.jpg; write more of its path"
    )


def test_exact_path_has_priority_over_the_end_of_a_path(tmp_path):
    boxes = box_file(tmp_path, "b.json", '{"p.jpg": [[1, 2, 3, 4]]}')
    assert count_boxes(boxes, "p.jpg", "a/p.jpg", folder="in") == [1, None]
    boxes = box_file(tmp_path, "b.json", '{"a/p.jpg": [[1, 2, 3, 4]], "p.jpg": []}')
    assert count_boxes(boxes, "b/p.jpg", "a/p.jpg", folder="in") == [0, 1]
    # Both paths end like this; the exact one is matched, and the other image has no box.
    boxes = box_file(tmp_path, "b.json", '{"a/p.jpg": [[1, 2, 3, 4]]}')
    assert count_boxes(boxes, "a/p.jpg", "a/a/p.jpg", folder="in") == [1, None]


ROWS = "a/p.jpg,1,2,3,4\nb/p.jpg,1,2,3,4\nb/p.jpg,5,6,7,8\n"


@pytest.mark.parametrize(
    "text",
    [
        "image,x0,y0,x1,y1\n" + ROWS,
        "image, x0, y0, x1, y1\n" + ROWS.replace(",", ", "),
        " Image ,X0,Y0,X1,Y1\n" + ROWS,
        "\ufeffimage,x0,y0,x1,y1\n" + ROWS,
        "image,x0,y0,x1,y1\r\n" + ROWS.replace("\n", "\r\n"),
        "\nimage,x0,y0,x1,y1\n\n" + ROWS + ",,,,\n",
        "image;x0;y0;x1;y1\n" + ROWS.replace(",", ";").replace(";1;", ";1,0;"),
        "image\tx0\ty0\tx1\ty1\n" + ROWS.replace(",", "\t"),
        "image,x0,y0,x1,y1\n" + ROWS.replace("/", "\\"),
        "image,x0,y0,x1,y1\n" + ROWS.replace("a/", "./a/").replace("b/", ".\\b\\"),
        'image,x0,y0,x1,y1\n"a/p.jpg","1","2","3","4"\n' + ROWS.partition("\n")[2],
        "score,y1,x1,y0,x0,image,\n" + "0,4,3,2,1,a/p.jpg,\n" + "0,4,3,2,1,b/p.jpg,\n" * 2,
        json.dumps({"a\\p.jpg": [[1, 2, 3, 4]], "./b/p.jpg": [[1, 2, 3, 4], [5, 6, 7, 8]]}),
        '{"a/p.jpg": [[1, 2, 3, 4]], "b/p.jpg": [[1, 2, 3, 4]], "b/p.jpg": [[5, 6, 7, 8]]}',
        '\ufeff {"a/p.jpg": [[1, 2, 3, 4]], "b/p.jpg": [[1, 2, 3, 4], [5, 6, 7, 8]]}',
    ],
)
def test_variants_of_box_files(tmp_path, monkeypatch, text):
    (tmp_path / "boxes.txt").write_text(text, encoding="utf-8", newline="")
    monkeypatch.chdir(tmp_path)
    boxes = BoxFile(Path("boxes.txt"))
    assert count_boxes(boxes, "a/p.jpg", "b/p.jpg", folder="in") == [1, 2]
    assert boxes.of(Path("in/a/p.jpg")) == [[1, 2, 3, 4]]
    assert boxes.unused == []


def test_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = f"image,x0,y0,x1,y1\n{tmp_path}/in/p.jpg,1,2,3,4\n/elsewhere/in/a/p.jpg,1,2,3,4\n"
    boxes = box_file(tmp_path, "b.csv", text)
    assert count_boxes(boxes, "p.jpg", "a/p.jpg", folder="in") == [1, None]
    assert boxes.unused == ["/elsewhere/in/a/p.jpg"]
    assert count_boxes(boxes, "p.jpg", folder="../" + tmp_path.name + "/in") == [1]


def test_image_without_a_face(tmp_path):
    boxes = box_file(tmp_path, "b.csv", "image,x0,y0,x1,y1\na.jpg,,,,\nb.jpg,1,2,3,4\n")
    assert count_boxes(boxes, "a.jpg", "b.jpg") == [0, 1]
    boxes = box_file(tmp_path, "b.json", '{"a.jpg": [], "b.jpg": [[1, 2, 3, 4]]}')
    assert count_boxes(boxes, "a.jpg", "b.jpg") == [0, 1]


def test_names_without_an_image_are_listed(tmp_path):
    boxes = box_file(tmp_path, "b.json", '{"a.jpg": [], "c.jpg": [], "x/a.jpg": []}')
    assert count_boxes(boxes, "a.jpg") == [0]
    assert boxes.unused == ["c.jpg", "x/a.jpg"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("b.json", "{", "Expecting property name"),
        ("b.json", "[[1, 2, 3, 4]]", "expected a JSON object from images to boxes"),
        ("b.json", '{"a.jpg": [1, 2, 3, 4]}', "'a.jpg' needs a list of boxes"),
        ("b.json", '{"a.jpg": [[1, 2, 3]]}', "'a.jpg' needs a list of boxes"),
        ("b.json", '{"a.jpg": [[1, 2, 3, true]]}', "'a.jpg' needs a list of boxes"),
        ("b.csv", "image,x0,y0,x1\na,1,2,3\n", "no column 'y1'"),
        ("b.csv", "image,x0,y0,x1,y1\na,1,2,3\n", "line 2 does not have four numbers"),
        ("b.csv", "image,x0,y0,x1,y1\na\n", "line 2 does not have four numbers"),
        ("b.csv", "image,x0,y0,x1,y1\na,,,\n", "line 2 does not have four numbers"),
        ("b.csv", "image,x0,y0,x1,y1\n,1,2,3,4\n", "line 2 does not name an image"),
        (
            "b.csv",
            "image,x0,y0,x1,y1\na,b.png,1,2,3,4\n",
            "line 2 has 6 cells, and the header has 5",
        ),
        ("b.csv", "x0,y0,x1,y1,score,image\n,,,,0.9\n", "line 2 does not name an image"),
        ("b.csv", "x0,y0,x1,y1,score,image\n1,2,3,4,a\n", "line 2 does not name an image"),
        ("b.csv", "x0,y0,x1,y1,image\n1,2,3,4\n", "line 2 does not name an image"),
        ("b.csv", "x0;y0;x1;y1;image\n1;2;3;4;a;b\n", "line 2 has 6 cells"),
        ("b.csv", "", "no column 'image'"),
        ("b.csv", "image,x0,y0,x1,y1,X0\na,1,2,3,4,5\n", "two columns are named 'x0'"),
        ("b.csv", "image,x0,y0,x1,y1\na,1,2,3_0,4\n", "line 2 does not have four numbers"),
        ("b.csv", 'image,x0,y0,x1,y1\n"a,1,2,3,4\nb,1,2,3,4\n', "unexpected end of data"),
    ],
)
def test_invalid_box_file_is_an_error(tmp_path, name, text, message):
    with pytest.raises(InputError) as caught:
        box_file(tmp_path, name, text)
    assert str(caught.value).startswith(f"{tmp_path / name}: not a file of face boxes: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", ["a.jpg,1,2,3,4", "a.jpg,1,2,3,4,", "a.jpg,1,2,3,4,0.9,,"])
def test_values_after_the_box_may_be_missing_or_empty(tmp_path, row):
    boxes = box_file(tmp_path, "b.csv", f"image,x0,y0,x1,y1,score\n{row}\n")
    assert count_boxes(boxes, "a.jpg") == [1]


def test_missing_box_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"boxes\.json: cannot be read: No such file"):
        BoxFile(tmp_path / "boxes.json")


@pytest.mark.parametrize(
    "header", ["image,x,y,width,height", "Image, X, Y, W, H", "height,image,x,y,width"]
)
def test_file_of_boxes_with_sizes(tmp_path, header):
    values = {"image": "a.jpg", "x": "1", "y": "2", "width": "30", "height": "40"} | {
        "w": "30",
        "h": "40",
    }
    row = ",".join(values[name.strip().lower()] for name in header.split(","))
    path = tmp_path / "b.csv"
    path.write_text(f"{header}\n{row}\n")
    boxes = BoxFile(path, "xywh")
    assert count_boxes(boxes, "a.jpg") == [1]
    assert boxes.of(Path("a.jpg")) == [[1, 2, 30, 40]]
    with pytest.raises(InputError, match=r"no column 'x0'.*or give --box-format xywh"):
        box_file(tmp_path, "c.csv", "image,x,y,width,height\na.jpg,1,2,30,40\n")


def test_other_encoding_is_an_error(tmp_path):
    path = tmp_path / "b.csv"
    path.write_text("image,x0,y0,x1,y1\n", encoding="utf-16")
    with pytest.raises(InputError, match="not a file of face boxes in UTF-8; save it as UTF-8"):
        BoxFile(path)

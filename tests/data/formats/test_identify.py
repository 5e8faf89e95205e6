import json

import pytest

from lcgcn_jax.data.formats import (
    custom,
    cvat,
    dlib,
    identify,
    identify_format,
    label_studio,
    labelme,
)
from lcgcn_jax.errors import InputError

COCO = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []}
LABELME = {"version": "5.4.1", "shapes": [], "imagePath": "a.jpg", "imageData": None}
TASK = {"id": 1, "data": {"image": "a.jpg"}, "annotations": []}
MINIMAL = {"id": 1, "image": "a.jpg", "points": [{"x": 1, "y": 2, "original_width": 9}]}
VIA = {"a.jpg123": {"filename": "a.jpg", "size": 123, "regions": [], "file_attributes": {}}}
CONTENT = {
    identify.CSV: ["image,x_left,y_left\na.jpg,1,2\n", "\ufeffimage,x_0\n", "image_name,scale\n"],
    identify.COCO: [json.dumps(COCO), "\n " + json.dumps(COCO, indent=1)],
    identify.DLIB: [
        "<?xml version='1.0' encoding='ISO-8859-1'?>\n<?xml-stylesheet type='text/xsl' href='x'?>\n"
        "<dataset><name>a</name><images></images></dataset>",
        "<!-- by hand --><dataset>\n<images><image file='a.jpg'>",
    ],
    identify.CVAT: [
        "<annotations><version>1.1</version><image id='0'/></annotations>",
        "<annotations><meta><task/></meta></annotations>",
    ],
    identify.CVAT_VIDEO: ["<annotations><version>1.1</version><track id='0'/></annotations>"],
    identify.PASCAL_VOC: ["<annotation><filename>a.jpg</filename></annotation>"],
    identify.LABEL_STUDIO: [json.dumps([TASK]), json.dumps([MINIMAL])],
    identify.LABELME: [json.dumps(LABELME)],
    identify.VIA: [json.dumps(VIA), json.dumps({"_via_settings": {}, "_via_img_metadata": VIA})],
    identify.VIA_CSV: ["filename,file_size,region_shape_attributes\n"],
    identify.YOLO: ["0 0.5 0.5 0.2 0.3\n1 0.1 0.2 0.3 0.4\n", "0 .5 .5 .2 .3 0.4 0.5 2 0.1 0.1 2"],
    identify.PTS: ["version: 1\nn_points: 68\n{\n1 2\n}\n", "n_points:  68\n{"],
    identify.WFLW: [" ".join(["1.5"] * 206) + " 0--Parade/a b.jpg\n"],
    identify.OTHER_JSON: ["{}", "[]", '{"images": [', "[" * 100_000],
    identify.OTHER_XML: ["<html><body/></html>", "<", "<dataset/>"],
    None: ["", "   \n", "hello", "1 2\n3 4\n", "\0\1\2"],
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in CONTENT.items() for text in texts]
)
def test_format_is_identified(tmp_path, name, text):
    path = tmp_path / "annotations"  # without a suffix: only the content counts
    path.write_text(text, encoding="utf-8")
    assert identify_format(path) == name


def test_binary_and_unreadable_files(tmp_path):
    (tmp_path / "utf16").write_text("<annotations><image/></annotations>", encoding="utf-16")
    assert identify_format(tmp_path / "utf16") == identify.CVAT
    (tmp_path / "zip").write_bytes(b"PK\x03\x04annotations.xml")
    assert identify_format(tmp_path / "zip") == identify.ZIP
    (tmp_path / "excel").write_bytes(b"PK\x03\x04[Content_Types].xml")
    assert identify_format(tmp_path / "excel") == identify.EXCEL
    assert identify_format(tmp_path) is None
    assert identify_format(tmp_path / "nothing") is None


READERS = {
    identify.CSV: custom.read_csv,
    identify.COCO: custom.read_coco,
    identify.CVAT: cvat.read,
    identify.DLIB: dlib.read,
    identify.LABEL_STUDIO: label_studio.read,
    identify.LABELME: labelme.read,
}


@pytest.mark.parametrize("expected", READERS)
@pytest.mark.parametrize("file_format", [name for name in CONTENT if name])
def test_readers_report_another_format_and_its_command(
    tmp_path, four_points, expected, file_format
):
    if expected == file_format or file_format in (identify.OTHER_JSON, identify.OTHER_XML):
        return
    path = tmp_path / "annotations"
    path.write_text(CONTENT[file_format][0], encoding="utf-8")
    with pytest.raises(InputError) as error:
        READERS[expected](tmp_path, {"": path}, four_points[0])
    message = str(error.value)
    assert message.startswith(f"{path}: the format is {file_format}, not {expected}; ")
    assert "\n" not in message
    if file_format in READERS:
        layout = READERS[file_format].__module__.rpartition(".")[2].replace("_", "-")
        layout = {identify.CSV: "csv", identify.COCO: "coco"}.get(file_format, layout)
        assert message.endswith(f"run 'lcgcn prepare {layout}' with the same options")


@pytest.mark.parametrize("expected", READERS)
@pytest.mark.parametrize("text", CONTENT[identify.OTHER_JSON] + CONTENT[identify.OTHER_XML])
def test_readers_reject_unknown_json_and_xml_in_one_line(tmp_path, four_points, expected, text):
    path = tmp_path / "annotations"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        READERS[expected](tmp_path, {"": path}, four_points[0])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)

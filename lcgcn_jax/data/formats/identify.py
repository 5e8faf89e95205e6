"""Identify the format of an annotation file from its content."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcgcn_jax.errors import InputError

CSV = "CSV"
COCO = "COCO keypoints JSON"
DLIB = "dlib XML (imglab)"
CVAT = "CVAT XML (for images)"
LABEL_STUDIO = "Label Studio JSON"
LABELME = "LabelMe JSON"
PTS = "points file of 300W or MERL-RAV (.pts)"
WFLW = "WFLW list"
CVAT_VIDEO = "CVAT XML (for video)"
PASCAL_VOC = "Pascal VOC XML"
VIA = "VIA (VGG Image Annotator) JSON"
VIA_CSV = "VIA (VGG Image Annotator) CSV"
YOLO = "YOLO labels"
EXCEL = "Excel workbook"
ZIP = "ZIP archive"
OTHER_JSON = "JSON"
OTHER_XML = "XML"

_COMMANDS = {
    CSV: "csv",
    COCO: "coco",
    DLIB: "dlib",
    CVAT: "cvat",
    LABEL_STUDIO: "label-studio",
    LABELME: "labelme",
}
"""Format -> layout of `lcgcn prepare` that reads it with the same options."""

_TO_CSV = "convert it to a CSV (columns: lcgcn prepare csv --help)"
_ADVICE = {
    PTS: "run 'lcgcn prepare 300w' or 'lcgcn prepare merl-rav' with --src FOLDER",
    WFLW: "run 'lcgcn prepare wflw' with --src FOLDER",
    CVAT_VIDEO: "export it from CVAT as 'CVAT for images 1.1'",
    PASCAL_VOC: "it has boxes and no landmarks; give a file with points",
    VIA: _TO_CSV,
    VIA_CSV: _TO_CSV,
    YOLO: _TO_CSV,
    EXCEL: "save the sheet as a CSV in UTF-8",
    ZIP: "unpack it, and give the annotation file in it",
    OTHER_JSON: "see lcgcn prepare --help for the formats",
    OTHER_XML: "see lcgcn prepare --help for the formats",
}

_HEAD_BYTES = 1 << 16
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_WFLW_FIELDS = 207


def identify_format(path: Path) -> str | None:
    """Identify the format of an annotation file.

    Args:
      path: the file. Only JSON files are read as a whole.

    Returns:
      The name of the format for messages; None if it is unknown or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return None
    if head.startswith(b"PK\x03\x04"):
        return EXCEL if b"xl/" in head or b"[Content_Types].xml" in head else ZIP
    encoding = next((e for mark, e in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), "utf-8")
    text = head.decode(encoding, errors="replace").lstrip("\ufeff \t\r\n")
    if text.startswith("<"):
        return _identify_xml(text)
    if text.startswith(("{", "[")):
        return _identify_json(path)
    return _identify_text(text)


def require_format(path: Path, expected: str) -> None:
    """Reject a file that is recognized as another format.

    Args:
      expected: the format that the caller reads, one of the names in this module.

    Raises:
      InputError: the file is of another format; the message names the command that reads it.
    """
    file_format = identify_format(path)
    if file_format is None or file_format == expected:
        return
    if file_format in (OTHER_JSON, OTHER_XML) and expected.split(" (")[0].endswith(file_format):
        return  # Damaged or unusual: the reader of `expected` reports what is missing.
    if layout := _COMMANDS.get(file_format):
        advice = f"run 'lcgcn prepare {layout}' with the same options"
    else:
        advice = _ADVICE[file_format]
    raise InputError(f"{path}: the format is {file_format}, not {expected}; {advice}")


def _identify_xml(text: str) -> str:
    """Identify an XML format from its first elements."""
    text = re.sub(r"<!--.*?-->|<\?.*?\?>", "", text, flags=re.DOTALL)
    root = re.search(r"<([A-Za-z_][\w.-]*)", text)
    elements = set(re.findall(r"<([A-Za-z_][\w.-]*)", text))
    match root and root[1]:
        case "dataset" if "images" in elements:
            return DLIB
        case "annotations" if "image" in elements:
            return CVAT
        case "annotations" if "track" in elements:
            return CVAT_VIDEO
        case "annotations" if elements & {"version", "meta"}:
            is_video = re.search(r"<mode>\s*interpolation", text)
            return CVAT_VIDEO if is_video else CVAT
        case "annotation" if elements & {"filename", "object", "bndbox"}:
            return PASCAL_VOC
    return OTHER_XML


def _identify_json(path: Path) -> str:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return OTHER_JSON
    return _identify_json_content(content)


def _identify_json_content(content: Any) -> str:
    if isinstance(content, Mapping):
        if "images" in content and "annotations" in content:
            return COCO
        if "shapes" in content and ("imagePath" in content or "imageData" in content):
            return LABELME
        if "_via_img_metadata" in content or {"project", "config", "file"} <= content.keys():
            return VIA
        records = list(content.values())
        if records and all(isinstance(r, Mapping) and "regions" in r for r in records):
            return VIA
        return OTHER_JSON
    if isinstance(content, list) and any(map(_is_label_studio_task, content)):
        return LABEL_STUDIO
    return OTHER_JSON


def _is_label_studio_task(task: Any) -> bool:
    if not isinstance(task, Mapping):
        return False
    if isinstance(task.get("data"), Mapping):
        return True
    # JSON-MIN has the regions of each control tag directly in the task.
    lists = [value for value in task.values() if isinstance(value, list)]
    return any(isinstance(item, Mapping) and "original_width" in item for v in lists for item in v)


def _identify_text(text: str) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    first = lines[0]
    if re.fullmatch(r"version\s*:\s*\d+|n_points\s*:\s*\d+", first, re.IGNORECASE):
        return PTS
    if "," in first:
        return VIA_CSV if "region_shape_attributes" in first else CSV
    fields = first.split()
    if len(fields) >= _WFLW_FIELDS and all(map(_is_number, fields[: _WFLW_FIELDS - 1])):
        return WFLW
    # The last line of the head may be truncated.
    rows = [line.split() for line in lines[: max(1, len(lines) - 1)]]
    return YOLO if all(map(_is_yolo_row, rows)) else None


def _is_yolo_row(fields: list[str]) -> bool:
    """Whether a line is a class number, a box in 0 to 1 and, optionally, keypoints."""
    if len(fields) < 5 or not fields[0].isdecimal() or not all(map(_is_number, fields)):
        return False
    return all(0 <= float(value) <= 1 for value in fields[1:5])


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) is not None

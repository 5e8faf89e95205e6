"""Reader of dlib's XML (imglab): images with boxes, and parts (points) of each box.

The coordinates of a part are those of a pixel, which counts from 0; they are used without an offset.
"""

import functools
import xml.etree.ElementTree as ET
from pathlib import Path

from lcgcn_jax.data.annotations import AnnotationList
from lcgcn_jax.data.formats import AnnotationPaths, each_file
from lcgcn_jax.data.formats.identify import DLIB, require_format
from lcgcn_jax.data.formats.image_paths import ImageFinder
from lcgcn_jax.data.formats.labeled_images import (
    LabeledBox,
    LabeledFile,
    LabeledImage,
    LabeledPoint,
    read_entries,
    to_annotations,
)
from lcgcn_jax.data.formats.parsing import parse_number, parse_size, read_xml
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import LandmarkScheme

_GROUPING = "a box has each part of one face once"


def read(
    src: Path, files: AnnotationPaths, scheme: LandmarkScheme, *, count_from: int | float = 0
) -> AnnotationList:
    """Read dlib XML files; every box with parts is a face.

    Parts are named as in the scheme, or by number (`00` to `67`). Boxes with `ignore='1'` and
    boxes without parts are skipped. Image paths are relative to the folder of the XML file or
    to `src`.

    The arguments are those of `custom.read_csv`.

    Raises:
      InputError: a file is not dlib XML, or its parts do not fit the scheme.
    """
    finder = ImageFinder(src)
    content = [(split, _read_file(path, finder)) for split, path in each_file(files)]
    return to_annotations(
        "dlib", content, finder, scheme, count_from=count_from, grouping=_GROUPING
    )


def _read_file(path: Path, finder: ImageFinder) -> LabeledFile:
    require_format(path, DLIB)
    root = read_xml(path)
    if root.tag != "dataset" or root.find("images") is None:
        raise InputError(f"{path}: not dlib XML: expected <dataset> with <images>")
    images = root.iterfind("images/image")
    entries = ((image.get("file", "an image without a file"), image) for image in images)
    return read_entries(
        path, entries, functools.partial(_read_image, finder=finder, folder=path.parent)
    )


def _read_image(
    image_name: str, image: ET.Element, *, finder: ImageFinder, folder: Path
) -> LabeledImage:
    points, boxes, num_skipped = [], [], 0
    for number, box in enumerate(image.iterfind("box")):
        parts = box.findall("part")
        if not parts or box.get("ignore") in ("1", "true"):
            num_skipped += 1
            continue
        left, top, width, height = (
            parse_number(box.get(side), f"{side} of a box")
            for side in ("left", "top", "width", "height")
        )
        boxes.append(LabeledBox((left, top, left + width, top + height), number))
        for part in parts:
            name = (part.get("name") or "").strip()
            x, y = (parse_number(part.get(axis), f"{axis} of the part {name!r}") for axis in "xy")
            points.append(LabeledPoint(name, (x, y), group=number))
    return LabeledImage(
        image_name,
        _find_image(image.get("file", ""), finder, folder),
        points,
        boxes,
        stated_size=parse_size(image.get("width"), image.get("height")),
        num_skipped_boxes=num_skipped,
    )


def _find_image(text: str, finder: ImageFinder, folder: Path) -> Path:
    try:
        return finder.find(text, relative_to=folder)
    except ValueError:
        # imglab declares ISO-8859-1, but writes the bytes of the file name, mostly UTF-8.
        try:
            repaired = text.encode("iso-8859-1").decode("utf-8")
        except UnicodeError:
            repaired = text
        if repaired == text:
            raise
        return finder.find(repaired, relative_to=folder)

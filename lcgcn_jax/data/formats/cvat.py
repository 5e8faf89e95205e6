"""Reader and writer of CVAT's XML ("CVAT for images 1.1"): skeletons and points.

CVAT shows images upright (EXIF orientation applied). By default, coordinates are used unchanged. CVAT draws
the corner of the first pixel at (0, 0), and this package has its center there: see `pre_annotations`.
"""

import functools
import json
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from lcgcn_jax.data.annotations import AnnotationList
from lcgcn_jax.data.formats import AnnotationPaths, each_file
from lcgcn_jax.data.formats.identify import CVAT, require_format
from lcgcn_jax.data.formats.image_paths import ImageFinder
from lcgcn_jax.data.formats.labeled_images import (
    LabeledBox,
    LabeledFile,
    LabeledImage,
    LabeledPoint,
    describe_ignored,
    read_entries,
    to_annotations,
)
from lcgcn_jax.data.formats.parsing import parse_number, parse_size, read_xml
from lcgcn_jax.data.formats.pre_annotations import (
    FACE,
    PredictedFace,
    PredictedImage,
    contour_edges,
)
from lcgcn_jax.data.raw_faces import UNSTATED
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import LandmarkScheme

_GROUPING = "in CVAT, draw a skeleton or a box per face, or group the points of a face (group_id)"
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""Subset of a CVAT project, in lower case -> split."""


def read(
    src: Path, files: AnnotationPaths, scheme: LandmarkScheme, *, count_from: int | float = 0
) -> AnnotationList:
    """Read CVAT XML files.

    A face is a skeleton, or the points (each with the label of a landmark) of an image or of one
    `group_id`, or one points shape with all landmarks in order. A box in the `group_id` of a single skeleton
    is its face box. A point with `outside` is missing.
    The subsets Train, Validation and Test of a project are splits, unless `files` states the split.

    The arguments are those of `custom.read_csv`.

    Raises:
      InputError: a file is not CVAT XML for images, or its labels do not fit the scheme.
    """
    finder = ImageFinder(src)
    content = [(split, _read_file(path, finder, scheme)) for split, path in each_file(files)]
    return to_annotations(
        "cvat", content, finder, scheme, count_from=count_from, grouping=_GROUPING
    )


def _read_file(path: Path, finder: ImageFinder, scheme: LandmarkScheme) -> LabeledFile:
    require_format(path, CVAT)
    root = read_xml(path)
    if root.tag != "annotations":
        raise InputError(f"{path}: not CVAT XML: expected <annotations> with <image>")
    images = root.iterfind("image")
    entries = ((image.get("name", "an image without a name"), image) for image in images)
    ignored: Counter[str] = Counter()
    read_image = functools.partial(_read_image, finder=finder, scheme=scheme, ignored=ignored)
    file = read_entries(path, entries, read_image)
    file.remarks += describe_ignored(ignored)
    return file


def _read_image(
    image_name: str,
    image: ET.Element,
    *,
    finder: ImageFinder,
    scheme: LandmarkScheme,
    ignored: Counter[str],
) -> LabeledImage:
    points, boxes = [], []
    num_skeletons = Counter(shape.get("group_id", "0") for shape in image.iterfind("skeleton"))
    for number, shape in enumerate(image):
        group_id = shape.get("group_id", "0")
        group = None if group_id == "0" else ("group", group_id)
        match shape.tag:
            case "skeleton":
                # A box in the same group is the face box, unless the group has several faces.
                is_alone = group is not None and num_skeletons[group_id] == 1
                face = group if is_alone else ("skeleton", number)
                for element in shape.iterfind("points"):
                    points += _read_points(element, face, scheme)
            case "points":
                points += _read_points(shape, group, scheme, face=("points", number))
            case "box":
                x0, y0, x1, y1 = (
                    parse_number(shape.get(side), f"{side} of a box")
                    for side in ("xtl", "ytl", "xbr", "ybr")
                )
                boxes.append(LabeledBox((x0, y0, x1, y1), group))
            case "polyline":
                ignored[shape.tag] += 1
    return LabeledImage(
        image_name,
        finder.find(image.get("name", "")),
        points,
        boxes,
        stated_size=parse_size(image.get("width"), image.get("height")),
        split=_SPLITS.get(image.get("subset", "").lower(), UNSTATED),
    )


def _read_points(
    shape: ET.Element, group: tuple | None, scheme: LandmarkScheme, face: tuple | None = None
) -> Iterator[LabeledPoint]:
    """Read a points element.

    Args:
      group: the face that it belongs to, if stated.
      face: the group of the points if the element has all points of a face.
    """
    label = shape.get("label", "").strip()
    is_occluded = shape.get("occluded") == "1" if "occluded" in shape.attrib else None
    if shape.get("outside") == "1":
        yield LabeledPoint(label, None, is_occluded, group)
        return
    pairs = [pair.split(",") for pair in shape.get("points", "").split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"the points {shape.get('points')!r} of {label!r} are not x,y;x,y;...")
    what = f"a coordinate of {label!r}"
    xys = [(parse_number(x, what), parse_number(y, what)) for x, y in pairs]
    if len(xys) == 1:
        yield LabeledPoint(label, xys[0], is_occluded, group)
    elif len(xys) == scheme.num_landmarks and face is not None:
        for name, xy in zip(scheme.names, xys, strict=True):
            yield LabeledPoint(name, xy, is_occluded, group or face)
    else:
        raise ValueError(
            f"{len(xys)} points in one shape {label!r}; a shape has one landmark, or all "
            f"{scheme.num_landmarks} of {scheme.name} in order"
        )


def format_xml(images: Sequence[PredictedImage], scheme: LandmarkScheme) -> str:
    """Format CVAT XML with a skeleton `face` per face, for upload as annotations of a task.

    The task needs the labels of `format_labels`. The face box is left out, since CVAT shows the box around
    the points. A landmark without a location is `outside`, in the middle of the box.

    Args:
      images: the images; those without faces are listed, too.
    """
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    for number, image in enumerate(images):
        size = {"width": str(image.width), "height": str(image.height)}
        element = ET.SubElement(root, "image", {"id": str(number), "name": image.name, **size})
        for face in image.faces:
            _add_skeleton(element, face, scheme)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True).decode() + "\n"


def _add_skeleton(image: ET.Element, face: PredictedFace, scheme: LandmarkScheme) -> None:
    skeleton = ET.SubElement(image, "skeleton", label=FACE, source="auto", z_order="0")
    points = np.where(face.located[:, None], face.landmarks, (face.box[:2] + face.box[2:]) / 2)
    for i, (name, (x, y)) in enumerate(zip(scheme.names, points, strict=True)):
        is_occluded = face.is_occluded is not None and face.is_occluded[i]
        ET.SubElement(
            skeleton,
            "points",
            label=name,
            source="auto",
            outside=str(int(not face.located[i])),
            occluded=str(int(is_occluded)),
            points=f"{x:.3f},{y:.3f}",
        )


def format_labels(images: Sequence[PredictedImage], scheme: LandmarkScheme) -> str:
    """Format the labels of a task or project as JSON, for the tab "Raw" of CVAT's label constructor.

    A new skeleton has the mean shape of the predicted faces, and lines along the contours of the scheme.
    """
    shape = _template(images, scheme.num_landmarks)
    lines = [
        f'<line x1="{shape[i, 0]:.2f}" y1="{shape[i, 1]:.2f}" x2="{shape[j, 0]:.2f}" '
        f'y2="{shape[j, 1]:.2f}" data-type="edge" data-node-from="{i + 1}" data-node-to="{j + 1}"></line>'
        for i, j in contour_edges(scheme)
    ]
    circles = [
        f'<circle r="0.75" cx="{x:.2f}" cy="{y:.2f}" data-type="element node" '
        f'data-element-id="{n}" data-node-id="{n}" data-label-name={quoteattr(name)}></circle>'
        for n, (name, (x, y)) in enumerate(zip(scheme.names, shape, strict=True), start=1)
    ]
    label = {
        "name": FACE,
        "type": "skeleton",
        "attributes": [],
        "sublabels": [{"name": name, "type": "points", "attributes": []} for name in scheme.names],
        "svg": "".join(lines + circles),
    }
    return json.dumps([label], indent=1, ensure_ascii=False) + "\n"


def _template(images: Sequence[PredictedImage], num_landmarks: int) -> np.ndarray:
    """Mean shape `[k 2]` in 10..90, the drawing area of the label constructor; a circle without faces."""
    shapes = []
    for face in (face for image in images for face in image.faces if face.located.all()):
        low, high = face.landmarks.min(axis=0), face.landmarks.max(axis=0)
        shapes.append((face.landmarks - (low + high) / 2) / max(float((high - low).max()), 1e-6))
    if not shapes:
        angle = np.linspace(0, 2 * np.pi, num_landmarks, endpoint=False)
        shapes = [0.5 * np.column_stack([np.cos(angle), np.sin(angle)])]
    return 50 + 80 * np.mean(shapes, axis=0)

"""Reader of Label Studio's JSON and JSON-MIN exports, and writer of predictions: key points in percent.

Label Studio shows images upright (EXIF orientation applied); 0 and 100 percent are the borders of the
image. By default, coordinates are multiplied by the image size and used as pixels that count from 0, as in
the COCO export of Label Studio; see `pre_annotations` for the half pixel between border and center.
`image_rotation` is the view of the annotator and does not affect coordinates.
"""

import base64
import binascii
import cmath
import functools
import json
import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.sax.saxutils import quoteattr

import numpy as np

from lcgcn_jax.data.annotations import AnnotationList
from lcgcn_jax.data.formats import AnnotationPaths, each_file
from lcgcn_jax.data.formats.identify import LABEL_STUDIO, require_format
from lcgcn_jax.data.formats.image_paths import ImageFinder
from lcgcn_jax.data.formats.labeled_images import (
    LabeledBox,
    LabeledFile,
    LabeledImage,
    LabeledPoint,
    read_entries,
    to_annotations,
)
from lcgcn_jax.data.formats.parsing import parse_number, parse_size, read_json
from lcgcn_jax.data.formats.pre_annotations import FACE, PredictedFace, PredictedImage
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import LandmarkScheme

_GROUPING = "in Label Studio, draw a box per face, and make its key points the children of the box"
_LABEL_KEYS = ("keypointlabels", "labels")
_IMAGE_SUFFIX = re.compile(r"\.(jpe?g|jfif|png|bmp|webp|tiff?|avif|hei[cf])$", re.IGNORECASE)
# Tags of the config.
_IMAGE, _BOXES, _POINTS, _VISIBILITY = "image", "faces", "landmarks", "visibility"
_CHOICES = ("visible", "occluded")
_POINT_WIDTH = 0.4  # percent of the image
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")


def read(
    src: Path, files: AnnotationPaths, scheme: LandmarkScheme, *, count_from: int | float = 0
) -> AnnotationList:
    """Read Label Studio exports.

    The key points of a task are one face. With several faces, each face is a region (a box) whose
    children are its key points. In JSON-MIN, which has no children, it is a box around its key points.

    A file of predictions, in which no task has annotations, is read with a note. In an export, predictions
    that nobody submitted are ignored.

    The arguments are those of `custom.read_csv`.

    Raises:
      InputError: a file is not a Label Studio export, or its labels do not fit the scheme.
    """
    finder = image_finder(src)
    content = [(split, _read_file(path, finder)) for split, path in each_file(files)]
    return to_annotations(
        "label-studio", content, finder, scheme, count_from=count_from, grouping=_GROUPING
    )


def _read_file(path: Path, finder: ImageFinder) -> LabeledFile:
    require_format(path, LABEL_STUDIO)
    tasks = read_json(path)
    if not isinstance(tasks, list):
        raise InputError(f"{path}: not a Label Studio export: expected a list of tasks")
    is_prediction = _are_predictions(tasks)
    if is_prediction:
        tasks = [task | {"annotations": task.get("predictions")} for task in tasks]
    entries = ((f"task {_task_name(task, n)}", task) for n, task in enumerate(tasks, start=1))
    file = read_entries(path, entries, functools.partial(_read_task, finder=finder, seen=set()))
    if is_prediction:
        file.remarks.append("no task has annotations; read the predictions, which nobody corrected")
    return file


def _are_predictions(tasks: Sequence[Any]) -> bool:
    """Whether a file is for import: tasks with predictions, and none with a list of annotations."""
    keys = [task.keys() if isinstance(task, Mapping) else set() for task in tasks]
    is_import = all("data" in k and not k & {"annotations", "completions"} for k in keys)
    return is_import and any("predictions" in k for k in keys)


def _task_name(task: Any, number: int) -> str:
    return str(task["id"]) if isinstance(task, Mapping) and "id" in task else f"number {number}"


def _read_task(
    task_name: str, task: Any, *, finder: ImageFinder, seen: set[tuple[str, Path]]
) -> LabeledImage:
    if not isinstance(task, Mapping):
        raise ValueError("not a task of Label Studio")
    data = task.get("data")
    is_minimal = not isinstance(data, Mapping)
    results = list(_minimal_results(task)) if is_minimal else _chosen_results(task)
    points, boxes, sizes = [], [], set()
    for region in _regions(results):
        value = region.get("value")
        if not isinstance(value, Mapping) or "x" not in value or "y" not in value:
            continue
        size = parse_size(region.get("original_width"), region.get("original_height"))
        if size is None:
            raise ValueError("a region has no original_width and original_height")
        if {"width", "height"} <= value.keys():
            boxes.append((str(region.get("id")), _box_corners(value, size)))
        elif "radiusX" not in value:  # not an ellipse
            xy = tuple(parse_number(value[axis], axis) / 100 for axis in "xy")
            xy = (xy[0] * size[0], xy[1] * size[1])
            if not np.isfinite(xy).all():
                raise ValueError("a coordinate is too large")
            parent = region.get("parentID")
            group = None if parent is None else str(parent)
            points.append(LabeledPoint(_label(value), xy, _is_occluded(value), group))
        else:
            continue
        sizes.add(size)
    if len(sizes) > 1:
        first, second, *_ = sorted(sizes)
        raise ValueError(f"the image is {first[0]} x {first[1]} and {second[0]} x {second[1]}")
    image_path = _find_image(task if is_minimal else data, task, finder)
    # JSON-MIN has an entry for each annotation of a task.
    if (key := (str(task.get("id", task_name)), image_path)) in seen:
        raise ValueError("another annotation of this task; keep one of them")
    seen.add(key)
    parents: set[Hashable] = {point.group for point in points} - {None}
    return LabeledImage(
        task_name,
        image_path,
        points,
        [LabeledBox(corners, name if name in parents else None) for name, corners in boxes],
        stated_size=next(iter(sizes), None),
    )


def _chosen_results(task: Mapping[str, Any]) -> Sequence[Any]:
    """Regions of the only annotation of a task; empty if the task was skipped."""
    annotations = task.get("annotations", task.get("completions")) or []
    if not isinstance(annotations, list) or not all(isinstance(a, Mapping) for a in annotations):
        raise ValueError("its annotations are not a list")
    done = [a for a in annotations if not a.get("was_cancelled")]
    if len(done) > 1:
        done = [a for a in done if a.get("ground_truth")] or done
    if len(done) > 1:
        raise ValueError(
            f"{len(done)} annotations of one task; keep one of them, or mark it as ground truth"
        )
    results = done[0].get("result") if done else []
    if not isinstance(results, list):
        raise ValueError("its result is not a list")
    return results


def _minimal_results(task: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Convert the regions of a JSON-MIN task to the form of the full JSON."""
    for values in task.values():
        if isinstance(values, list):
            for value in values:
                if isinstance(value, Mapping) and "original_width" in value:
                    size = {key: value[key] for key in value if key.startswith("original_")}
                    yield {"value": value, **size}


def _regions(results: Sequence[Any]) -> list[dict[str, Any]]:
    """Merge results with the same id: the label of a region may be separate from its shape."""
    regions: dict[Hashable, dict[str, Any]] = {}
    for number, result in enumerate(results):
        if not isinstance(result, Mapping):
            raise ValueError("a result is not an object")
        name = result.get("id")
        region = regions.setdefault(name if isinstance(name, str) else number, {})
        value = region.get("value", {})
        if isinstance(result.get("value"), Mapping):
            value = value | result["value"]
        region |= {key: v for key, v in result.items() if v is not None} | {"value": value}
    return list(regions.values())


def _label(value: Mapping[str, Any]) -> str:
    labels = next((value[key] for key in _LABEL_KEYS if value.get(key)), [])
    labels = labels if isinstance(labels, list) else [labels]
    if len(labels) != 1:
        raise ValueError(f"a key point has {len(labels)} labels, expected one")
    return str(labels[0]).strip()


def _is_occluded(value: Mapping[str, Any]) -> bool | None:
    """Whether a per-region choice marks the point as occluded; None without choices."""
    choices = value.get("choices")
    if not isinstance(choices, list):
        return None
    return "occluded" in (str(choice).lower() for choice in choices)


def _box_corners(
    value: Mapping[str, Any], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Corners in pixels of the upright box around a rectangle, which may be rotated about (x, y)."""
    x, y, width, height = (
        parse_number(value[key], f"{key} of a box") / 100 * side
        for key, side in zip(("x", "y", "width", "height"), size * 2, strict=True)
    )
    rotation = cmath.rect(1, math.radians(parse_number(value.get("rotation") or 0, "rotation")))
    corners = [
        complex(x, y) + rotation * corner for corner in (0, width, 1j * height, width + 1j * height)
    ]
    xs, ys = [c.real for c in corners], [c.imag for c in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _find_image(data: Mapping[str, Any], task: Mapping[str, Any], finder: ImageFinder) -> Path:
    location = _image_location(data)
    if location.startswith("data:"):
        raise ValueError("the image is embedded in the task; give image files")
    path = _path_of_location(location)
    upload = task.get("file_upload")
    return finder.find(path, names=[str(upload)] if upload else [])


def _image_location(data: Mapping[str, Any]) -> str:
    if isinstance(data.get("image"), str):
        return data["image"]
    texts = [value for value in data.values() if isinstance(value, str)]
    images = [text for text in texts if _IMAGE_SUFFIX.search(_path_of_location(text))]
    if len(images) != 1:
        raise ValueError(f"{len(images)} fields of its data are images, expected one named 'image'")
    return images[0]


def _path_of_location(location: str) -> str:
    """Path in a URL, such as `a/b.jpg` in `/data/local-files/?d=a/b.jpg` and `s3://bucket/a/b.jpg`."""
    path, _, query = location.partition("?")
    parts = (part.partition("=") for part in query.split("&"))
    parameters = {key: value for key, _, value in parts}
    if path.rstrip("/").endswith("local-files") and parameters.get("d"):
        return unquote(parameters["d"])
    if parameters.get("fileuri"):
        try:
            return _path_of_location(base64.b64decode(unquote(parameters["fileuri"])).decode())
        except (binascii.Error, UnicodeDecodeError):
            return location
    # A single letter before the colon is a Windows drive.
    return re.sub(r"^[A-Za-z][\w+.-]+://[^/]*", "", path)


def image_finder(src: Path) -> ImageFinder:
    """Image finder that also matches the names that Label Studio gives to uploaded files."""
    return ImageFinder(
        src, stored_name=_stored_name, original_name=lambda name: _UPLOAD_PREFIX.sub("", name)
    )


def _stored_name(name: str) -> str:
    """Name that Label Studio (Django) gives to an uploaded file."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def format_tasks(images: Sequence[PredictedImage], scheme: LandmarkScheme) -> str:
    """Format tasks with predictions, for import into a project with the config of `format_config`.

    A face is a box whose children are its key points. Images are referenced by local storage, as
    `/data/local-files/?d=FOLDER/NAME` with the folder of the images. Label Studio rejects locations outside
    the image: they are moved to its border. The choice `visible` or `occluded` of a key point is left out if
    it is unknown.

    Args:
      images: the images; those without faces are listed, too.
    """
    tasks = []
    for image in images:
        location = quote(f"{image.folder}/{image.name}" if image.folder else image.name)
        result = [
            region
            for number, face in enumerate(image.faces, start=1)
            for region in _predicted_regions(image, face, f"face{number}", scheme)
        ]
        scores = [face.score for face in image.faces if face.score is not None]
        prediction: dict[str, Any] = {"model_version": "lcgcn_jax", "result": result}
        if scores:
            prediction["score"] = round(min(scores), 4)
        tasks.append(
            {"data": {_IMAGE: f"/data/local-files/?d={location}"}, "predictions": [prediction]}
        )
    return json.dumps(tasks, ensure_ascii=False) + "\n"


def _predicted_regions(
    image: PredictedImage, face: PredictedFace, name: str, scheme: LandmarkScheme
) -> Iterator[dict[str, Any]]:
    size = np.array([image.width, image.height])
    fields: dict[str, Any] = {"to_name": _IMAGE, "image_rotation": 0}
    fields |= {"original_width": image.width, "original_height": image.height}

    def percent(points: np.ndarray) -> list[list[float]]:
        return np.round(np.clip(points / size * 100, 0, 100), 6).tolist()

    (x0, y0), (x1, y1) = percent(face.box.reshape(2, 2))
    box: dict[str, Any] = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rotation": 0}
    yield fields | {
        "id": name,
        "from_name": _BOXES,
        "type": "rectanglelabels",
        "value": box | {"rectanglelabels": [FACE]},
    }
    locations = percent(np.nan_to_num(face.landmarks))
    for i, (x, y) in enumerate(locations):
        if not face.located[i]:
            continue
        point = fields | {"id": f"{name}-{i}", "parentID": name}
        value: dict[str, Any] = {"x": x, "y": y, "width": _POINT_WIDTH}
        label = {_LABEL_KEYS[0]: [scheme.names[i]]}
        yield point | {"from_name": _POINTS, "type": "keypointlabels", "value": value | label}
        if face.is_occluded is not None:
            choice = {"choices": [_CHOICES[int(face.is_occluded[i])]]}
            yield point | {"from_name": _VISIBILITY, "type": "choices", "value": value | choice}


def format_config(scheme: LandmarkScheme) -> str:
    """Format the labeling config of a project: boxes, key points, and the visibility of a key point."""
    labels = "\n".join(
        f'    <Label value={quoteattr(name)} model_index="{i}"/>'
        for i, name in enumerate(scheme.names)
    )
    choices = "\n".join(f'    <Choice value="{choice}"/>' for choice in _CHOICES)
    return f"""\
<View>
  <Image name="{_IMAGE}" value="${_IMAGE}" zoom="true" zoomControl="true"/>
  <RectangleLabels name="{_BOXES}" toName="{_IMAGE}">
    <Label value="{FACE}"/>
  </RectangleLabels>
  <KeyPointLabels name="{_POINTS}" toName="{_IMAGE}" strokeWidth="2" opacity="1">
{labels}
  </KeyPointLabels>
  <Choices name="{_VISIBILITY}" toName="{_IMAGE}" perRegion="true" whenTagName="{_POINTS}">
{choices}
  </Choices>
</View>
"""

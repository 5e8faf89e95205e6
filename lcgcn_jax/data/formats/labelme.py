"""Reader of LabelMe's JSON, one file per image: point shapes.

LabelMe shows images upright (EXIF orientation applied). By default, coordinates are used unchanged: pixels
that count from 0. LabelMe has the corner of the first pixel at (0, 0): see `pre_annotations`.
"""

import glob
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcgcn_jax.data.annotations import AnnotationList, BadRecord, is_system_file
from lcgcn_jax.data.formats import AnnotationPaths
from lcgcn_jax.data.formats.identify import LABELME, require_format
from lcgcn_jax.data.formats.image_paths import ImageFinder
from lcgcn_jax.data.formats.labeled_images import (
    LabeledBox,
    LabeledFile,
    LabeledImage,
    LabeledPoint,
    describe_ignored,
    to_annotations,
)
from lcgcn_jax.data.formats.parsing import parse_number, parse_size, read_json
from lcgcn_jax.errors import InputError
from lcgcn_jax.folders import files_below
from lcgcn_jax.landmarks import LandmarkScheme

_GROUPING = "in LabelMe, give all points of a face the same group_id, and each face another one"


def read(
    src: Path,
    files: AnnotationPaths,
    scheme: LandmarkScheme,
    *,
    count_from: int | float = 0,
) -> AnnotationList:
    """Read LabelMe files.

    The point shapes of a file are one face, or one face per `group_id`. A rectangle of the same group is
    its box. A point with the flag `occluded` is occluded. The flags of an image are attributes of its
    faces.

    Args:
      src: the folder of the images.
      files: by split, a JSON file, a folder of them, a pattern such as `labels/*.json`, or several
        of these.
      count_from: coordinate of the center of the first pixel: 0, 1, or 0.5 if its corner is at 0.

    Raises:
      InputError: a file is not LabelMe JSON, or its labels do not fit the scheme.
    """
    finder = ImageFinder(src)
    flags: set[str] = set()
    content = [
        (split, _read_files([paths] if isinstance(paths, Path) else paths, finder, flags))
        for split, paths in files.items()
    ]
    return to_annotations(
        "labelme",
        content,
        finder,
        scheme,
        count_from=count_from,
        grouping=_GROUPING,
        attribute_names=sorted(flags),
    )


def _read_files(paths: Sequence[Path], finder: ImageFinder, flags: set[str]) -> LabeledFile:
    """Read all files of a split as one; a file that is not LabelMe JSON is listed as bad."""
    content = LabeledFile(paths[0])
    files = list(dict.fromkeys(file for path in paths for file in _json_files(path)))
    ignored: Counter[str] = Counter()
    for path in files:
        try:
            content.images.append(_read_image(path, finder, flags, ignored))
        except InputError as error:
            if len(files) == 1:
                raise
            content.bad.append(BadRecord(path.name, str(error).removeprefix(f"{path}: ")))
        except ValueError as error:
            content.bad.append(BadRecord(path.name, str(error)))
    content.remarks += describe_ignored(ignored)
    return content


def _json_files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        paths = [
            file
            for file in files_below(path)
            if file.suffix.lower() == ".json" and not is_system_file(file.name)
        ]
    elif glob.has_magic(str(path)) and not path.exists():
        paths = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    else:
        paths = [path]
    if not paths:
        raise InputError(f"{path}: no JSON files here; give a LabelMe file, or a folder of them")
    yield from paths


def _read_image(
    path: Path, finder: ImageFinder, flags: set[str], ignored: Counter[str]
) -> LabeledImage:
    require_format(path, LABELME)
    content = read_json(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("shapes"), list):
        raise InputError(f"{path}: not LabelMe JSON: expected 'shapes' and 'imagePath'")
    points, boxes = [], []
    for shape in content["shapes"]:
        if not isinstance(shape, Mapping):
            raise ValueError("a shape is not an object")
        label, group = str(shape.get("label", "")).strip(), shape.get("group_id")
        group = None if group is None else str(group)
        match shape.get("shape_type"):
            case "point":
                (xy,) = _vertices(shape, label, count=1)
                points.append(LabeledPoint(label, xy, _is_occluded(shape), group))
            case "rectangle":
                xs, ys = zip(*_vertices(shape, label), strict=True)
                boxes.append(LabeledBox((min(xs), min(ys), max(xs), max(ys)), group))
            case "line" | "linestrip" as kind:
                ignored[kind] += 1
    image_flags = content.get("flags")
    image_flags = image_flags if isinstance(image_flags, Mapping) else {}
    image = LabeledImage(
        path.name,
        finder.find(str(content.get("imagePath") or ""), relative_to=path.parent),
        points,
        boxes,
        stated_size=parse_size(content.get("imageWidth"), content.get("imageHeight")),
        flags=frozenset(str(name) for name, is_set in image_flags.items() if is_set is True),
    )
    flags.update(map(str, image_flags))
    return image


def _vertices(
    shape: Mapping[str, Any], label: str, count: int | None = None
) -> list[tuple[float, float]]:
    vertices = shape.get("points")
    if (
        not isinstance(vertices, list)
        or not vertices
        or any(not isinstance(vertex, list) or len(vertex) != 2 for vertex in vertices)
    ):
        raise ValueError(f"the points of {label!r} are not a list of x and y")
    if count is not None and len(vertices) != count:
        raise ValueError(f"the point {label!r} has {len(vertices)} locations, expected {count}")
    what = f"a coordinate of {label!r}"
    return [(parse_number(x, what), parse_number(y, what)) for x, y in vertices]


def _is_occluded(shape: Mapping[str, Any]) -> bool | None:
    flags = shape.get("flags")
    flag = flags.get("occluded") if isinstance(flags, Mapping) else None
    return flag if isinstance(flag, bool) else None

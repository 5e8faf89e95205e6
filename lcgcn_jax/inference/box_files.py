"""Files of face boxes, an input of `lcgcn predict`."""

import collections
import csv
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from lcgcn_jax.data.formats.parsing import to_float
from lcgcn_jax.errors import InputError, count_of, one_line
from lcgcn_jax.inference.sources import InputFile

BOX_COLUMNS = {
    "xyxy": ["image", "x0", "y0", "x1", "y1"],
    "xywh": ["image", "x", "y", "width", "height"],
}
"""Box format -> columns of a CSV file of face boxes."""

_SHORT_COLUMNS = {"w": "width", "h": "height"}


class BoxFile:
    """Face boxes by image, read from a file.

    JSON: `{"photo.jpg": [[x0, y0, x1, y1], ...], ...}`, with an empty list for an image without a face. CSV
    with commas, semicolons or tabs: a header `image,x0,y0,x1,y1` and one row per face, or a row with four
    empty cells for an image without a face. With the format `xywh`, the numbers are x, y, width and height,
    and the header is `image,x,y,width,height`. An image is named by its path as on the command line, relative
    to its folder or absolute, or by the end of its path if only one image has this end.
    """

    def __init__(self, path: Path, box_format: str = "xyxy"):
        """Read the file.

        Args:
          box_format: format of its boxes, one of `geometry.BOX_FORMATS`.

        Raises:
          InputError: the file cannot be read, or has another format.
        """
        self._path = path
        try:
            text = path.read_text(encoding="utf-8-sig")
            is_json = path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "["))
            boxes = _json_boxes(text) if is_json else _csv_boxes(text, box_format)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: not a file of face boxes in UTF-8; save it as UTF-8"
            ) from error
        except (ValueError, OverflowError, RecursionError, csv.Error) as error:
            raise InputError(
                f"{path}: not a file of face boxes: {one_line(error)}; see lcgcn predict --help"
            ) from error
        self._boxes: dict[tuple[str, ...], list[list[float]]] = {}
        self._names: dict[tuple[str, ...], str] = {}
        for name, image_boxes in boxes:
            parts = _parts(name)
            self._boxes.setdefault(parts, []).extend(image_boxes)
            self._names.setdefault(parts, name)
        self._boxes_of_images: dict[Path, list[list[float]]] = {}
        self.unused: list[str] = list(self._names.values())

    def assign(self, images: Iterable[InputFile]) -> None:
        """Match the names in the file to images; `unused` lists the names without an image.

        Raises:
          InputError: a name matches several images.
        """
        files = list(images)
        by_end: dict[tuple[str, ...], list[InputFile]] = collections.defaultdict(list)
        exact: dict[tuple[str, ...], list[InputFile]] = collections.defaultdict(list)
        for file in files:
            full = _parts(os.path.abspath(file.path))
            for i in range(1, len(full)):
                by_end[full[i:]].append(file)
            for parts in {full, _parts(file.path), _parts(file.path_in_folder)}:
                exact[parts].append(file)
        self._boxes_of_images = {}
        unused = set(self._boxes)
        # Specific names come first: exact paths, then long ends of paths.
        for parts in sorted(self._boxes, key=lambda p: (p not in exact, -len(p))):
            matches = exact.get(parts)
            if matches is None:
                matches = [
                    file for file in by_end.get(parts, []) if file.path not in self._boxes_of_images
                ]
            if len(matches) > 1:
                first, second = (str(file.path) for file in matches[:2])
                raise InputError(
                    f"{self._path}: {self._names[parts]} is {first} or {second}; write more of its path"
                )
            if matches:
                self._boxes_of_images.setdefault(matches[0].path, []).extend(self._boxes[parts])
                unused.remove(parts)
        self.unused = [name for parts, name in self._names.items() if parts in unused]

    def describe_unused(self) -> str:
        """One line about the names that are not among the images; empty if there are none."""
        if not self.unused:
            return ""
        names = ", ".join(self.unused[:5]) + (", ..." if len(self.unused) > 5 else "")
        return f"{self._path}: {count_of(len(self.unused), 'name')} without an input: {names}"

    def of(self, image: Path) -> list[list[float]]:
        """Boxes of an image, after `assign`.

        Raises:
          InputError: the file has no entry for the image.
        """
        if image not in self._boxes_of_images:
            raise InputError(f"{image}: no face box in {self._path}")
        return self._boxes_of_images[image]


def _parts(path: str | Path) -> tuple[str, ...]:
    """Parts of a path of any operating system, without `.`; the root is a part."""
    parts = PurePosixPath(str(path).strip().replace("\\", "/")).parts
    return tuple(part for part in parts if part != ".")


def _json_boxes(text: str) -> list[tuple[str, list[list[float]]]]:
    # Pairs, since a dictionary would keep only the last entry of a repeated name.
    content = json.loads(text, object_pairs_hook=_Pairs)
    if not isinstance(content, _Pairs):
        raise ValueError("expected a JSON object from images to boxes")
    for name, boxes in content:
        if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
            raise ValueError(f"{name!r} needs a list of boxes of four numbers each")
    return [(name, [[float(value) for value in box] for box in boxes]) for name, boxes in content]


class _Pairs(list):
    """Names and values of a JSON object, in order."""


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in box)
    )


def _csv_boxes(text: str, box_format: str) -> list[tuple[str, list[list[float]]]]:
    names = BOX_COLUMNS[box_format]
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    columns: list[str] | None = None
    boxes = []
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if columns is None:
            columns = [cell.strip().lower() for cell in row]
            if box_format == "xywh":
                columns = [_SHORT_COLUMNS.get(name, name) for name in columns]
            if missing := [name for name in names if name not in columns]:
                raise ValueError(_missing_column(missing[0], columns, box_format))
            if repeated := [name for name in names if columns.count(name) > 1]:
                raise ValueError(f"two columns are named {repeated[0]!r}")
            continue
        line = f"line {rows.line_num}"
        # For example an unquoted name with a comma. Spreadsheets add empty cells, which are allowed.
        if any(cell.strip() for cell in row[len(columns) :]):
            raise ValueError(f"{line} has {len(row)} cells, and the header has {len(columns)}")
        values = dict(zip(columns, row, strict=False))
        if not values.get("image", "").strip():
            raise ValueError(f"{line} does not name an image")
        numbers = [values.get(name, "").strip() for name in names[1:]]
        if delimiter == ";":  # spreadsheets that separate by semicolons write decimal commas
            numbers = [number.replace(",", ".") for number in numbers]
        if not any(numbers) and values.keys() >= set(names):
            boxes.append((values["image"], []))
            continue
        try:
            boxes.append((values["image"], [[to_float(number) for number in numbers]]))
        except ValueError as error:
            raise ValueError(f"{line} does not have four numbers") from error
    if columns is None:
        raise ValueError(_missing_column("image", [], box_format))
    return boxes


def _missing_column(name: str, columns: list[str], box_format: str) -> str:
    message = f"no column {name!r}; the header is {','.join(BOX_COLUMNS[box_format])}"
    for other, names in BOX_COLUMNS.items():
        if other != box_format and set(names) <= set(columns):
            message += f", or give --box-format {other}"
    return message

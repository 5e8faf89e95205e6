"""CSV tables with one face per row: dialects, columns and rows."""

import collections
import csv
import functools
import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lcgcn_jax.data.formats.parsing import to_float
from lcgcn_jax.data.raw_faces import ABSENT, SPLITS, UNSTATED, Entry, RawFace
from lcgcn_jax.errors import InputError, did_you_mean
from lcgcn_jax.landmarks import LandmarkScheme

BOX_COLUMNS = ("x0", "y0", "x1", "y1")
COLUMNS = ("image", "split", "group", "subset", *BOX_COLUMNS, "normalizer")
"""Columns other than those of the points; all but `image` are optional."""

NOT_AVAILABLE = frozenset(
    ("", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none", "nil", "nat", "-", "?")
)
"""Cells that mark a missing number, in lower case."""

_HRNET_COLUMNS = ("image_name", "scale", "center_w", "center_h")
_HRNET_UNIT = 200.0  # px; side of a face box with scale 1 in the lists of HRNet-Facial

_DELIMITERS = ",;\t|"
_POINT_COLUMN = re.compile(r"(?P<first>[xy])_?(?P<name>.+)|(?P<other>.+)_(?P<last>[xy])")
_IMAGE_NAME = re.compile(r"file|path|image|img|pic|photo|name")

_NumberedCells = tuple[int, list[str]]
"""Line number of a row, from 1, and its cells."""


def read_table(path: Path, scheme: LandmarkScheme, notes: list[str]) -> Iterator[Entry]:
    """Read a CSV file with a header and one row per face.

    The separator is a comma, semicolon, tab or vertical bar; the text is UTF-8, or UTF-16 with a byte
    order mark. Empty rows and lines that start with `#` are skipped.

    Args:
      notes: extended by notes about the file.

    Raises:
      InputError: the file cannot be read, or its columns do not fit the scheme.
    """
    try:
        text = _decode(path.read_bytes())
        delimiter, header, rows = _split(text)
        reader = _RowReader(path, header, scheme, notes, decimal_comma=delimiter != ",")
        for line, cells in rows:
            if any(cell.strip() for cell in cells) and not reader.is_comment(cells):
                parse_face = functools.partial(reader.face, cells)
                yield Entry.parse(line, f"{path.name}:{line}", parse_face)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV in UTF-8: {error}; save it as CSV UTF-8") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _decode(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def _split(text: str) -> tuple[str, list[str], Iterator[_NumberedCells]]:
    """Split a table into its separator, header and rows."""
    # Excel writes a first line such as `sep=;`.
    separator_line = re.match(r'"?sep=(.)"?[^\S\n]*\r?\n', text)
    lines = io.StringIO(text, newline="")
    num_skipped, start, header_text, commented = 0, 0, "", ""
    while line := lines.readline():
        bare = line.strip().strip(_DELIMITERS)
        if bare.startswith("#"):
            commented = line.lstrip().lstrip("#").lstrip(" ")
        elif bare and not (separator_line and num_skipped == 0):
            header_text = line
            break
        start, num_skipped = lines.tell(), num_skipped + 1
    delimiters = separator_line.group(1) if separator_line else _DELIMITERS
    # NumPy and others write the header as a comment.
    is_comment = not _has_image(header_text, delimiters) and _has_image(commented, delimiters)
    if is_comment:
        header_text = commented
    delimiter = max(delimiters, key=lambda d: (_has_image(header_text, d), header_text.count(d)))
    lines.seek(start)
    # Otherwise a quote that is not closed would take up the rows after it.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = next(csv.reader([header_text], delimiter=delimiter) if is_comment else reader, [])
    return delimiter, header, _numbered(reader, num_skipped)


def _numbered(reader: Any, num_skipped: int) -> Iterator[_NumberedCells]:
    end = reader.line_num  # of the previous row
    try:
        for cells in reader:
            end = reader.line_num
            yield num_skipped + end, cells
    except csv.Error as error:
        raise ValueError(f"line {num_skipped + end + 1}: {error}; check its quotes") from error


def _has_image(line: str, delimiters: str) -> bool:
    return any(
        _plain(name) in ("image", "image_name")
        for delimiter in delimiters
        for name in line.split(delimiter)
    )


def _plain(name: str) -> str:
    """Normalize case, spaces, dots and hyphens of a column name."""
    return re.sub(r"[\s.\-]+", "_", name.strip().strip("\"'").strip()).casefold()


class _RowReader:
    """Reader of the rows below a header.

    Raises:
      ValueError: a column is missing, duplicated, or likely misspelled.
    """

    def __init__(
        self,
        path: Path,
        header: Sequence[str],
        scheme: LandmarkScheme,
        notes: list[str],
        *,
        decimal_comma: bool,
    ):
        self._header = [name.strip() for name in header]
        self._width = len(header)
        self._decimal_comma = decimal_comma
        duplicates = [name for name in self._header if name and self._header.count(name) > 1]
        if duplicates:
            raise ValueError(f"two columns are named {duplicates[0]!r}")
        columns = _Columns(self._header)
        self._is_hrnet = columns.find("image_name") is not None and columns.find("image") is None
        others = _HRNET_COLUMNS if self._is_hrnet else COLUMNS
        self._names = _point_columns(columns, scheme, is_hrnet=self._is_hrnet)
        point_names = [name for pair in self._names for name in pair]
        # `x0` may also be the coordinate of a point.
        point_columns = {columns.find(name) for name in point_names}
        self._columns = {
            name: index
            for name in others
            if (index := columns.find(name)) is not None and index not in point_columns
        }
        absent = [name for name in (*others, *point_names) if columns.find(name) is None]
        known = point_columns | set(self._columns.values())
        unknown = [i for i, name in enumerate(self._header) if name and i not in known]
        self._check_unknown(unknown, absent, scheme)
        self._has_box = any(name in self._columns for name in BOX_COLUMNS)
        needed = [*(others if self._is_hrnet else others[:1]), *point_names]
        needed += BOX_COLUMNS if self._has_box else ()
        needed += ["normalizer"] if scheme.normalizer == "given" else []
        for name in needed:
            if (columns.find(name) if name in point_names else self._columns.get(name)) is None:
                raise ValueError(_missing_column(name, self._header))
        if scheme.normalizer != "given" and "normalizer" in self._columns:
            refuse_normalizer(scheme)
        self._points = [
            [index for name in pair if (index := columns.find(name)) is not None]
            for pair in self._names
        ]
        if unknown:
            texts = ", ".join(repr(self._header[i]) for i in unknown[:5])
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            notes.append(f"{path}: ignored columns: {texts}{more}")

    def _check_unknown(
        self, unknown: Sequence[int], absent: Sequence[str], scheme: LandmarkScheme
    ) -> None:
        """Reject unknown columns that are likely misspelled, or x and y of an unknown point."""
        axes = {}  # column -> point and axis
        for i in unknown:
            plain = _plain(self._header[i])
            if hint := did_you_mean(plain, absent, cutoff=0.75):
                raise ValueError(f"unknown column {self._header[i]!r}{hint}")
            if self._is_hrnet:
                plain = plain.removeprefix("original_")
            if match := _POINT_COLUMN.fullmatch(plain):
                axes[i] = match["name"] or match["other"], match["first"] or match["last"]
        known_axes = set(axes.values())
        for i, (point, _) in axes.items():
            # A box of another form is ignored like any other column.
            has_both = {(point, "x"), (point, "y")} <= known_axes
            if has_both and point not in ("min", "max"):
                hint = ", numbered from 0" if point.isdecimal() else ""
                raise ValueError(
                    f"unknown column {self._header[i]!r}: {scheme.name} has no landmark {point!r} among "
                    f"its {scheme.num_landmarks}{hint}; remove its columns, or add it to the scheme"
                )

    def is_comment(self, cells: Sequence[str]) -> bool:
        return cells[0].lstrip().startswith("#") and len(cells) != self._width

    def face(self, cells: Sequence[str]) -> RawFace:
        """Parse a row.

        Raises:
          ValueError: the row cannot be used.
        """
        cells = [cell.strip() for cell in cells]
        # A row may lack the cells of unnamed columns, such as the one after a trailing comma.
        while len(cells) > self._width and not cells[-1]:
            cells.pop()
        while len(cells) < self._width and not self._header[len(cells)]:
            cells.append("")
        if len(cells) != self._width:
            raise ValueError(f"{len(cells)} fields, expected {self._width}")
        points = np.array([[self._number(cells, i) for i in pair] for pair in self._points])
        missing = np.isnan(points)
        if (half := missing[:, 0] != missing[:, 1]).any():
            x, y = self._names[int(half.argmax())]
            raise ValueError(f"one of {x} and {y} is empty")
        present = ~missing[:, 0]
        if self._is_hrnet:
            scale, *center = (self._number(cells, self._columns[n]) for n in _HRNET_COLUMNS[1:])
            box = np.array([*center, scale * _HRNET_UNIT, scale * _HRNET_UNIT])
            image = cells[self._columns["image_name"]]
            return RawFace(image, points, present, box, "centers")
        box = None
        if self._has_box:
            box = np.array([self._number(cells, self._columns[name]) for name in BOX_COLUMNS])
            box = None if np.isnan(box).all() else box
        texts = {
            name: cells[self._columns[name]]
            for name in ("split", "group", "subset")
            if name in self._columns
        }
        if texts.get("split") == "":
            raise ValueError(f"the split is empty; use one of {', '.join(SPLITS)}")
        has_normalizer = "normalizer" in self._columns
        normalizer = self._number(cells, self._columns["normalizer"]) if has_normalizer else ABSENT
        return RawFace(
            cells[self._columns["image"]],
            points,
            present,
            box,
            normalizer=normalizer,
            split=texts.get("split", UNSTATED),
            group=texts.get("group", ""),
            subset=texts.get("subset", ""),
        )

    def _number(self, cells: Sequence[str], index: int) -> float:
        """Parse a cell; NaN if the number is missing."""
        text = cells[index]
        if text.lower() in NOT_AVAILABLE:
            return ABSENT
        # A comma in a cell of a file with another separator is the decimal sign of many languages.
        if self._decimal_comma and re.fullmatch(r"[-+]?\d*,\d+", text):
            text = text.replace(",", ".")
        try:
            value = to_float(text)
        except ValueError:
            raise ValueError(f"{self._header[index]}: {cells[index]!r} is not a number") from None
        if not math.isfinite(value):
            raise ValueError(
                f"{self._header[index]}: {text!r} is not finite; leave the cell of a missing number empty"
            )
        return value


class _Columns:
    """Lookup of columns by name: exact, or with another case or other separators of words."""

    def __init__(self, header: Sequence[str]):
        self._exact = {name: i for i, name in enumerate(header) if name}
        self._plain = collections.defaultdict(list)
        for i, name in enumerate(header):
            if name:
                self._plain[_plain(name)].append(i)

    def find(self, name: str) -> int | None:
        if name in self._exact:
            return self._exact[name]
        indices = self._plain.get(_plain(name), ())
        return indices[0] if len(indices) == 1 else None


def _point_columns(
    columns: _Columns, scheme: LandmarkScheme, *, is_hrnet: bool
) -> list[tuple[str, str]]:
    """Names of the columns of each landmark: of the supported conventions, the one with most matches."""
    numbers = range(scheme.num_landmarks)
    if is_hrnet:
        return [(f"original_{i}_x", f"original_{i}_y") for i in numbers]
    conventions = [
        [(f"x_{name}", f"y_{name}") for name in scheme.names],
        [(f"x_{i}", f"y_{i}") for i in numbers],
        [(f"{name}_x", f"{name}_y") for name in scheme.names],
        [(f"{i}_x", f"{i}_y") for i in numbers],
        [(f"point_{i}_x", f"point_{i}_y") for i in numbers],
    ]
    # With two landmarks, x0 and x1 are a box.
    if scheme.num_landmarks > 2 and columns.find("x2") is not None:
        conventions.append([(f"x{i}", f"y{i}") for i in numbers])

    def num_matches(pairs: Sequence[tuple[str, str]]) -> int:
        return sum(columns.find(name) is not None for pair in pairs for name in pair)

    return max(conventions, key=num_matches)


def _missing_column(name: str, header: Sequence[str]) -> str:
    named = [column for column in header if column]
    if not named:
        return "the file is empty"
    if any("\0" in column for column in named):
        return "not a CSV in UTF-8: the header has NUL bytes; save it as CSV UTF-8"
    if len(named) == 1:
        return f"no column {name!r}; the columns have to be separated by commas, semicolons or tabs"
    if name == "image" and (
        other := next((column for column in named if _IMAGE_NAME.match(_plain(column))), None)
    ):
        return f"no column 'image'; rename {other!r} if it holds the paths of the images"
    hint = "; points are numbered from 0" if name in ("x_0", "0_x", "x0") else ""
    return f"no column {name!r}{hint}; see lcgcn prepare csv --help"


def refuse_normalizer(scheme: LandmarkScheme) -> None:
    """Reject a normalizer in the data if the scheme defines another one.

    Raises:
      ValueError: always.
    """
    raise ValueError(
        f"there is a normalizer, but that of {scheme.name} is {scheme.normalizer_text}; set "
        "'normalizer: given' in the scheme"
    )

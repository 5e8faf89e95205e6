"""Parsing of the XML and JSON files of labeling tools."""

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.json_fields import RepeatedFieldError, unique_fields


class _TreeBuilder(ET.TreeBuilder):
    """Tree builder that rejects a document type, where XML entities are declared."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Reject the declaration, before any entity is expanded.

        Raises:
          ValueError: always.
        """
        raise ValueError("it has a document type (DOCTYPE), which may declare entities; remove it")


def read_xml(path: Path) -> ET.Element:
    """Read an XML file; entities are not expanded.

    Raises:
      InputError: the file cannot be read, is not well-formed XML, or declares a document type.
    """
    try:
        return ET.parse(path, parser=ET.XMLParser(target=_TreeBuilder())).getroot()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ET.ParseError, LookupError) as error:
        raise InputError(
            f"{path}: not well-formed XML: {one_line(error)}; export the file again"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: {one_line(error)}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
      InputError: the file cannot be read, is not JSON in UTF-8, or an object has a field twice.
    """
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=unique_fields)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except RepeatedFieldError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        reason = one_line(error)
        raise InputError(f"{path}: not JSON in UTF-8: {reason}; export the file again") from error


def to_float(value: Any) -> float:
    """Convert text or a number like `float`, but reject underscores: `float` reads 1_2 as 12.

    Raises:
      TypeError, ValueError, OverflowError: as `float`.
    """
    if isinstance(value, str) and "_" in value:
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def parse_number(value: Any, what: str) -> float:
    """Convert a value of a file to a finite number.

    Args:
      what: description of the number for the message.

    Raises:
      ValueError: it is not a finite number.
    """
    try:
        number = math.nan if isinstance(value, bool) else to_float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} is {value!r}, expected a number")
    return number


def parse_size(width: Any, height: Any) -> tuple[int, int] | None:
    """Convert a stated image size to integers; None if one side is missing or not a positive number."""
    try:
        sides = parse_number(width, "width"), parse_number(height, "height")
    except ValueError:
        return None
    return (round(sides[0]), round(sides[1])) if min(sides) >= 1 else None

"""Fields of JSON objects."""

from collections.abc import Iterable
from typing import Any


class RepeatedFieldError(ValueError):
    """A field of an object is repeated."""


def unique_fields(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dictionary, for `object_pairs_hook` of `json.loads`, which would keep only the last value.

    Raises:
      RepeatedFieldError: a field is repeated.
    """
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise RepeatedFieldError(f"the field {name!r} occurs twice; remove one")
        fields[name] = value
    return fields

"""Ranges of configuration fields, stated where a dataclass defines them.

The type of a field is its range: a name of a `Literal`, true or false, or a text, which may be empty only if
its default is. `number`, `numbers` and `interval` define numeric fields. A type `X | None` allows null.
"""

import dataclasses
import functools
import itertools
import math
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from lcgcn_jax.errors import choose

Number = int | float


class Constraint(NamedTuple):
    """Range of a field.

    Attributes:
      accepts: function that returns whether the field can have a value.
      text: what the field expects, for error messages.
      choices: valid names, if the field is a choice.
    """

    accepts: Callable[[Any], bool]
    text: str
    choices: tuple[str, ...] = ()


def number(default: Number | None, low: Number, high: Number = math.inf, **options: Any) -> Any:
    """Field with a number from `low` to `high`; options: `above`, `below` (excluded ends), `multiple`."""
    return constrained(default, functools.partial(_number, low, high, **options))


def numbers(
    default: tuple[Number, ...], low: Number, high: Number = math.inf, **options: Any
) -> Any:
    """Field with a tuple of numbers from `low` to `high`.

    Args:
      **options: `above` (excludes `low`), `length`, `shortest` (smallest length), `ascending` (strictly) and
        `last` (required last number).
    """
    return constrained(default, functools.partial(_numbers, low, high, **options))


def interval(
    default: tuple[Number, Number], low: Number, high: Number, *, above: bool = False
) -> Any:
    """Field with a minimum and a maximum, both from `low` to `high`; `above` excludes `low`."""
    return constrained(default, functools.partial(_interval, low, high, above=above))


def constrained(default: Any, constraint: Callable[..., Constraint]) -> Any:
    """Field with the range `constraint(whole=...)`, where `whole` is whether its type has integers."""
    return dataclasses.field(default=default, metadata={"constraint": constraint})


def constraints_of(config_class: type[Any], prefix: str = "") -> dict[str, Constraint]:
    """Range of each field of a dataclass by dotted name, including nested dataclasses.

    Groups of options that depend on a name, such as `model.graph`, have none.
    """
    hints = typing.get_type_hints(config_class)
    constraints: dict[str, Constraint] = {}
    for field in dataclasses.fields(config_class):
        name, hint = prefix + field.name, hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            constraints |= constraints_of(hint, f"{name}.")
        elif (constraint := _constraint(field, hint)) is not None:
            constraints[name] = constraint
    return constraints


def require_known(name: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """Raise an error for the first key that is not known, with the most similar known one.

    Raises:
      InputError: a key is not known.
    """
    known = sorted(known)
    for key in keys:
        choose(name, key, known, kind="field")


def _constraint(field: dataclasses.Field[Any], hint: Any) -> Constraint | None:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return Constraint(
            lambda value: isinstance(value, str) and value in arguments,
            f"one of {', '.join(arguments)}",
            arguments,
        )
    if hint is bool:
        return Constraint(lambda value: isinstance(value, bool), "true or false")
    if hint is str:
        if field.default == "":
            return Constraint(lambda value: isinstance(value, str), "a text")
        return TEXT
    if "constraint" not in field.metadata:
        return None
    constraint: Constraint = field.metadata["constraint"](whole=int in (hint, *arguments))
    if type(None) not in arguments:
        return constraint
    return Constraint(
        lambda value: value is None or constraint.accepts(value), f"{constraint.text}, or null"
    )


TEXT = Constraint(
    lambda value: isinstance(value, str) and bool(value.strip()), "a text that is not empty"
)


def _number(
    low: Number,
    high: Number,
    *,
    whole: bool,
    above: bool = False,
    below: bool = False,
    multiple: int = 1,
) -> Constraint:
    def accepts(value: Any) -> bool:
        # A bool is an int in Python; here it is a mistake.
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            return False
        if not math.isfinite(value) or (whole and value % multiple):
            return False
        return (value > low if above else value >= low) and (
            value < high if below else value <= high
        )

    kind = (
        f"a multiple of {multiple}" if multiple > 1 else "a whole number" if whole else "a number"
    )
    start = f"{'above' if above else 'of at least'} {low:,}"
    if high == math.inf:
        text = f"{kind} {start}"
    elif above or below:
        text = f"{kind} {start} and {'below' if below else 'at most'} {high:,}"
    else:
        text = f"{kind} from {low:,} to {high:,}"
    return Constraint(accepts, text)


def _numbers(
    low: Number,
    high: Number,
    *,
    whole: bool,
    above: bool = False,
    length: int | None = None,
    shortest: int = 0,
    ascending: bool = False,
    last: Number | None = None,
) -> Constraint:
    item = _number(low, high, whole=whole, above=above)

    def accepts(value: Any) -> bool:
        if not isinstance(value, tuple | list) or not all(map(item.accepts, value)):
            return False
        if len(value) < shortest or length not in (None, len(value)):
            return False
        if ascending and not all(a < b for a, b in itertools.pairwise(value)):
            return False
        return last is None or value[-1] == last

    text = f"a tuple, each item {item.text}"
    if length is not None:
        text += f", with {length} items"
    if shortest:
        text += f", with at least {shortest} item"
    if ascending:
        text += ", in ascending order"
    return Constraint(accepts, text if last is None else f"{text}, the last one {last}")


def _interval(low: Number, high: Number, *, whole: bool, above: bool) -> Constraint:
    ends = _numbers(low, high, whole=whole, above=above, length=2)
    item = _number(low, high, whole=whole, above=above)
    return Constraint(
        lambda value: ends.accepts(value) and value[0] <= value[1],
        f"low and high, low <= high, each {item.text}",
    )

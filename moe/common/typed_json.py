"""JSON that a user may have damaged: it comes back in the shape it should have, or the error names its place.

The shape is written as a type: int (an integer of at least 0), float, str, bool, None and unions of them, Literal[...]
of text, Any, list[...], dict[str, ...], and classes with annotations (TypedDict, dataclass) for objects. An object may
hold more than its class names, and may lack what may be None.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

SCALARS = {
    int: "an integer of at least 0",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
}


def parse_json(content: str | bytes, shape: Any) -> Any:
    """What the JSON text `content` holds.

    Raises:
        ValueError: it is no JSON, or not of this shape.
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if error := error_in(value, shape):
        raise ValueError(error)
    return value


def error_in(value: Any, shape: Any, place: str = "") -> str | None:
    """What keeps `value` from being of this shape, None where nothing does. `place`: what it is called."""
    if shape is Any:
        return None
    if get_origin(shape) in (Union, UnionType):
        errors = [error_in(value, part, place) for part in get_args(shape)]
        return None if None in errors else errors[0]
    if get_origin(shape) is Literal:
        known = isinstance(value, str) and value in get_args(shape)
        return None if known else _mismatch(place, value, f"one of {', '.join(get_args(shape))}")
    if shape in SCALARS:
        return None if _is_scalar(value, shape) else _mismatch(place, value, SCALARS[shape])
    wanted = list if (get_origin(shape) or shape) is list else dict
    if not isinstance(value, wanted):
        return _mismatch(place, value, "a list" if wanted is list else "an object")
    return next((error for error in (error_in(*part) for part in _parts(value, shape, place)) if error), None)


_hints = cache(get_type_hints)  # an index of 30,000 shards asks for them at each


def _is_scalar(value: Any, shape: type) -> bool:
    if shape in (int, float):
        kinds = int if shape is int else (int, float)
        return (
            isinstance(value, kinds) and not isinstance(value, bool) and not (shape is int and not 0 <= value < 2**63)
        )
    return isinstance(value, shape)


def _parts(value: Any, shape: Any, place: str) -> Iterator[tuple[Any, Any, str]]:
    """(value, shape, place) of what a list or an object holds."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield item, get_args(shape)[0], f"{place}[{number}]"
        return
    dot = f"{place}." if place else ""
    if (get_origin(shape) or shape) is dict:
        for key, item in value.items() if get_args(shape) else ():
            yield item, get_args(shape)[1], f"{dot}{key}"
        return
    for key, part in _hints(shape).items():
        yield value.get(key), part, f"{dot}{key}"


def _mismatch(place: str, value: Any, wanted: str) -> str:
    shown = "missing" if value is None else f"{value!r:.60}"
    return f"{place or 'it'} is {shown}; {wanted} is needed"

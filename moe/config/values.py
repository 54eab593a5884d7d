"""Yaml text -> values that remember how they were typed: a text setting gets what was typed, a number only what Python
reads alike.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

# what yaml.safe_load raises: no UTF-8 and a date there is not, `!!bool abc`, `!!timestamp abc`, too deeply nested
BAD_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
MOST_VALUES = 100_000  # of a yaml, its aliases written out
SCALARS = ("int", "float", "bool", "timestamp")  # yaml's tags


@dataclasses.dataclass(frozen=True)
class _Scalar:
    """A number, truth value or date as yaml reads it, and as it was typed."""

    value: Any
    text: str


class _Loader(yaml.SafeLoader):
    """Plain yaml lets a key be given twice and takes the last; here it is an error. Scalars keep their text."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode) or node.tag.rpartition(":")[2] not in SCALARS:
            return super().construct_object(node, deep)
        try:
            return _Scalar(super().construct_object(node, deep), node.value)
        except ValueError:  # a date that is none, such as 2024-02-31
            return node.value
        except (LookupError, AttributeError):  # of a tag that was written out: !!bool abc
            raise yaml.YAMLError(
                f"{node.value!r} is not of type {node.tag.rpartition(':')[2]} (line {node.start_mark.line + 1})"
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"key {twice!r} is given twice (line {node.start_mark.line + 1})")
        return {_typed(key): value for key, value in super().construct_mapping(node, deep).items()}


def _typed(value: Any) -> Any:
    return value.text if isinstance(value, _Scalar) else value


def read_as(value: Any, hint: Any) -> Any:
    """A leaf for a setting of type `hint`: its text where that is text, else what yaml read.

    Raises:
        ValueError: a number that Python reads otherwise, or not at all.
    """
    if isinstance(value, list):
        part = next(iter(get_args(hint)), None)
        return [read_as(item, part) for item in value]
    if isinstance(value, dict):
        return {key: read_as(item, None) for key, item in value.items()}
    if _number_or_word(hint):
        return _read_number_or_word(value, hint)
    if not isinstance(value, _Scalar):
        return value
    if is_text(hint) or isinstance(value.value, datetime.date):  # no setting is a date
        return value.text
    if not _reads_alike(value):
        raise ValueError(f"is {value.text!r}, which yaml reads as {value.value}; write the number in plain digits")
    return value.value


def _number_or_word(hint: Any) -> bool:
    """Whether it is a number with a fraction or one of some words, such as `float | Literal["auto"]`."""
    return float in get_args(hint) and any(get_origin(part) is Literal for part in get_args(hint))


def _read_number_or_word(value: Any, hint: Any) -> Any:
    """As a setting that is a number alone takes it: 5e-4, which yaml reads as text, too."""
    words = [word for part in get_args(hint) for word in get_args(part)]
    text = value.text if isinstance(value, _Scalar) else value
    if not isinstance(text, str) or text in words:
        return text
    if isinstance(value, _Scalar) and not _reads_alike(value):
        raise ValueError(f"is {text!r}, which yaml reads as {value.value}; write the number in plain digits")
    try:
        return float(value.value if isinstance(value, _Scalar) and not isinstance(value.value, bool) else text)
    except (TypeError, ValueError):
        raise ValueError(f"is {text!r}; write a number, or {' or '.join(words)}") from None


def _reads_alike(number: _Scalar) -> bool:
    if isinstance(number.value, bool) or not isinstance(number.value, (int, float)) or not math.isfinite(number.value):
        return True  # .inf and .nan are yaml's own; the checks tell where they may not stand
    try:
        return type(number.value)(number.text) == number.value
    except ValueError:
        return False


def is_text(hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return all(isinstance(choice, str) for choice in get_args(hint))
    if is_union(hint):
        return all(is_text(part) for part in get_args(hint) if part is not NoneType)
    return hint is str


def is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def is_one_value(text: str) -> bool:
    """Whether yaml reads all of `text` as one value."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return False
    return node is not None and not text[node.end_mark.index :].strip()


def parse_yaml(text: str) -> Any:
    try:
        value = yaml.load(text, _Loader)
        _refuse_loops(value, (), itertools.count(1))
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except ValueError as error:
        raise yaml.YAMLError(str(error)) from None
    return value


def plain_yaml(text: str | bytes) -> Any:
    """As `yaml.safe_load`, of a file that somebody else may have written. Raises one of BAD_YAML."""
    value = yaml.safe_load(text)
    _refuse_loops(value, (), itertools.count(1))
    return value


def _refuse_loops(node: Any, above: tuple[int, ...], seen: Iterator[int]) -> None:
    """Also what aliases of aliases make of a few lines: more values than can be gone through."""
    if next(seen) > MOST_VALUES:
        raise yaml.YAMLError(f"its aliases (*name) make more than {MOST_VALUES:,} values of it")
    if id(node) in above:
        raise yaml.YAMLError("an alias (*name) refers to itself")
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        _refuse_loops(child, (*above, id(node)), seen)

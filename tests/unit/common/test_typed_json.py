import json
from dataclasses import dataclass
from typing import Literal, TypedDict

import pytest

from moe.common.typed_json import error_in, parse_json


class Part(TypedDict):
    size: int
    share: float
    name: str | None


@dataclass
class Whole:
    parts: list[Part]
    free: dict
    counts: dict[str, int]
    open: bool


GOOD = {"parts": [{"size": 1, "share": 2, "extra": []}], "free": {"any": [1]}, "counts": {"a": 0}, "open": True}


def test_what_has_the_shape_comes_back_as_it_is() -> None:
    assert parse_json(json.dumps(GOOD), Whole) == GOOD


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"parts": {}}, "parts is {}; a list is needed"),
        ({"parts": [7]}, "parts[0] is 7; an object is needed"),
        ({"parts": [{"size": -1, "share": 0.5}]}, "parts[0].size is -1; an integer of at least 0 is needed"),
        ({"parts": [{"size": True, "share": 0.5}]}, "parts[0].size is True; an integer"),
        ({"parts": [{"size": 2**63, "share": 0.5}]}, "parts[0].size is 9223372036854775808; an integer"),
        ({"parts": [{"size": 1, "share": "x"}]}, "parts[0].share is 'x'; a number is needed"),
        ({"parts": [{"size": 1, "share": 1, "name": 3}]}, "parts[0].name is 3; text is needed"),
        ({"counts": {"a": "1"}}, "counts.a is '1'; an integer"),
        ({"open": None}, "open is missing; true or false is needed"),
        ({"free": None}, "free is missing; an object is needed"),
    ],
)
def test_an_error_is_told_by_its_place(changes: dict, error: str) -> None:
    assert (error_in({**GOOD, **changes}, Whole) or "").startswith(error)


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, b"\xff\xfe", "1" * 5000])
def test_what_is_no_object_is_a_value_error_and_nothing_else(content: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(content, Whole)


def test_a_choice_of_words_is_one_of_them() -> None:
    shape = Literal["one", "two"]
    assert error_in("two", shape, "k") is None
    assert error_in("three", shape, "k") == "k is 'three'; one of one, two is needed"
    assert [bool(error_in(value, shape)) for value in (None, 1, ["one"])] == [True] * 3
    assert error_in(None, shape | None) is None

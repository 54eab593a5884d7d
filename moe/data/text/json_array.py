"""Rows of a `.json` file: an array of objects, read one object at a time; lines of objects, as jsonl.

- An array can only be read from the front, so it is one unit of work; one above MOST_BYTES is refused with the command
  that makes jsonl of it.
"""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterator
from typing import IO, Any

from moe.data.text.columns import absent
from moe.data.text.errors import BadFileError
from moe.data.text.files import SourceFile, Unit
from moe.data.text.lines import PEEK_BYTES, PEEK_ROWS, Row, check_objects, gather, keys_of_front, names_twice, row_of
from moe.data.text.looks import BOM, HEAD_BYTES
from moe.data.text.rows import Batch
from moe.data.text.streams import open_stream

MOST_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
SPACE = " \t\r\n"


def is_array(file: SourceFile) -> bool:
    """Whether the file's first character begins an array."""
    with open_stream(file) as (unpacked, _):
        return unpacked.read(HEAD_BYTES).removeprefix(BOM).lstrip()[:1] == b"["


class _Broken(ValueError):
    pass


def _elements(unpacked: IO[bytes], *, front_of: str | None = None) -> Iterator[tuple[Any, str]]:
    """(value, its JSON) of the array's elements. Raises _Broken where it is not well formed.

    front_of: the text column, to look at no more than the front of an element above PEEK_BYTES, which is then the last.
    """
    decode = json.JSONDecoder().raw_decode
    utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text, at, ended = "", 0, False

    def more() -> None:
        """Read as much again as is held, so that a large object is not tried over and over."""
        nonlocal text, at, ended
        chunk = unpacked.read(max(CHUNK_BYTES, len(text) - at))
        ended = not chunk
        text, at = text[at:] + utf8.decode(chunk, final=ended), 0

    def following() -> str:
        """The next character that is no white space, "" at the end."""
        nonlocal at
        while True:
            while at < len(text) and text[at] in SPACE:
                at += 1
            if at < len(text) or ended:
                return text[at : at + 1]
            more()

    more()
    text = text.removeprefix("\ufeff")
    if following() != "[":
        raise _Broken("it is no array")
    at += 1
    if following() == "]":
        return
    while True:
        following()
        while True:
            if front_of is not None and len(text) - at > PEEK_BYTES + CHUNK_BYTES:
                yield keys_of_front(text[at:], front_of), ""
                return
            try:
                value, end = decode(text, at)
                if end < len(text) or ended:  # a number may continue
                    break
            except RecursionError:
                raise _Broken("it is nested too deeply") from None
            except ValueError as error:
                if ended:
                    raise _Broken(str(error)) from None
            more()
        yield value, text[at:end]
        at = end
        mark = following()
        at += 1
        if mark == "]":
            if following():
                raise _Broken("there is more after the array's end")
            return
        if mark != ",":
            raise _Broken(f"{mark!r} where a comma or the array's end should be" if mark else "it is cut short")


def _of(file: SourceFile, unpacked: IO[bytes], *, front_of: str | None = None) -> Iterator[tuple[Any, str]]:
    count = 0
    try:
        for element in _elements(unpacked, front_of=front_of):
            count += 1
            yield element
    except _Broken as error:
        raise BadFileError(file.name, f"not a readable JSON array (after {count:,} elements: {error})") from None


def peek_json(file: SourceFile, text_column: str) -> None:
    """BadFileError for an array that is too large, or whose first elements do not have the text column."""
    if file.size > MOST_BYTES:
        raise BadFileError(
            file.name,
            f"a JSON array of {file.size / 1e9:.1f} GB; more than {MOST_BYTES >> 30} GB is read as jsonl only: "
            "`jq -c '.[]' FILE.json > FILE.jsonl` makes it",
        )
    with open_stream(file) as (unpacked, _):
        first = itertools.islice(_of(file, unpacked, front_of=text_column), PEEK_ROWS)
        seen = check_objects((value for value, _ in first), text_column)
    if seen is None:
        return
    if not seen:
        raise BadFileError(file.name, "its first elements are not JSON objects; an array of objects is expected")
    raise absent(file.name, text_column, seen)


def read_json(unit: Unit, text_column: str, id_column: str | None) -> Iterator[Batch]:
    """Raises BadFileError where the array breaks."""

    def found() -> Iterator[tuple[Row, int, int]]:
        for number, (value, text) in enumerate(_of(unit.file, unpacked)):
            row = row_of(value, text_column, id_column)
            if row[2] is None and names_twice(text, text_column):
                row = None, None, "duplicate_key"
            yield row, number, len(text)

    with open_stream(unit.file) as (unpacked, raw):
        yield from gather(found(), raw.tell, 0)

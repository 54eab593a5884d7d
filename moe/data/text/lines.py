"""Rows of jsonl: one object a line, cut at any byte, or unpacked from the front."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import IO, Any

import pyarrow as pa

from moe.data.text.columns import ID_COLUMN, absent, field_of
from moe.data.text.errors import BadFileError
from moe.data.text.files import SourceFile, Unit
from moe.data.text.looks import BOM
from moe.data.text.rows import Batch
from moe.data.text.streams import open_stream
from moe.data.text.tables import BATCH_BYTES, BATCH_ROWS

PEEK_ROWS = 1000
PEEK_BYTES = 16 << 20  # of a line that is looked at: of a longer one the front has to name the text
KEY = re.compile(r'[\s,]*("(?:[^"\\]|\\.)*")\s*:\s*')

Row = tuple[str | None, str | None, str | None]  # text, id, error


def _lines(unpacked: IO[bytes], raw: IO[bytes], unit: Unit) -> Iterator[tuple[int, bytes, int]]:
    """(position or line number, line, position of the file) of the lines that start in the unit's range."""
    if unit.file.kind != "jsonl":
        for number, line in enumerate(unpacked):
            yield number, line.removeprefix(BOM) if number == 0 else line, raw.tell()
        return
    position = 0
    if unit.begin:  # the line that crosses the cut belongs to the unit before
        raw.seek(unit.begin - 1)
        position = unit.begin - 1 + len(raw.readline())
    while position < unit.end:
        line = raw.readline()
        if not line:
            return
        yield position, line.removeprefix(BOM) if position == 0 else line, position + len(line)
        position += len(line)


def _encodes(text: str) -> bool:
    try:
        return text.isascii() or text.encode() is not None
    except UnicodeEncodeError:
        return False


def key_text(key: Any) -> str | None:
    """An id as text; None for one that is none: null, an object, a list, not a number, no UTF-8."""
    if not isinstance(key, (str, int, float)) or key != key:
        return None
    return str(key) if _encodes(str(key)) else None


def row_of(value: Any, text_column: str, id_column: str | None) -> Row:
    """(text, id, error) of one JSON value."""
    if not isinstance(value, dict):
        return None, None, "bad_json"
    text = value.get(text_column)
    if text is None and "." in text_column:
        text = field_of(value, text_column)
    if text is None or not isinstance(text, str):
        return None, None, "null" if text is None else "wrong_type"
    if not _encodes(text):  # a lone surrogate escape
        return None, None, "invalid_utf8"
    return text, None if id_column in (None, text_column) else key_text(value.get(id_column)), None


@lru_cache(maxsize=16)
def _spelled(key: str) -> tuple[str, re.Pattern[str], re.Pattern[bytes]]:
    """A key in quotes, and patterns of it with any of its characters escaped."""

    def ways(char: str) -> str:
        units = char.encode("utf-16-be", "surrogatepass").hex()
        escaped = "".join(rf"\\u(?i:{units[i : i + 4]})" for i in range(0, len(units), 4))
        short = {json.dumps(char)[1:-1], json.dumps(char, ensure_ascii=False)[1:-1], *([r"\/"] if char == "/" else [])}
        return f"(?:{'|'.join([escaped, *map(re.escape, sorted(short))])})"

    pattern = f'"{"".join(map(ways, key))}"'
    return f'"{key}"', re.compile(pattern), re.compile(pattern.encode("utf-8", "surrogateescape"))


def _may_name_twice(line: str | bytes, key: str) -> bool:
    quoted, of_text, of_bytes = _spelled(key)
    if isinstance(line, str):
        count = len(of_text.findall(line)) if "\\u" in line else line.count(quoted)
    else:
        count = len(of_bytes.findall(line)) if b"\\u" in line else line.count(quoted.encode("utf-8", "surrogateescape"))
    return count > 1


def names_twice(line: str | bytes, text_column: str) -> bool:
    """Whether the object names its text twice: a parser takes the last one and says nothing.

    A key may be written with escapes. Of a nested column the folders of the path count, too.
    """
    names = {text_column, *text_column.split(".")} if "." in text_column else (text_column,)
    if not any(_may_name_twice(line, name) for name in names):
        return False  # nearly all; an escaped quote inside of a text does not count
    twice = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal twice  # the outermost object comes last, and alone counts unless the column lies deeper
        keys = [key for key, _ in pairs]
        twice = (twice and "." in text_column) or any(keys.count(name) > 1 for name in names)

    json.loads(line, object_pairs_hook=look)
    return twice


def parse_line(line: bytes, text_column: str, id_column: str | None = ID_COLUMN) -> Row:
    """(text, id, error) of one jsonl line."""
    try:
        value = json.loads(line)
        if names_twice(line, text_column):
            return None, None, "duplicate_key"
    except UnicodeDecodeError:
        return None, None, "invalid_utf8"
    except (ValueError, RecursionError):
        return None, None, "bad_json"
    return row_of(value, text_column, id_column)


def gather(found: Iterable[tuple[Row, int, int]], progress: Callable[[], int], start: int) -> Iterator[Batch]:
    """Batches of ((text, id, error), row, bytes). `progress`: the position behind the last row; `start`: at first."""
    texts: list[str] = []
    ids: list[str | None] = []
    rows: list[int] = []
    bad: list[tuple[str, int]] = []
    before, held = start, 0

    def batch() -> Batch:
        column = pa.array(ids, pa.large_string()) if any(i is not None for i in ids) else None
        return Batch(pa.array(texts, pa.large_string()), column, list(rows), progress() - before, list(bad))

    for (text, key, error), row, size in found:
        if error is not None:
            bad.append((error, row))
        else:
            assert text is not None
            texts.append(text)
            ids.append(key)
            rows.append(row)
        held += size
        if held >= BATCH_BYTES or len(texts) >= BATCH_ROWS:
            yield batch()
            before, held = progress(), 0
            for column in (texts, ids, rows, bad):
                column.clear()  # type: ignore[attr-defined]
    yield batch()


def read_jsonl(unit: Unit, text_column: str, id_column: str | None) -> Iterator[Batch]:
    """Raises BadFileError where the file breaks."""
    start = position = unit.begin if unit.file.kind == "jsonl" else 0

    def found() -> Iterator[tuple[Row, int, int]]:
        nonlocal position
        for row, line, behind in _lines(unpacked, raw, unit):
            position = behind
            if line.strip():
                yield parse_line(line, text_column, id_column), row, len(line)

    with open_stream(unit.file) as (unpacked, raw):
        yield from gather(found(), lambda: position, start)


def peek_jsonl(file: SourceFile, text_column: str) -> None:
    """BadFileError when none of the first rows of the file has `text_column`, or none is a JSON object."""
    front, long = b"", False

    def values() -> Iterator[Any]:
        nonlocal front, long
        for number in range(PEEK_ROWS):
            line = unpacked.readline(PEEK_BYTES + 1)
            line = line.removeprefix(BOM) if number == 0 else line
            front = front or line.strip()[:1]
            long = len(line) > PEEK_BYTES
            yield keys_of_front(line.decode("utf-8", "replace"), text_column) if long else _value(line)
            if long or not line:
                return

    with open_stream(file) as (unpacked, _):
        seen = check_objects(values(), text_column)
    if seen is None:
        return
    if not seen:
        many = front in (b"[", b"{")
        fix = "; if it is JSON over many lines, `jq -c '.[]'` (of an array) or `jq -c .` makes jsonl" if many else ""
        raise BadFileError(file.name, f"its first lines are not JSON objects; one object a line is expected{fix}")
    error = absent(file.name, text_column, seen)
    if long:
        inside = f"if the rows lie inside of its line of more than {PEEK_BYTES >> 20} MB"
        raise BadFileError(file.name, f"{error.reason}; {inside}, `jq -c '.{seen[-1]}[]'` makes jsonl")
    raise error


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def keys_of_front(text: str, text_column: str) -> dict[str, None] | None:
    """Of an object of which only the front is there: its keys so far. The text column is one of them where it may lie
    inside of the last. None: it is no object.
    """
    text = text.lstrip()
    if not text.startswith("{"):
        return None
    decode = json.JSONDecoder(object_pairs_hook=lambda pairs: None).raw_decode  # objects inside of it are not kept
    keys: dict[str, None] = {}
    at = 1
    try:
        while key := KEY.match(text, at):
            keys[json.loads(key[1])] = None
            at = decode(text, key.end())[1]
    except (ValueError, RecursionError):  # the line is cut in this value
        pass
    return keys | {text_column: None} if any(text_column.startswith(f"{key}.") for key in keys) else keys


def check_objects(values: Iterable[Any], text_column: str) -> list[str] | None:
    """None where an object among `values` has the text column; else the names that they have."""
    seen: dict[str, None] = {}
    for value in values:
        if isinstance(value, dict):
            if text_column in value or ("." in text_column and field_of(value, text_column) is not None):
                return None
            seen.update(dict.fromkeys(value))
    return list(seen)

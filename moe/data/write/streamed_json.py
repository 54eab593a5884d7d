"""JSON of very many rows, of which none stay in memory: written in pieces, read a row at a time, and kept compressed in
a temporary file until they are written.
"""

from __future__ import annotations

import json
import re
import tempfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any, BinaryIO

from moe.common.temporary import room_for

PIECE = 1 << 14


def row(value: Any) -> str:
    """A value as JSON, in one line."""
    return json.dumps(value, separators=(",", ":"))


def streamed(head: dict[str, Any], rows: dict[str, Iterable[str]]) -> Iterator[bytes]:
    """One JSON object in pieces: what `head` holds, at least one key, then a list for each of `rows`, a line a row."""
    yield json.dumps(head, sort_keys=True).removesuffix("}").encode()
    for name, lines in rows.items():
        yield f",\n{json.dumps(name)}: [\n".encode()
        separator = ""
        for line in lines:
            yield f"{separator}{line}".encode()
            separator = ",\n"
        yield b"]"
    yield b"}\n"


def read_streamed(file: BinaryIO, rows: Collection[str]) -> Iterator[tuple[str, Any]]:
    """("", what is no list of rows), then of each list ("", its name and None) and (its name, a row) for each of its
    rows. In another layout, as earlier versions wrote it, all of it is in memory; other JSON than an object is {}.

    rows: the lists' names. Raises ValueError for what is no JSON.
    """
    first = file.readline()
    try:
        head = _parsed(first.removesuffix(b",\n") + b"}") if first.endswith(b",\n") else None
    except ValueError:
        head = None
    if head is None:
        whole = _parsed(first + file.read())
        whole = whole if isinstance(whole, dict) else {}
        lists = [name for name in rows if isinstance(whole.get(name), list)]
        yield "", {name: value for name, value in whole.items() if name not in lists}
        for name in lists:
            yield "", {name: None}
            for value in whole[name]:
                yield name, value
        return
    yield "", head
    name, end = "", b""
    for line in file:
        if not name:
            begin = re.fullmatch(rb'"(\w+)": \[\n', line)
            if begin is None or end == b"]}":
                raise ValueError("what follows a list is none")
            name = begin[1].decode()
            yield "", {name: None}
            continue
        values, end = _row_of(line.rstrip(b"\n"))
        for value in values:
            yield name, value
        name = "" if end else name
    if end != b"]}":
        raise ValueError("it is cut short")


def _parsed(text: bytes) -> Any:
    """Raises ValueError for whatever is no JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _row_of(line: bytes) -> tuple[list[Any], bytes]:
    """The row of a line, none where its list ends before it, and what ends the list behind it."""
    if line in (b"],", b"]}"):
        return [], line
    try:
        return [_parsed(line.removesuffix(b","))], b""
    except ValueError:  # no JSON: the end of a list stands behind it
        if not line.endswith((b"],", b"]}")):
            raise
        return [_parsed(line[:-2])], line[-2:]


class Packed:
    """Rows, compressed into a temporary file as they come: one of what was read of a file takes some 50 bytes there."""

    def __init__(self) -> None:
        with room_for("the list of what was read"):
            self._packer, self._file = zlib.compressobj(1), tempfile.TemporaryFile(prefix="moe-rows-")  # noqa: SIM115

    def add(self, value: Any) -> None:
        with room_for("the list of what was read"):
            self._file.write(self._packer.compress(f"{row(value)}\n".encode()))

    def __iter__(self) -> Iterator[str]:
        with room_for("the list of what was read"):
            self._file.write(self._packer.flush(zlib.Z_SYNC_FLUSH))  # further rows may follow
            self._file.seek(0)
        unpacker, rest = zlib.decompressobj(), b""
        while piece := self._file.read(PIECE):
            *lines, rest = (rest + unpacker.decompress(piece)).split(b"\n")
            yield from (line.decode() for line in lines)

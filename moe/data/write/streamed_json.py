"""JSON of very many rows, of which no second copy is in memory: written in pieces, and held compressed until then."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any


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


class Packed:
    """Rows, compressed as they come: what was read of a file takes some 50 bytes, as a dict it would take 600."""

    def __init__(self) -> None:
        self._packer, self._parts = zlib.compressobj(1), list[bytes]()

    def add(self, value: Any) -> None:
        if part := self._packer.compress(f"{row(value)}\n".encode()):
            self._parts.append(part)

    def __iter__(self) -> Iterator[str]:
        unpacker, rest = zlib.decompressobj(), b""
        for part in [*self._parts, self._packer.copy().flush()]:
            *lines, rest = (rest + unpacker.decompress(part)).split(b"\n")
            yield from (line.decode() for line in lines)

"""A .txt file as documents.

- A line that is exactly the tokenizer's EOS (`separator`) ends a document and is no part of one. Where there is such a
  line in the first PEEK_CHARS characters, nothing else ends one, up to MOST_CHARS.
- Without such lines a file is cut at the first blank line after TXT_CHARS characters (at the next line end after four
  times as many), so that a book neither becomes one endless document nor loses its context line by line.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import pyarrow as pa

from moe.data.text.files import Unit
from moe.data.text.rows import Batch
from moe.data.text.streams import open_stream
from moe.data.text.tables import BATCH_BYTES

TXT_CHARS = 16 << 10
PEEK_CHARS = 1 << 20
MOST_CHARS = 16 << 20  # of a document between separators: it is held in memory


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(4 * TXT_CHARS):  # a bound: a file may be one endless line
        yield line


def _is_mark(line: str, separator: str | None) -> bool:
    return separator is not None and line.startswith(separator) and line.rstrip("\r\n") == separator


def _pieces(lines: Iterator[str], separator: str | None) -> Iterator[str | None]:
    """The documents; None for each separator, which follows the document that it ends."""
    front: list[str] = []
    size = 0
    for line in lines:
        front.append(line)
        size += len(line)
        if size >= PEEK_CHARS:
            break
    marked = any(_is_mark(line, separator) for line in front)
    blank_after, most = (MOST_CHARS, MOST_CHARS) if marked else (TXT_CHARS, 4 * TXT_CHARS)
    parts: list[str] = []
    size = 0
    for line in itertools.chain(front, lines):
        if _is_mark(line, separator):
            if parts:
                yield "".join(parts)
            yield None
            parts, size = [], 0
            continue
        parts.append(line)
        size += len(line)
        if (size >= blank_after and not line.strip()) or size >= most:
            yield "".join(parts)
            parts, size = [], 0
    if size:
        yield "".join(parts)


def read_txt(unit: Unit, separator: str | None) -> Iterator[Batch]:
    """Raises BadFileError where the file breaks."""
    pieces: list[bytes] = []
    rows: list[int] = []
    marks: list[int] = []
    row = before = held = 0

    def batch(now: int) -> Batch:
        return Batch(pa.array(pieces, pa.large_binary()), None, list(rows), now - before, separators=marks)

    with open_stream(unit.file) as (unpacked, raw):
        text = io.TextIOWrapper(unpacked, "utf-8", "surrogateescape", newline="")
        lines = _lines(text)
        first = next(lines, "").removeprefix("\ufeff")
        for piece in _pieces(itertools.chain([first] if first else [], lines), separator):
            if piece is None:
                marks.append(row)
                continue
            pieces.append(piece.encode("utf-8", "surrogateescape"))
            rows.append(row)
            row += 1
            held += len(piece)
            if held >= BATCH_BYTES:
                yield batch(raw.tell())
                before, held, marks, pieces, rows = raw.tell(), 0, [], [], []
        yield batch(raw.tell())

"""Rows of a unit as Arrow batches of text and id: only those two columns are read, and only a few MB at a time.

A .txt file is cut into documents at the first blank line after TXT_CHARS characters (at the next line end after four
times as many), so that a book neither becomes one endless document nor loses its context line by line.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from moe.data.hub import HubFile
from moe.data.text.errors import BadFileError
from moe.data.text.files import SourceFile, Unit
from moe.data.text.rows import Batch

BATCH_ROWS = 1024
READ_ROWS = 128
BATCH_BYTES = 2 << 20
TXT_CHARS = 16 << 10
PEEK_ROWS = 1000
ID_COLUMN = "id"
BLOCK_BYTES = 8 << 20  # fetched from the hub at once
FOOTER_BYTES = 512 << 10


def open_source(file: SourceFile, *, block_bytes: int = BLOCK_BYTES) -> BinaryIO:
    """The file's bytes, from the disk or, in blocks, from the hub."""
    if not file.remote:
        return open(file.path, "rb")
    sha256 = re.search("[0-9a-f]{64}", file.version)  # git's names of contents are shorter
    raw = HubFile(file.path, file.size, block_bytes=block_bytes, sha256=sha256[0] if sha256 else None)
    return io.BufferedReader(raw, 1 << 20)


@contextmanager
def open_parquet(file: SourceFile, *, block_bytes: int = BLOCK_BYTES) -> Iterator[pq.ParquetFile]:
    """The open file, read through a small buffer. Faults of the file become BadFileError."""
    try:
        with open_source(file, block_bytes=block_bytes) as raw:
            # pre_buffer would hold whole column chunks of every row group in memory
            yield pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise BadFileError(file.name, f"not a readable parquet file ({first_line(error)}); fetch it again") from error


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def read_batches(unit: Unit, text_column: str) -> Iterator[Batch]:
    """The unit's rows, in order. Raises BadFileError where the file ends or breaks before they do."""
    reader = {"parquet": _read_parquet, "txt": _read_txt}.get(unit.file.kind, _read_jsonl)
    return reader(unit, text_column)


def _is_key(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)


def _read_parquet(unit: Unit, text_column: str) -> Iterator[Batch]:
    with open_parquet(unit.file) as parquet:
        names = parquet.schema_arrow.names
        columns = [text_column] + ([ID_COLUMN] if ID_COLUMN in names and text_column != ID_COLUMN else [])
        if len(columns) > 1 and not _is_key(parquet.schema_arrow.field(ID_COLUMN).type):
            columns.pop()
        groups = range(unit.begin, unit.end)
        rows = sum(parquet.metadata.row_group(i).num_rows for i in groups)
        first = sum(parquet.metadata.row_group(i).num_rows for i in range(unit.begin))
        read_rows = max(1, min(READ_ROWS, BATCH_BYTES * rows // max(1, unit.weight)))
        held: list[pa.RecordBatch] = []
        held_bytes = done = 0

        def batch() -> Batch:
            texts = pa.concat_arrays([part.column(text_column) for part in held])
            ids = pa.concat_arrays([part.column(ID_COLUMN) for part in held]) if len(columns) > 1 else None
            start = first + done - len(texts)
            return Batch(texts, ids, range(start, start + len(texts)), texts.nbytes)

        # read in small steps, as rows may be large; handed on in larger ones, as each costs the encoder 2 ms
        for part in parquet.iter_batches(read_rows, row_groups=list(groups), columns=columns, use_threads=False):
            if held and held_bytes + part.nbytes > BATCH_BYTES:  # two large rows would cost the encoder twice
                yield batch()
                held, held_bytes = [], 0
            held.append(part)
            held_bytes += part.nbytes
            done += part.num_rows
            if sum(p.num_rows for p in held) >= BATCH_ROWS:
                yield batch()
                held, held_bytes = [], 0
        if held:
            yield batch()
        if done != rows:
            raise BadFileError(unit.file.name, f"{done} of {rows} rows could be read; fetch it again")


def _lines(raw: IO[bytes], unit: Unit) -> Iterator[tuple[int, bytes, int]]:
    """(position or line number, line, position of the file) of the lines that start in the unit's range."""
    if unit.file.kind == "jsonl.gz":
        with gzip.open(raw) as unzipped:
            for number, line in enumerate(unzipped):
                yield number, line, raw.tell()
        return
    position = 0
    if unit.begin:  # the line that crosses the cut belongs to the unit before
        raw.seek(unit.begin - 1)
        position = unit.begin - 1 + len(raw.readline())
    while position < unit.end:
        line = raw.readline()
        if not line:
            return
        yield position, line, position + len(line)
        position += len(line)


def _encodes(text: str) -> bool:
    try:
        return text.isascii() or text.encode() is not None
    except UnicodeEncodeError:
        return False


def parse_line(line: bytes, text_column: str) -> tuple[str | None, str | None, str | None]:
    """(text, id, fault) of one jsonl line."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return None, None, "invalid_utf8"
    except (ValueError, RecursionError):
        return None, None, "bad_json"
    if not isinstance(row, dict):
        return None, None, "bad_json"
    text, key = row.get(text_column), row.get(ID_COLUMN) if text_column != ID_COLUMN else None
    if text is None or not isinstance(text, str):
        return None, None, "null" if text is None else "wrong_type"
    if not _encodes(text):  # a lone surrogate escape
        return None, None, "invalid_utf8"
    return text, str(key) if isinstance(key, (str, int)) and _encodes(str(key)) else None, None


def _read_jsonl(unit: Unit, text_column: str) -> Iterator[Batch]:
    texts: list[str] = []
    ids: list[str | None] = []
    rows: list[int] = []
    bad: list[tuple[str, int]] = []
    size = before = unit.begin if unit.file.kind == "jsonl" else 0

    def batch(now: int) -> Batch:
        column = pa.array(ids, pa.large_string()) if any(i is not None for i in ids) else None
        return Batch(pa.array(texts, pa.large_string()), column, list(rows), now - before, list(bad))

    try:
        with open_source(unit.file) as raw:
            held = 0
            for row, line, position in _lines(raw, unit):
                size = position
                if not line.strip():
                    continue
                text, key, fault = parse_line(line, text_column)
                if fault is not None:
                    bad.append((fault, row))
                else:
                    assert text is not None
                    texts.append(text)
                    ids.append(key)
                    rows.append(row)
                held += len(line)
                if held >= BATCH_BYTES or len(texts) >= BATCH_ROWS:
                    yield batch(size)
                    before, held = size, 0
                    for column in (texts, ids, rows, bad):
                        column.clear()  # type: ignore[attr-defined]
            yield batch(size)
    except (OSError, EOFError, zlib.error) as error:
        raise BadFileError(
            unit.file.name, f"cannot be read to its end ({first_line(error)}); fetch it again"
        ) from error


def peek_jsonl(file: SourceFile, text_column: str) -> None:
    """BadFileError when none of the first rows of the file has `text_column`, or none is a JSON object."""
    seen: dict[str, None] = {}
    try:
        with open_source(file) as raw:
            for _, line, _ in itertools.islice(_lines(raw, Unit(0, file, 0, file.size, 0)), PEEK_ROWS):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(row, dict):
                    if text_column in row:
                        return
                    seen.update(dict.fromkeys(row))
    except (OSError, EOFError, zlib.error) as error:
        raise BadFileError(file.name, f"cannot be read ({first_line(error)}); fetch it again") from error
    if not seen:
        raise BadFileError(file.name, "its first lines are no JSON objects; one object a line is expected")
    raise BadFileError(
        file.name, f"no column '{text_column}'; there are {', '.join(seen)}: choose one with --text-column"
    )


def _read_txt(unit: Unit, text_column: str) -> Iterator[Batch]:
    del text_column
    pieces: list[bytes] = []
    rows: list[int] = []
    row = before = held = 0

    def batch(now: int) -> Batch:
        return Batch(pa.array(pieces, pa.large_binary()), None, list(rows), now - before)

    try:
        with open_source(unit.file) as raw, io.TextIOWrapper(raw, "utf-8", "surrogateescape", newline="") as lines:
            for piece in _pieces(lines):
                pieces.append(piece.encode("utf-8", "surrogateescape"))
                rows.append(row)
                row += 1
                held += len(piece)
                if held >= BATCH_BYTES:
                    yield batch(raw.tell())
                    before, held, pieces, rows = raw.tell(), 0, [], []
            yield batch(raw.tell())
    except OSError as error:
        raise BadFileError(unit.file.name, f"cannot be read to its end ({first_line(error)})") from error


def _pieces(lines: io.TextIOWrapper) -> Iterator[str]:
    parts: list[str] = []
    size = 0
    while line := lines.readline(4 * TXT_CHARS):  # a bound: a file may be one endless line
        parts.append(line)
        size += len(line)
        if (size >= TXT_CHARS and not line.strip()) or size >= 4 * TXT_CHARS:
            yield "".join(parts)
            parts, size = [], 0
    if size:
        yield "".join(parts)

"""Rows of tables in Arrow's memory: parquet, Arrow IPC, csv and tsv. Only the text and id columns are read.

- Read in small steps, as rows may be large; handed on in larger ones, as each costs the encoder 2 ms.
- csv: the first row names the columns, a quoted value may hold line ends, a row with another number of values is
  skipped and counted (`bad_csv`); a file with a quote inside of a quoted value is refused. An empty value is an empty
  document, not a missing one.
- Arrow: a stream or a file, one record batch in memory at a time.
"""

from __future__ import annotations

import csv
import io
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from moe.data.text.columns import Column, absent, id_column_of, once, text_column_of
from moe.data.text.complete import Quotes, ipc_file_error, ipc_stream_error, parquet_error
from moe.data.text.errors import BadFileError
from moe.data.text.files import SourceFile, Unit
from moe.data.text.looks import HEAD_BYTES, pointer_or_page
from moe.data.text.rows import Batch
from moe.data.text.streams import BLOCK_BYTES, BROKEN, BUFFER_BYTES, first_line, open_source, open_stream

BATCH_ROWS = 1024
READ_ROWS = 128
BATCH_BYTES = 2 << 20
FOOTER_BYTES = 512 << 10
CSV_BLOCK_BYTES = 16 << 20  # a row has to fit
IPC_FILE = b"ARROW1"


@contextmanager
def open_parquet(file: SourceFile, *, block_bytes: int = BLOCK_BYTES) -> Iterator[pq.ParquetFile]:
    """The open file, read through a small buffer. Errors of the file become BadFileError."""
    try:
        with open_source(file, block_bytes=block_bytes) as raw:
            # pre_buffer would hold complete column chunks of every row group in memory
            parquet = pq.ParquetFile(raw, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True)
            if not file.remote and (reason := parquet_error(raw, parquet.metadata)):
                raise BadFileError(file.name, reason)
            yield parquet
    except BROKEN as error:
        raise BadFileError(file.name, _not_readable(file, "parquet", error)) from error


def _not_readable(file: SourceFile, kind: str, error: BaseException) -> str:
    try:
        with open_source(file, block_bytes=HEAD_BYTES) as raw:
            instead = pointer_or_page(raw.read(HEAD_BYTES))
    except OSError:
        instead = None
    return f"is {instead}" if instead else f"not a readable {kind} file ({first_line(error)}); fetch it again"


def read_parquet(unit: Unit, text_column: str, id_column: str | None) -> Iterator[Batch]:
    """Raises BadFileError where the file breaks, or ends before its rows do."""
    with open_parquet(unit.file) as parquet:
        schema = parquet.schema_arrow
        text = text_column_of(schema, text_column, unit.file.name)
        key = id_column_of(schema, id_column, text)
        groups = range(unit.begin, unit.end)
        rows = sum(parquet.metadata.row_group(i).num_rows for i in groups)
        first = sum(parquet.metadata.row_group(i).num_rows for i in range(unit.begin))
        read_rows = max(1, min(READ_ROWS, BATCH_BYTES * rows // max(1, unit.weight)))
        paths = [column.path for column in (text, key) if column is not None]
        parts = parquet.iter_batches(read_rows, row_groups=list(groups), columns=paths, use_threads=False)
        done = first
        for batch in batches((_columns(part, text, key) for part in parts), first=first):
            done += len(batch.texts)
            yield batch
        if done - first != rows:
            raise BadFileError(unit.file.name, f"{done - first} of {rows} rows could be read; fetch it again")


Columns = tuple[pa.Array, pa.Array | None]  # texts and ids


def _columns(part: pa.RecordBatch, text: Column, key: Column | None) -> Columns:
    return text.of(part), key.of(part) if key is not None else None


def batches(parts: Iterable[Columns], *, first: int = 0, progress: Callable[[], int] | None = None) -> Iterator[Batch]:
    """Small parts, which all have ids or none, put together. `progress`: the position of the file; None: text bytes."""
    held: list[Columns] = []
    held_bytes = 0
    done, before = first, 0  # what was read ahead counts with the first

    def batch() -> Batch:
        nonlocal done, before, held, held_bytes
        texts = pa.concat_arrays([part[0] for part in held])
        ids = pa.concat_arrays([part[1] for part in held]) if held[0][1] is not None else None
        start, weight = done, texts.nbytes
        if progress:
            weight, before = progress() - before, progress()
        done, held, held_bytes = done + len(texts), [], 0
        return Batch(texts, ids, range(start, done), weight)

    for part in parts:
        size = sum(column.nbytes for column in part if column is not None)
        if held and held_bytes + size > BATCH_BYTES:  # two large rows would cost the encoder twice
            yield batch()
        held.append(part)
        held_bytes += size
        if sum(len(p[0]) for p in held) >= BATCH_ROWS:
            yield batch()
    if held:
        yield batch()


@contextmanager
def _open_ipc(
    file: SourceFile, fields: list[int] | None = None
) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """(schema, record batches) of an Arrow stream or file, with these columns only; None: all."""
    try:
        with open_source(file) as raw:
            is_file = raw.read(len(IPC_FILE)) == IPC_FILE
            raw.seek(0)
            options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
            if is_file:
                reader = pa.ipc.open_file(raw, options=options)
                if reason := ipc_file_error(raw):
                    raise BadFileError(file.name, reason)
                yield reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                stream = pa.ipc.open_stream(raw, options=options)
                yield stream.schema, _complete_stream(file, raw, stream)
    except BROKEN as error:
        raise BadFileError(file.name, _not_readable(file, "Arrow", error)) from error


def _complete_stream(file: SourceFile, raw: BinaryIO, stream: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield from stream
    if error := ipc_stream_error(raw):
        raise BadFileError(file.name, error)


def peek_arrow(file: SourceFile, text_column: str) -> None:
    """BadFileError unless the file is Arrow and has the text column."""
    with _open_ipc(file) as (schema, _):
        text_column_of(schema, text_column, file.name)


def read_arrow(unit: Unit, text_column: str, id_column: str | None) -> Iterator[Batch]:
    """Raises BadFileError where the file breaks."""
    with _open_ipc(unit.file) as (schema, _):
        text = text_column_of(schema, text_column, unit.file.name)
        key = id_column_of(schema, id_column, text)
    fields = {schema.get_field_index(column.top) for column in (text, key) if column is not None}
    with _open_ipc(unit.file, sorted(fields)) as (_, parts):
        small = (part.slice(i, READ_ROWS) for part in parts for i in range(0, part.num_rows, READ_ROWS))
        yield from batches(_columns(part, text, key) for part in small)


def _delimiter(file: SourceFile) -> str:
    return "\t" if file.kind.startswith("tsv") else ","


def peek_csv(file: SourceFile, text_column: str) -> list[str]:
    """The columns' names. BadFileError where the text column is not among them once."""
    with open_stream(file) as (unpacked, _):
        text = io.TextIOWrapper(unpacked, "utf-8-sig", "replace", newline="")
        try:
            names = next(csv.reader(text, delimiter=_delimiter(file)), [])
        except csv.Error as error:
            raise BadFileError(file.name, f"its first row cannot be read ({error})") from error
    once(file.name, text_column, names)
    if text_column not in names:
        raise absent(file.name, text_column, names)
    return names


@contextmanager
def _unheard(handler: Callable) -> Iterator[list[Any]]:
    """Whether pyarrow failed to call `handler`, as for a row that is no UTF-8: it only prints that, as a traceback."""
    failed: list[Any] = []
    usual = sys.unraisablehook
    sys.unraisablehook = lambda failure: failed.append(1) if failure.object is handler else usual(failure)
    try:
        yield failed
    finally:
        sys.unraisablehook = usual


def read_csv(unit: Unit, text_column: str, id_column: str | None) -> Iterator[Batch]:
    """Raises BadFileError where the file breaks."""
    names = peek_csv(unit.file, text_column)
    wanted = [text_column]
    if id_column is not None and id_column != text_column and names.count(id_column) == 1:
        wanted.append(id_column)
    bad: deque[tuple[str, int]] = deque()  # of what was parsed, and not yet of a batch
    seen = passed = 0

    def skip(row: Any) -> str:
        bad.append(("bad_csv", (row.number or 2) - 2))  # numbered from 1, the header being the first
        return "skip"

    def whole() -> None:
        if quotes.error:
            raise BadFileError(unit.file.name, quotes.error)

    with _unheard(skip) as failed, open_stream(unit.file) as (unpacked, raw):
        quotes = Quotes(unpacked, _delimiter(unit.file))
        try:
            parts = arrow_csv.open_csv(
                quotes,
                arrow_csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK_BYTES),
                arrow_csv.ParseOptions(
                    delimiter=_delimiter(unit.file), newlines_in_values=True, invalid_row_handler=skip
                ),
                arrow_csv.ConvertOptions(
                    include_columns=wanted, column_types=dict.fromkeys(wanted, pa.binary()), check_utf8=False
                ),
            )
            small = (part.slice(i, READ_ROWS) for part in parts for i in range(0, part.num_rows, READ_ROWS))
            columns = ((part.column(0), part.column(1) if len(wanted) > 1 else None) for part in small)
            for batch in batches(columns, progress=raw.tell):
                whole()
                rows = np.asarray(batch.rows) + passed  # bad rows are in no part, and count in the file
                while bad and bad[0][1] - len(batch.bad) <= rows[-1]:
                    batch.bad.append(bad.popleft())
                rows += np.searchsorted([row - place for place, (_, row) in enumerate(batch.bad)], rows, side="right")
                batch.rows, seen, passed = rows.tolist(), seen + len(rows), passed + len(batch.bad)
                yield batch
        except pa.ArrowException as error:
            whole()
            if failed:
                bare = "a row with another number of values than names is not valid UTF-8 either"
                fix = "`iconv -c -f UTF-8 -t UTF-8` makes a copy without such bytes"
                raise BadFileError(unit.file.name, f"{bare} (after row {seen:,}); {fix}") from error
            fix = f"after row {seen:,}; a quote that is not closed, or a row above {CSV_BLOCK_BYTES >> 20} MB?"
            raise BadFileError(unit.file.name, f"not a readable csv file ({first_line(error)}) {fix}") from error
        whole()
        if bad:
            yield Batch(pa.array([], pa.binary()), None, range(0), 0, list(bad))

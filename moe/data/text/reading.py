"""Rows of a unit as Arrow batches of text and id, a few MB at a time; each kind of file has a module of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moe.data.text.columns import ID_COLUMN
from moe.data.text.errors import BadFileError
from moe.data.text.files import SourceFile, Unit
from moe.data.text.json_array import is_array, peek_json, read_json
from moe.data.text.lines import peek_jsonl, read_jsonl
from moe.data.text.looks import HEAD_BYTES, head_error, pointer_or_page
from moe.data.text.plain_text import read_txt
from moe.data.text.rows import Batch
from moe.data.text.streams import open_source, open_stream
from moe.data.text.tables import peek_arrow, peek_csv, read_arrow, read_csv, read_parquet

READERS = {
    "parquet": read_parquet,
    "arrow": read_arrow,
    "csv": read_csv,
    "tsv": read_csv,
    "jsonl": read_jsonl,
    "json": read_json,
}
PEEKS = {"arrow": peek_arrow, "csv": peek_csv, "tsv": peek_csv, "jsonl": peek_jsonl, "json": peek_json}


def _form(kind: str) -> str:
    return kind.partition(".")[0]


def read_batches(
    unit: Unit, text_column: str, *, id_column: str | None = ID_COLUMN, separator: str | None = None
) -> Iterator[Batch]:
    """The unit's rows, in order. `separator`: the line that ends a document of a .txt.

    Raises BadFileError where the file ends or breaks before they do.
    """
    form = _form(unit.file.kind)
    return read_txt(unit, separator) if form == "txt" else READERS[form](unit, text_column, id_column)


def _head_error(file: SourceFile) -> str | None:
    try:
        with open_stream(file, block_bytes=HEAD_BYTES) as (unpacked, _):
            return head_error(unpacked.read(HEAD_BYTES), file.name)
    except BadFileError:  # not packed as its name says
        with open_source(file, block_bytes=HEAD_BYTES) as raw:
            instead = pointer_or_page(raw.read(HEAD_BYTES))
        if instead is None:
            raise
        return f"is {instead}"


def opened(unit: Unit, text_column: str) -> Unit:
    """The unit, whose file has been looked at. Raises BadFileError as `looked_at` does."""
    if unit.looked_at:
        return unit
    return replace(unit, file=looked_at(unit.file, text_column), looked_at=True)


def looked_at(file: SourceFile, text_column: str) -> SourceFile:
    """A file of any kind but parquet, its kind corrected: a `.json` of lines is jsonl.

    Raises BadFileError for what is no text in UTF-8, and where the text column is not there.
    """
    form = _form(file.kind)
    if form != "arrow" and (error := _head_error(file)):
        raise BadFileError(file.name, error)
    if form == "json" and not is_array(file):
        file = file.of_kind(file.kind.replace("json", "jsonl"))
        form = "jsonl"
    if form in PEEKS:
        PEEKS[form](file, text_column)
    return file

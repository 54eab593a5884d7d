"""The units of work that files are cut into.

- A unit is a fixed range of rows (row groups of a parquet file, bytes of a jsonl file), never a function of the
  workers.
- jsonl.gz and txt files are one unit each: they can only be read from the front.
"""

from __future__ import annotations

import os
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from moe.data.text.errors import BadFileError
from moe.data.text.files import SourceFile, Unit
from moe.data.text.reading import FOOTER_BYTES, open_parquet, peek_jsonl

UNIT_BYTES = 256 << 20  # of text: enough English for a full shard of 64 MB, which the merge need not touch


def check_text_column(schema: pa.Schema, column: str, file: str) -> None:
    """BadFileError unless `column` holds text; names the columns there are."""
    if column not in schema.names:
        raise BadFileError(
            file, f"no column '{column}'; there are {', '.join(schema.names)}: choose one with --text-column"
        )
    kind = schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(check(value) for check in checks):
        raise BadFileError(file, f"column '{column}' is {kind}, not text; choose another with --text-column")


def parquet_ranges(metadata: pq.FileMetaData, column: str) -> list[tuple[int, int, int]]:
    """(begin, end, bytes of text) of consecutive row groups holding about UNIT_BYTES of text each."""
    ranges, begin, size = [], 0, 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        size += next(
            group.column(j).total_uncompressed_size
            for j in range(group.num_columns)
            if group.column(j).path_in_schema.split(".")[0] == column
        )
        if size >= UNIT_BYTES or i == metadata.num_row_groups - 1:
            ranges.append((begin, i + 1, size))
            begin, size = i + 1, 0
    return ranges


def file_ranges(file: SourceFile, text_column: str) -> list[tuple[int, int, int]]:
    """(begin, end, weight) of the file's units. Raises BadFileError for a file that cannot be read at all."""
    if not (file.remote or os.path.exists(file.path)):
        raise BadFileError(file.name, f"is a link to {file.path}, which is not there; mend it or delete it")
    if file.size == 0:
        raise BadFileError(file.name, "the file is empty (0 bytes); delete it or fetch it again")
    if file.kind == "parquet":
        with open_parquet(file, block_bytes=FOOTER_BYTES) as parquet:
            check_text_column(parquet.schema_arrow, text_column, file.name)
            if parquet.metadata.num_rows == 0:
                raise BadFileError(file.name, "the file has no rows; delete it or fetch it again")
            return parquet_ranges(parquet.metadata, text_column)
    if file.kind != "txt":
        peek_jsonl(file, text_column)
    if file.kind == "jsonl":
        cuts = [*range(0, file.size, UNIT_BYTES), file.size]
        return [(a, b, b - a) for a, b in pairwise(cuts)]
    return [(0, file.size, file.size)]


def plan_units(files: list[SourceFile], text_column: str) -> tuple[list[Unit], list[BadFileError]]:
    """All units in order, and the files that cannot be read."""
    units: list[Unit] = []
    bad: list[BadFileError] = []
    for index, file in enumerate(files):
        try:
            units += [Unit(index, file, *cut) for cut in file_ranges(file, text_column)]
        except BadFileError as error:
            bad.append(error)
    return units, bad

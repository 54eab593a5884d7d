"""The units of work that files are cut into.

- A unit is a fixed range of rows (row groups of a parquet file, bytes of a jsonl file), never a function of the
  workers.
- Packed files, text, tables of csv and Arrow, JSON arrays are one unit each: they can only be read from the front.
"""

from __future__ import annotations

import os
from itertools import pairwise

import pyarrow.parquet as pq

from moe.data.text.columns import Column, text_column_of
from moe.data.text.errors import BadFileError
from moe.data.text.files import SourceFile, Unit
from moe.data.text.reading import looked_at
from moe.data.text.tables import FOOTER_BYTES, open_parquet

UNIT_BYTES = 256 << 20  # of text: enough English for a full shard of 64 MB, which the merge need not touch


def parquet_ranges(metadata: pq.FileMetaData, column: Column) -> list[tuple[int, int, int]]:
    """(begin, end, bytes of text) of consecutive row groups holding about UNIT_BYTES of text each."""
    ranges, begin, size = [], 0, 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        size += next(
            group.column(j).total_uncompressed_size
            for j in range(group.num_columns)
            if f"{group.column(j).path_in_schema}.".startswith(f"{column.path}.")
        )
        if size >= UNIT_BYTES or i == metadata.num_row_groups - 1:
            ranges.append((begin, i + 1, size))
            begin, size = i + 1, 0
    return ranges


def file_units(index: int, file: SourceFile, text_column: str) -> list[Unit]:
    """The file's units. Raises BadFileError for a file that cannot be read at all."""
    if not (file.remote or os.path.exists(file.path)):
        raise BadFileError(file.name, f"is a link to {file.path}, which is not there; mend it or delete it")
    if file.size == 0:
        raise BadFileError(file.name, "the file is empty (0 bytes); delete it or fetch it again")
    if file.kind == "parquet":
        with open_parquet(file, block_bytes=FOOTER_BYTES) as parquet:
            column = text_column_of(parquet.schema_arrow, text_column, file.name)
            if parquet.metadata.num_rows == 0:
                raise BadFileError(file.name, "the file has no rows; delete it or fetch it again")
            return [Unit(index, file, *cut) for cut in parquet_ranges(parquet.metadata, column)]
    file = looked_at(file, text_column)
    cuts = [*range(0, file.size, UNIT_BYTES), file.size] if file.kind == "jsonl" else [0, file.size]
    return [Unit(index, file, a, b, b - a) for a, b in pairwise(cuts)]


def plan_units(files: list[SourceFile], text_column: str) -> tuple[list[Unit], list[BadFileError]]:
    """All units in order, and the files that cannot be read."""
    units: list[Unit] = []
    bad: list[BadFileError] = []
    for index, file in enumerate(files):
        try:
            units += file_units(index, file, text_column)
        except BadFileError as error:
            bad.append(error)
    return units, bad

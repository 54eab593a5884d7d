"""What a conversion read, recorded by its bytes, and held against files that were touched since.

Files are known by samples (content.py). Where a file's stat is not the recorded one and its samples are, its bytes are
hashed again and compared, up to MOST_REREAD bytes in total; beyond that it is taken for the same, and a line says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from moe.data.text.content import MOST_REREAD, hash_of, stat_of
from moe.data.text.files import SourceFile, Unit


class Read(TypedDict):
    """Bytes [begin, end) of a file as they were read, and its stat then."""

    begin: int
    end: int
    xxh128: str
    stat: list[int]


def record_of(unit: Unit) -> Read | None:
    """What the unit's bytes are now; None for a file of the hub, which has its own hash, or where none can be read."""
    if unit.file.remote:
        return None
    try:
        begin, end = _span(unit)
        stat = stat_of(unit.file.path)
        digest = hash_of(unit.file.path, begin, end)
        return None if stat is None else Read(begin=begin, end=end, xxh128=digest, stat=stat)
    except (OSError, pa.ArrowException):
        return None


def _span(unit: Unit) -> tuple[int, int]:
    """The bytes of the unit; of parquet those of all columns of its row groups (its footer is in the samples)."""
    if unit.file.kind != "parquet":
        return unit.begin, unit.end
    with open(unit.file.path, "rb") as file:  # pyarrow would take a path for a URI
        metadata = pq.read_metadata(file)
    spans = []
    for group in map(metadata.row_group, range(unit.begin, unit.end)):
        for column in map(group.column, range(group.num_columns)):
            begin = column.dictionary_page_offset or column.data_page_offset
            spans.append((begin, begin + column.total_compressed_size))
    return min(begin for begin, _ in spans), max(end for _, end in spans)


def edited(reads: Iterable[tuple[SourceFile, Read | None]], *, full: bool, say: Callable[[str], None]) -> list[str]:
    """Names of files whose samples are the recorded ones and whose bytes are not.

    full: hash every file again, whatever its stat and size.
    """
    found: list[str] = []
    beyond: dict[str, None] = {}
    left = None if full else MOST_REREAD
    for file, read in reads:
        if read is None or file.remote or file.name in found:
            continue
        if not full and stat_of(file.path) == read["stat"]:
            continue
        if left is not None and read["end"] - read["begin"] > left:
            beyond[file.name] = None
            continue
        left = None if left is None else left - (read["end"] - read["begin"])
        try:
            same = hash_of(file.path, read["begin"], read["end"]) == read["xxh128"]
        except OSError:
            same = False
        if not same:
            found.append(file.name)
    if beyond:
        say(
            f"note: {len(beyond)} files were touched and are more than {MOST_REREAD / 1e9:g} GB: taken for the same by "
            "size and samples; --verify full hashes all of them"
        )
    return found

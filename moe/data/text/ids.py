"""Which column names a document: its hash decides whether that goes to train or to val.

Judged once, before the first unit, and kept: on the first ID_ROWS rows of the first file that has such a column, looked
for in the first file of each kind. A column of few values would send all documents of one value to the same side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from moe.data.text.columns import ID_COLUMN, id_column_of, key_bytes, text_column_of
from moe.data.text.errors import BadFileError
from moe.data.text.files import Unit
from moe.data.text.reading import opened, read_batches
from moe.data.text.tables import FOOTER_BYTES, open_parquet

ID_ROWS = 10_000
ID_BYTES = 64 << 20  # of text read for them: enough for all but the longest documents
DISTINCT = 0.99  # a crawl repeats a few; a column of labels, dates or sources repeats most


def _ids(unit: Unit, text_column: str) -> Iterator[list[bytes | None]]:
    if unit.file.kind == "parquet":  # without the text: from the hub that would be fetched for nothing
        with open_parquet(unit.file, block_bytes=FOOTER_BYTES) as parquet:
            text = text_column_of(parquet.schema_arrow, text_column, unit.file.name)
            key = id_column_of(parquet.schema_arrow, ID_COLUMN, text)
            if key is None:
                return
            groups = list(range(unit.begin, unit.end))
            for part in parquet.iter_batches(1024, row_groups=groups, columns=[key.path], use_threads=False):
                yield key_bytes(key.of(part))
        return
    size = 0
    for batch in read_batches(unit, text_column, id_column=ID_COLUMN):
        if batch.ids is None:
            return
        yield key_bytes(batch.ids)
        size += batch.texts.nbytes
        if size >= ID_BYTES:
            return


def _first_ids(units: Iterable[Unit], text_column: str) -> tuple[str, list[bytes]]:
    """(file, the first ids in it), of the first file that can be read; of each kind, until one has ids: a .txt has
    none, and says nothing of the tables beside it.
    """
    first, tried = "", set[str]()
    for _, group in itertools.groupby(units, key=lambda unit: unit.file_index):
        mine = list(group)
        if mine[0].file.kind in tried:
            continue
        try:
            mine[0] = opened(mine[0], text_column)  # one that is still to be opened is all of its file
            if mine[0].file.kind in tried:
                continue
            parts = itertools.chain.from_iterable(_ids(unit, text_column) for unit in mine)
            found = itertools.chain.from_iterable(parts)
            ids = [key for key in itertools.islice(found, ID_ROWS) if key]
        except BadFileError:
            continue
        if ids:
            return mine[0].file.name, ids
        first = first or mine[0].file.name
        tried.add(mine[0].file.kind)
    return first, []


def choose_id(units: Iterable[Unit], text_column: str) -> tuple[str | None, str]:
    """(the id column, None for the text itself; what to say of it)."""
    if text_column == ID_COLUMN:
        return None, "documents are identified by their text"
    file, ids = _first_ids(units, text_column)
    if not ids:
        text = f"documents are identified by their text (no usable column '{ID_COLUMN}' in the files looked at)"
        return ID_COLUMN, text
    distinct = len(set(ids))
    seen = f"{distinct:,} values in the first {len(ids):,} rows of {file}"
    if distinct < DISTINCT * len(ids):
        return None, f"documents are identified by their text: column '{ID_COLUMN}' has only {seen}"
    return ID_COLUMN, f"documents are identified by column '{ID_COLUMN}' ({seen}), by their text where there is none"

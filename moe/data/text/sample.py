"""A look at documents of a dataset: at the first, or at some from all over it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from moe.data.text.errors import BadFileError
from moe.data.text.files import Unit
from moe.data.text.reading import opened, read_batches
from moe.data.text.rows import Batch, Skipped, clean

PLACES, PLACE_CHARS = 16, 256 << 10
PLACE_SKIPPED = 10_000  # rows: where hardly any holds text, not all of a file is read
CHECK_DOCUMENTS, CHECK_CHARS, CHECK_LONGEST = 1000, 4 << 20, 128 << 10  # characters


class Spread(NamedTuple):
    """Documents from all over a dataset, and what the rows around them were."""

    texts: list[str]
    documents: int  # of the rows that were read: as many or more
    separators: int  # lines of .txt files that ended a document
    skipped: Skipped


def _batches(unit: Unit, text_column: str, separator: str | None) -> Iterator[Batch]:
    """The unit's rows as far as its file can be read."""
    try:
        yield from read_batches(opened(unit, text_column), text_column, id_column=None, separator=separator)
    except BadFileError:
        return


def _texts(unit: Unit, text_column: str, separator: str | None) -> Iterator[str]:
    for batch in _batches(unit, text_column, separator):
        yield from clean(batch, file=unit.file.name, skipped=Skipped())[0].to_pylist()


def sample_documents(units: Sequence[Unit], text_column: str, *, separator: str | None = None) -> list[str]:
    """The first documents, for holding an encoder against transformers."""
    texts: list[str] = []
    chars = 0
    for text in itertools.chain.from_iterable(_texts(unit, text_column, separator) for unit in units):
        texts.append(text[:CHECK_LONGEST])
        chars += len(texts[-1])
        if len(texts) >= CHECK_DOCUMENTS or chars >= CHECK_CHARS:
            break
    return texts


def spread_documents(units: Sequence[Unit], text_column: str, *, separator: str | None = None) -> Spread:
    """The first documents of PLACES of the units, which lie as far apart as they can."""
    count = min(PLACES, len(units))
    texts: list[str] = []
    documents = separators = 0
    skipped = Skipped()
    for unit in [units[len(units) * i // count] for i in range(count)]:
        room, bad = PLACE_CHARS, Skipped()
        for batch in _batches(unit, text_column, separator):
            for text in clean(batch, file=unit.file.name, skipped=bad)[0].to_pylist():
                documents += 1
                if room > 0:
                    texts.append(text[:room])
                    room -= len(text)
            separators += len(batch.separators)
            if room <= 0 or sum(bad.counts.values()) >= PLACE_SKIPPED:
                break
        skipped.merge(bad)
    return Spread(texts, documents, separators, skipped)

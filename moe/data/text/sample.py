"""A look at documents of a dataset: at the first, or at some from all over it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from moe.data.text.errors import BadFileError
from moe.data.text.files import Unit
from moe.data.text.reading import opened, read_batches
from moe.data.text.rows import Skipped, clean

PLACES, PLACE_CHARS = 16, 256 << 10
CHECK_DOCUMENTS, CHECK_CHARS, CHECK_LONGEST = 1000, 4 << 20, 128 << 10  # characters


def _texts(unit: Unit, text_column: str, separator: str | None) -> Iterator[str]:
    """The unit's documents as far as its file can be read."""
    try:
        for batch in read_batches(opened(unit, text_column), text_column, id_column=None, separator=separator):
            yield from clean(batch, file=unit.file.name, skipped=Skipped())[0].to_pylist()
    except BadFileError:
        return


def sample_documents(units: list[Unit], text_column: str, *, separator: str | None = None) -> list[str]:
    """The first documents, for holding an encoder against transformers."""
    texts: list[str] = []
    chars = 0
    for text in itertools.chain.from_iterable(_texts(unit, text_column, separator) for unit in units):
        texts.append(text[:CHECK_LONGEST])
        chars += len(texts[-1])
        if len(texts) >= CHECK_DOCUMENTS or chars >= CHECK_CHARS:
            break
    return texts


def spread_documents(units: Sequence[Unit], text_column: str, *, separator: str | None = None) -> list[str]:
    """The first documents of PLACES of the units, which lie as far apart as they can."""
    count = min(PLACES, len(units))
    texts: list[str] = []
    for unit in [units[len(units) * i // count] for i in range(count)]:
        room = PLACE_CHARS
        for text in _texts(unit, text_column, separator):
            texts.append(text[:room])
            room -= len(text)
            if room <= 0:
                break
    return texts

"""A look at the first documents of a dataset."""

from __future__ import annotations

from moe.data.text.errors import BadFileError
from moe.data.text.files import Unit
from moe.data.text.reading import read_batches
from moe.data.text.rows import Skipped, clean

CHECK_DOCUMENTS, CHECK_CHARS, CHECK_LONGEST = 1000, 4 << 20, 128 << 10  # characters


def sample_documents(units: list[Unit], text_column: str, *, separator: str | None = None) -> list[str]:
    """The first documents, for holding an encoder against transformers."""
    texts: list[str] = []
    chars = 0
    for unit in units:
        try:
            for batch in read_batches(unit, text_column, id_column=None, separator=separator):
                for text in clean(batch, file=unit.file.name, skipped=Skipped())[0].to_pylist():
                    texts.append(text[:CHECK_LONGEST])
                    chars += len(texts[-1])
                    if len(texts) >= CHECK_DOCUMENTS or chars >= CHECK_CHARS:
                        return texts
        except BadFileError:
            continue
    return texts

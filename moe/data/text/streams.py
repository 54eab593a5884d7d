"""A file's bytes, from the disk or the hub, unpacked as they are read: memory does not grow with the file.

- gzip is read by Python, zstd by pyarrow. Members and frames behind each other are one stream in both; one that is cut
  short is an error.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import pyarrow as pa

from moe.data.hub import HubFile
from moe.data.text.errors import BadFileError
from moe.data.text.files import SourceFile

BLOCK_BYTES = 8 << 20  # fetched from the hub at once
BUFFER_BYTES = 1 << 20
# what a broken file raises while it is read; names of columns that are no UTF-8 are a UnicodeDecodeError of pyarrow's
BROKEN = (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError)


def open_source(file: SourceFile, *, block_bytes: int = BLOCK_BYTES) -> BinaryIO:
    """The file's bytes, from the disk or, in blocks, from the hub."""
    if not file.remote:
        return open(file.path, "rb")
    raw = HubFile(file.path, file.size, block_bytes=block_bytes, listed=file.listed)
    return io.BufferedReader(raw, BUFFER_BYTES)


@contextmanager
def open_stream(file: SourceFile, *, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """(the unpacked bytes, the file itself: its position is the progress). Errors of the file become BadFileError."""
    try:
        with open_source(file, block_bytes=block_bytes) as raw:
            if file.kind.endswith(".gz"):
                with gzip.open(raw) as unzipped:
                    yield cast(BinaryIO, unzipped), raw
            elif file.kind.endswith(".zst"):
                with pa.CompressedInputStream(raw, "zstd") as unpacked:
                    yield io.BufferedReader(unpacked, BUFFER_BYTES), raw
            else:
                yield raw, raw
    except BROKEN as error:
        raise BadFileError(file.name, f"cannot be read to its end ({first_line(error)}); fetch it again") from error


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

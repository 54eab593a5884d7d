"""Whether a table's file is one table up to its last byte: what readers silently pass over is reported here.

- Parquet and Arrow files are read from their end. Of two behind each other (`cat a b`) the places in the last footer
  are those of the first's bytes, so the first's rows would be read as the last's, and the others not at all.
- An Arrow stream ends with a mark. Without it the file is cut, and behind it nobody reads.
- csv: a quoted value ends at its quote. With more behind that (an escaped `\\"`, a stray quote), readers drop the quote
  and continue, or take rows together; which was meant is unknown.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

import pyarrow.parquet as pq

STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
OLD_STREAM_END = b"\0\0\0\0"  # of streams before Arrow 0.15, whose messages have no ff ff ff ff
IPC_TAIL = 10  # length of the footer, and the magic
JOINT = b"PAR1PAR1"
GAP_BYTES = 1 << 20  # page indexes and the like between the last page and the footer, at most
SEVERAL = "several files one after the other; split it into the files that it was made of"


def parquet_error(raw: BinaryIO, metadata: pq.FileMetaData) -> str | None:
    """What is wrong with the file beyond its rows; None for nothing."""
    end = 4
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            begin = min((x for x in (column.dictionary_page_offset, column.data_page_offset) if x), default=None)
            if begin is None:
                return f"its footer names no place for column {column.path_in_schema!r}; it is damaged, get it again"
            end = max(end, begin + column.total_compressed_size)
    gap = raw.seek(0, io.SEEK_END) - 8 - metadata.serialized_size - end
    if gap < len(JOINT):
        return None
    first = max(0, gap - GAP_BYTES)  # the last file begins `gap` bytes in, less what lies before its own footer
    raw.seek(first)
    return SEVERAL if JOINT in raw.read(gap - first + len(JOINT)) else None


def ipc_file_error(raw: BinaryIO) -> str | None:
    """What is wrong with an Arrow file beyond its batches; None for nothing. Arrow itself has read its footer."""
    size = raw.seek(0, io.SEEK_END)
    raw.seek(size - IPC_TAIL)
    length = int.from_bytes(raw.read(4), "little")
    begin = size - IPC_TAIL - length
    raw.seek(begin)
    ends = _block_ends(raw.read(length))
    # the end mark, or none of an old writer, follows the last batch
    return SEVERAL if ends and begin - max(ends) > 64 else None


def _block_ends(footer: bytes) -> list[int]:
    """Where the dictionaries and record batches end, by the flatbuffer that Arrow's File.fbs describes."""
    (table,) = struct.unpack_from("<I", footer)
    (back,) = struct.unpack_from("<i", footer, table)
    fields = struct.unpack_from("<H", footer, table - back)[0] // 2 - 2
    ends = []
    for field in range(2, min(4, fields)):  # after version and schema
        (offset,) = struct.unpack_from("<H", footer, table - back + 4 + 2 * field)
        if not offset:
            continue
        at = table + offset
        at += struct.unpack_from("<I", footer, at)[0]
        for number in range(struct.unpack_from("<I", footer, at)[0]):
            ends.append(sum(struct.unpack_from("<qi4xq", footer, at + 4 + 24 * number)))
    return ends


def ipc_stream_error(raw: BinaryIO) -> str | None:
    """What is wrong with an Arrow stream whose last batch was just read."""
    end = raw.tell()
    raw.seek(0)
    mark = STREAM_END if raw.read(4) == STREAM_END[:4] else OLD_STREAM_END
    raw.seek(max(0, end - len(mark)))
    if raw.read(len(mark)) != mark:
        return "the stream has no end mark: it is cut short; fetch it again, or close its writer"
    return f"more bytes after the stream's end mark: {SEVERAL}" if raw.read(1) else None


class Quotes:
    """A csv file as it is read, its quotes looked at on the way. `error`: what is wrong with them; None for nothing."""

    def __init__(self, file: BinaryIO, delimiter: str) -> None:
        self._file, self._ends = file, f"{delimiter}\r\n".encode()
        self._held, self._before, self._inside, self._line = b"", b"\n", False, 1
        self._opened = 0
        self.error: str | None = None
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        if self.error is None:
            self._look(self._held + chunk, last=not chunk)
        return chunk

    def _look(self, text: bytes, *, last: bool) -> None:
        at, counted, keep = 0, 0, len(text)
        if text.startswith(b"\xef\xbb\xbf") and self._line == 1 and self._before == b"\n":
            at = 3
        start = at
        while (found := text.find(b'"', at)) >= 0:
            at = found + 1
            if not self._inside:
                before = text[found - 1 : found] if found > start else self._before if not start else b"\n"
                if before in (self._ends[:1], b"\r", b"\n"):
                    self._inside = True
                    self._line, counted = self._line + text.count(b"\n", counted, found), found
                    self._opened = self._line
                continue
            behind = text[at : at + 1]
            if behind == b'"':
                at += 1
            elif not behind and not last:
                keep = found  # what follows decides
                break
            elif not behind or behind in self._ends:
                self._inside = False
            else:
                self.error = f'line {self._opened}: a quote inside of a quoted value; write it twice ("")'
                return
        self._line += text.count(b"\n", counted, keep)
        self._held = text[keep:]
        self._before = text[keep - 1 : keep] or self._before
        if last and self._inside:
            self.error = f"the file ends inside a quote, which line {self._opened} opens; close it"

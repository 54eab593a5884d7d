"""The JSON files of a run folder: objects whose texts are safe to show, read as they grow."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from moe.common.paths import refuse_irregular
from moe.common.units import clean_line
from moe.runs.text import MOST_NESTED, clean_all

BLOCK = 4 << 20  # bytes of lines that are read at a time
MANY, COMPLETE = 2000, 100  # lines read at once from which on some are read in part; the last ones, which are not
WHOLE = (b'"metrics/', b'"tasks/', b'"samples/', b"\\")  # lines with one of these are not either
LATEST = b'"experts/load'  # nor is the last one with this: rows of a user's callback may be the only ones since


class Store(Protocol):
    def extend(self, rows: Iterable[dict[str, Any]], /) -> None: ...


Rows = TypeVar("Rows", bound=Store)


class Lines(Generic[Rows]):
    """The objects of a jsonl file that is being written. Parses only what has come since the last `read`.

    `rows` holds them, in what `store` makes; `keys` are those of all rows, in the order in which they appeared; `lines`
    counts what was read, damaged or not.
    only: numbers that are needed of each row. Of many lines all but the first, the last ones, and those with results of
    an evaluation or scores of tasks then have these alone: a long log is read in a quarter of the time.
    """

    def __init__(self, path: Path, store: Callable[[], Rows], only: Sequence[str] = ()):
        self.path = path
        self._store = store
        self._marks = [(key, f'"{key}": '.encode()) for key in only]
        self.error = ""  # why the file could not be read
        self._clear(-1)

    def _clear(self, inode: int) -> None:
        self.rows = self._store()
        self.keys: dict[str, None] = {}
        self.lines = 0
        self._objects = 0  # lines that are JSON objects
        self._inode, self._offset = inode, 0

    def read(self) -> Rows:
        self.error = ""
        try:
            refuse_irregular(self.path)
            with open(self.path, "rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._inode or stat.st_size < self._offset:  # a resumed run has cut its rows
                    self._clear(stat.st_ino)
                file.seek(self._offset)
                self._read(file)
        except OSError as error:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                cause = error.strerror or error
                self.error = f"{clean_line(str(self.path))} cannot be read ({cause}); shown as if it were not there"
            self._clear(-1)
        if self.lines and not self._objects:
            count = f"none of its {self.lines:,} line{'s' * (self.lines > 1)} can be read"
            self.error = f"{clean_line(str(self.path))} is damaged: {count}; shown as if it were not there"
        return self.rows

    def _read(self, file: BinaryIO) -> None:
        waiting: list[bytes] = []  # lines that may be among the last ones
        many = False
        for block in _blocks(file):
            self._offset += sum(map(len, block))
            waiting += block
            if self._marks and not many and len(waiting) > MANY:
                many = True
                self._take([waiting.pop(0)])
            if many or not self._marks:  # else it may be a short log, which is parsed as it is
                end = len(waiting) - COMPLETE if many else len(waiting)
                self._take(waiting[:end], self._marks)
                del waiting[:end]
        self._take(waiting)

    def _take(self, lines: Sequence[bytes], marks: Sequence[tuple[str, bytes]] = ()) -> None:
        """marks: where there are any, the lines are read in part."""
        found = []
        known: Any = ()
        last_first = reversed(range(len(lines)))
        latest = next((number for number in last_first if LATEST in lines[number]), -1) if marks else -1
        for number, line in enumerate(lines):
            row = numbers_of(line, marks) if marks and number != latest else None
            if row is None and (row := json_object(line)) is None:
                continue
            found.append(row)
            if row.keys() != known:  # most rows have what the row before has
                known = row.keys()
                self.keys.update(dict.fromkeys(known))
        self.rows.extend(found)
        self.lines += len(lines)
        self._objects += len(found)


def _blocks(file: BinaryIO) -> Iterator[list[bytes]]:
    """Complete lines, some MB at a time."""
    while block := file.readlines(BLOCK):
        if unfinished := block[-1][-1:] != b"\n":  # the writer is at it
            block.pop()
        yield block
        if unfinished:
            return


def numbers_of(line: bytes, marks: Sequence[tuple[str, bytes]]) -> dict[str, Any] | None:
    """The numbers at these (key, how it stands in the line); None where the line should be parsed.

    A quote inside of a text has a backslash, so a key that is found is one.
    """
    line = line.rstrip()
    if line[:1] != b"{" or line[-1:] != b"}" or any(part in line for part in WHOLE) or line.count(b"{") > 1:
        return None
    row: dict[str, Any] = {}
    for key, mark in marks:
        if (at := line.find(mark)) < 0:
            continue
        at += len(mark)
        end = line.find(b",", at)
        value = line[at : end if end >= 0 else -1]
        try:
            row[key] = int(value) if value.isdigit() else float(value)
        except ValueError:  # null, a list
            return None
    return row


def json_object(text: bytes) -> dict[str, Any] | None:
    """Its texts safe to show; None where it is no JSON object, or one nested too deeply to read."""
    try:
        row = json.loads(text)
        plain = b"\\" not in text and b"\x7f" not in text and text.isascii()
        if not plain or text.count(b"[") + text.count(b"{") > MOST_NESTED:  # else there is nothing to replace
            row = clean_all(row)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None

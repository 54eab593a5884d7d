"""The JSON files of a run folder: objects whose texts are safe to show, read as they grow."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe.common.paths import refuse_irregular
from moe.common.units import clean_line
from moe.runs.text import MOST_NESTED, clean_all

MANY, COMPLETE = 2000, 100  # lines read at once from which on some are read in part; the last ones, which are not
WHOLE = (b'"metrics/', b'"samples/', b"[[", b"\\")  # lines with one of these are not either


class Lines:
    """The objects of a jsonl file that is being written. Parses only what has come since the last `read`.

    `keys` are those of all rows, in the order in which they appeared; `lines` counts what was read, damaged or not.
    only: numbers that are needed of each row. Of many lines all but the first, the last ones and those with results of
    an evaluation then have these alone: 50,000 rows of 63 values take 2 s to parse, and 700 MB.
    """

    def __init__(self, path: Path, only: Sequence[str] = ()):
        self.path = path
        self._marks = [(key, f'"{key}": '.encode()) for key in only]
        self.rows: list[dict[str, Any]] = []
        self.keys: dict[str, None] = {}
        self.lines = 0
        self.fault = ""  # why the file could not be read
        self._inode = -1
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        self.fault = ""
        try:
            refuse_irregular(self.path)
            with open(self.path, "rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._inode or stat.st_size < self._offset:  # a resumed run has cut its rows
                    self.rows, self.keys, self.lines, self._inode, self._offset = [], {}, 0, stat.st_ino, 0
                file.seek(self._offset)
                whole = file.read()
        except OSError as error:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                cause = error.strerror or error
                self.fault = f"{clean_line(str(self.path))} cannot be read ({cause}); shown as if it were not there"
            self.rows, self.keys, self.lines, self._offset = [], {}, 0, 0
            return self.rows
        whole = whole[: whole.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.splitlines()
        last = len(lines) - COMPLETE if self._marks and len(lines) > MANY else 0
        new = []
        for number, line in enumerate(lines):
            row = numbers_of(line, self._marks) if 0 < number < last else None
            if row is None:
                row = json_object(line)
            if row is not None:
                new.append(row)
        self.rows = self.rows + new
        self.keys = self.keys | {key: None for row in new for key in row}
        self.lines += whole.count(b"\n")
        if self.lines and not self.rows:
            count = f"none of its {self.lines:,} line{'s' * (self.lines > 1)} can be read"
            self.fault = f"{clean_line(str(self.path))} is damaged: {count}; shown as if it were not there"
        return self.rows


def numbers_of(line: bytes, marks: Sequence[tuple[str, bytes]]) -> dict[str, Any] | None:
    """The numbers at these (key, how it stands in the line); None where the line should be parsed.

    A quote inside of a text has a backslash, so a key that is found is one.
    """
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

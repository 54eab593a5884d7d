"""The JSON files of a run folder: objects whose texts are safe to show, read as they grow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from moe.common.paths import refuse_irregular
from moe.common.units import clean_line
from moe.runs.text import MOST_NESTED, clean_all


class Lines:
    """The objects of a jsonl file that is being written. Parses only what has come since the last `read`.

    `keys` are those of all rows, in the order in which they appeared; `lines` counts what was read, damaged or not.
    """

    def __init__(self, path: Path):
        self.path = path
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
        new = [row for line in whole.splitlines() if (row := json_object(line)) is not None]
        self.rows = self.rows + new
        self.keys = self.keys | {key: None for row in new for key in row}
        self.lines += whole.count(b"\n")
        if self.lines and not self.rows:
            count = f"none of its {self.lines:,} line{'s' * (self.lines > 1)} can be read"
            self.fault = f"{clean_line(str(self.path))} is damaged: {count}; shown as if it were not there"
        return self.rows


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

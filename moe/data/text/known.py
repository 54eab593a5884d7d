"""What is known of very many files that were sampled before: in a temporary file without a name, a few MB in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import xxhash

from moe.common.temporary import room_for


class Lookup(Protocol):
    """As content.Known, of which one entry is asked for at a time."""

    def get(self, key: tuple[Any, ...], /) -> str | None: ...


class KnownTable:
    """Threads may share it: SQLite lets them take turns."""

    def __init__(self) -> None:
        with _room():
            self._rows = sqlite3.connect("", check_same_thread=False)
            self._rows.execute("CREATE TABLE known (key BLOB PRIMARY KEY, version TEXT) WITHOUT ROWID")

    def add(self, files: Iterable[tuple[str, str, Sequence[Any] | None]]) -> None:
        """As content.known_of. Nothing is kept of a call that raises.

        Raises:
            InputError: no room for it in the temporary folder.
            TypeError: a version that is no text.
        """
        with _room(), self._rows:
            found = ((_key((kind, *stat)), _text(version)) for kind, version, stat in files if stat)
            self._rows.executemany("INSERT OR REPLACE INTO known VALUES (?, ?)", found)

    def get(self, key: tuple[Any, ...], /) -> str | None:
        with _room():
            row = self._rows.execute("SELECT version FROM known WHERE key = ?", [_key(key)]).fetchone()
        return row and row[0]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.100} is no text")
    return value


@contextmanager
def _room() -> Iterator[None]:
    with room_for("the list of files that were read before"):
        try:
            yield
        except sqlite3.OperationalError as error:  # a full disk, no folder that can be written to
            raise OSError(str(error)) from error


def _key(values: tuple[Any, ...]) -> bytes:
    return xxhash.xxh128_digest(repr(values).encode())

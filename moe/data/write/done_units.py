"""What is known of units that are done, by Unit.key, in little memory: 21 bytes for the first unit of each file.

A million small files are as many units: with an object for each it would be 200 MB.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator
from typing import NamedTuple


class Done(NamedTuple):
    """Of a unit's done mark: both splits together, and whether one of the job's limits ended it. `item`: the folder
    that it was made in with others; None for a unit by itself.
    """

    documents: int
    tokens: int
    limited: bool
    item: str | None


class DoneUnits:
    """Done by key. Units that begin at 0 lie in columns, by the number of their file; others in a dict."""

    def __init__(self) -> None:
        self._documents, self._tokens = array("q"), array("q")
        self._item = array("i")  # 0: not done; 1: by itself; from 2 on the place in `_items`
        self._limited = bytearray()
        self._others: dict[int, Done] = {}
        self._items: list[str | None] = ["", None]
        self._place: dict[str | None, int] = {None: 1}

    def __setitem__(self, key: int, done: Done) -> None:
        file, begin = key >> 44, key & (1 << 44) - 1
        if begin:
            self._others[key] = done
            return
        if (more := file + 1 - len(self._item)) > 0:
            for column in (self._documents, self._tokens, self._item):
                column.frombytes(bytes(more * column.itemsize))
            self._limited.extend(bytes(more))
        if done.item not in self._place:
            self._place[done.item] = len(self._items)
            self._items.append(done.item)
        self._documents[file], self._tokens[file], self._limited[file] = done.documents, done.tokens, done.limited
        self._item[file] = self._place[done.item]

    def get(self, key: int) -> Done | None:
        file, begin = key >> 44, key & (1 << 44) - 1
        if begin:
            return self._others.get(key)
        if file >= len(self._item) or not (place := self._item[file]):
            return None
        return Done(self._documents[file], self._tokens[file], bool(self._limited[file]), self._items[place])

    def __contains__(self, key: int) -> bool:
        return self.get(key) is not None

    def __getitem__(self, key: int) -> Done:
        if (found := self.get(key)) is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[int]:
        """The keys, in order."""
        firsts = (file << 44 for file, place in enumerate(self._item) if place)
        return heapq.merge(firsts, sorted(self._others))

"""The maps of shards that this process holds: a descriptor and page tables each, so MOST_OPEN at most, whichever
dataset they are of. What was read last stays.

A trainer that reads its data itself has a dataset for training and one for each validation set: a limit for each would
be none. A dataset's maps go with it, and a forked loader process counts those that it inherits.
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from time import monotonic

import numpy as np

MOST_OPEN = 64

_numbers = itertools.count()


@dataclass(slots=True)
class Map:
    rows: np.ndarray  # [n, S]
    looked: float  # when the file's size was looked at, by time.monotonic


_open: OrderedDict[tuple[int, int], Map] = OrderedDict()  # by (dataset, shard), what was read last at the end


class Maps:
    """Those of one dataset, by its shards' numbers."""

    def __init__(self) -> None:
        self._number = next(_numbers)
        weakref.finalize(self, _close, self._number).atexit = False

    def get(self, shard: int) -> Map | None:
        key = (self._number, shard)
        found = _open.get(key)
        if found is not None:
            _open.move_to_end(key)
        return found

    def add(self, shard: int, rows: np.ndarray) -> None:
        while len(_open) >= MOST_OPEN:
            _open.popitem(last=False)
        _open[self._number, shard] = Map(rows, monotonic())


def _close(number: int) -> None:
    for key in [key for key in list(_open) if key[0] == number]:
        del _open[key]

"""The maps of shards that this process holds: a descriptor and page tables each, so MOST_OPEN at most, whichever
dataset they are of. What was read last stays.

A trainer that reads its data itself has a dataset for training and one for each validation set: a limit for each would
be none. A dataset's maps go with it, and a forked loader process counts those that it inherits.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from time import monotonic

import numpy as np

MOST_OPEN = 64


@dataclass(slots=True)
class Map:
    rows: np.ndarray  # [n, S]
    used: float  # by time.monotonic, as is when the file's size was looked at
    looked: float


class Maps:
    """Those of one dataset: `open`, by its shards' numbers. Who reads one sets `used`."""

    def __init__(self) -> None:
        self.open: dict[int, Map] = {}
        _of_process.add(self)

    def __setstate__(self, state: object) -> None:  # of a spawned worker, which opens its own
        self.__init__()  # type: ignore[misc]

    def add(self, shard: int, rows: np.ndarray) -> None:
        found = [(map.used, maps.open, number) for maps in _of_process for number, map in maps.open.items()]
        if len(found) >= MOST_OPEN:
            _, maps, number = min(found, key=lambda each: each[0])
            del maps[number]
        now = monotonic()
        self.open[shard] = Map(rows, now, now)


_of_process: weakref.WeakSet[Maps] = weakref.WeakSet()

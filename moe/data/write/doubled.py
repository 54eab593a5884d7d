"""How many documents share their id with another one, in all units together, in constant memory.

The hashes of the ids are a sample by value: those below a bound, which is halved whenever more than MOST different ones
are held. Both of a pair fall on the same side of it, so pairs are seen however far apart they are. Up to MOST different
ids the count is exact; beyond, it is scaled up, and is reported as an estimate.
"""

from __future__ import annotations

import numpy as np

MOST = 1 << 20  # 16 MB
MOST_ARRAYS = 4096  # that wait: one of few documents is mostly its own object


class Doubled:
    """Give it the documents' hashes with `add`."""

    def __init__(self) -> None:
        self._values, self._counts = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._shift = 0  # the bound is 2^(64 - shift)
        self._waiting: list[np.ndarray] = []
        self._waiting_count = 0

    def add(self, hashes: np.ndarray) -> None:
        """hashes: uint64 [documents], evenly spread."""
        self._waiting.append(self._below(hashes))
        self._waiting_count += len(self._waiting[-1])
        if self._waiting_count >= MOST:  # many units are small: each by itself would sort all again
            self._count()
        elif len(self._waiting) >= MOST_ARRAYS:
            self._waiting = [np.concatenate(self._waiting)]

    def _count(self) -> None:
        if not self._waiting:
            return
        new, counts = np.unique(self._below(np.concatenate(self._waiting)), return_counts=True)
        self._waiting, self._waiting_count = [], 0
        values, places = np.unique(np.concatenate([self._values, new]), return_inverse=True)
        sums = np.zeros(len(values), np.int64)
        np.add.at(sums, places, np.concatenate([self._counts, counts]))
        while len(values) > MOST:
            self._shift += 1
            kept = len(self._below(values))  # they are sorted
            values, sums = values[:kept], sums[:kept]
        self._values, self._counts = values, sums

    def _below(self, hashes: np.ndarray) -> np.ndarray:
        return hashes[hashes >> np.uint64(64 - self._shift) == 0] if self._shift else hashes

    @property
    def is_estimate(self) -> bool:
        self._count()
        return self._shift > 0

    @property
    def count(self) -> int:
        """Documents beyond the first of each id."""
        self._count()
        return int(self._counts.sum() - len(self._counts)) << self._shift

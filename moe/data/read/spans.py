"""From a sequence's number to its shard: Streaming's Spanner in eight bytes a shard, where stock takes eight each."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from moe.data.read.stock import stock_dataset as stock


class Spans:
    """(shard, row) of a sequence, counted over all shards. shard_sizes: sequences of each, int64 [K]."""

    def __init__(self, shard_sizes: np.ndarray) -> None:
        # no numpy array: looking up a single number in one takes ten times as long
        self._ends = array("q", np.cumsum(shard_sizes, dtype=np.int64).tobytes())

    def __getitem__(self, number: int) -> tuple[int, int]:
        if not 0 <= number < self._ends[-1]:
            raise IndexError(f"sequence {number} of {self._ends[-1]}")
        shard = bisect_right(self._ends, number)
        return shard, int(number) - (self._ends[shard - 1] if shard else 0)


@contextmanager
def small_spanner() -> Iterator[None]:
    """Stock's constructor makes a Spanner by this name: inside, it makes one of these."""
    theirs = stock.Spanner
    stock.Spanner = Spans  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        stock.Spanner = theirs  # type: ignore[misc]

"""From a sample's number to its shard: Streaming's Spanner in eight bytes a shard, where stock takes eight a sample."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from streaming.base import dataset as stock


class Spans:
    """(shard, row) of a sample, counted over all shards. shard_sizes: samples of each, int64 [K]."""

    def __init__(self, shard_sizes: np.ndarray) -> None:
        # no numpy array: looking up a single number in one takes ten times as long
        self._ends = array("q", np.cumsum(shard_sizes, dtype=np.int64).tobytes())

    def __getitem__(self, sample: int) -> tuple[int, int]:
        if not 0 <= sample < self._ends[-1]:
            raise IndexError(f"sample {sample} of {self._ends[-1]}")
        shard = bisect_right(self._ends, sample)
        return shard, int(sample) - (self._ends[shard - 1] if shard else 0)


@contextmanager
def small_spanner() -> Iterator[None]:
    """Stock's constructor makes a Spanner by this name: inside, it makes one of these."""
    theirs = stock.Spanner
    stock.Spanner = Spans  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        stock.Spanner = theirs  # type: ignore[misc]

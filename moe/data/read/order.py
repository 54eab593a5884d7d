"""The order of an epoch as a function: position -> sequence, without an array of the epoch (docs/data-order.md).

- Global batch i holds, stripe after stripe, positions i B/C to (i + 1) B/C of each of the C stripes. A rank takes its
  part of every batch, a worker every n-th batch: neither changes what a batch holds.
- Streams lie behind each other on a line of the epoch's length and element x belongs to stripe x mod C. That gives the
  sequences of each stream in each stripe, and in each pass over the stream: all add up, whatever divides what.
- Inside a stripe, shares.py says which stream a position reads, and windows.py which of its sequences. A pass is a full
  permutation of the stream's sequences; the last one of an epoch may end early.
- Keys are made of (seed, stream, epoch, pass): a position costs the same at an epoch's end as at its begin.
- Memory: one pass of each stream is kept, 20 bytes a shard, and 12 for where shards begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from moe.data.read.permutation import key_of
from moe.data.read.shares import Shares
from moe.data.read.windows import Window

NAME = "window-1"  # what a checkpoint calls this order; another order takes another name
SHARDS_MIXED = 32  # of all stripes and streams together: they must stay open at once
_RUN, _SHARES, _PASS = 1, 2, 3


def window_of(stripes: int, streams: int, shards_that_fit: int | None = None) -> int:
    """Shards that are mixed at a time in each stripe of each stream. shards_that_fit: into the cache, where that is
    limited; beside the window there stand the shard that comes next and one that is just leaving.
    """
    window = SHARDS_MIXED // (stripes * streams)
    if shards_that_fit is not None:
        window = min(window, shards_that_fit // (stripes * streams) - 2)
    return max(1, window)


class Order:
    """sizes: sequences of each shard, a list for each stream. counts: of each stream in an epoch, which add up
    to a multiple of `stripes`. Without `shuffle` they come as they lie, stream after stream.
    """

    def __init__(
        self,
        sizes: Sequence[np.ndarray],
        counts: Sequence[int],
        *,
        seed: int,
        stripes: int = 1,
        window: int = SHARDS_MIXED,
        shuffle: bool = True,
    ) -> None:
        self.stripes, self.length = stripes, sum(counts)
        assert self.length % stripes == 0, (counts, stripes)
        self._seed, self._window, self._shuffle = seed, window, shuffle
        self._shards = [np.flatnonzero(of).astype(np.int32) for of in sizes]  # empty ones have no place in the order
        self._edges = [np.cumsum(np.concatenate([[0], of[of > 0]]).astype(np.int64)) for of in sizes]
        self._held = [int(edges[-1]) for edges in self._edges]
        self._begins = np.cumsum([0, *counts])  # of the streams, on the line
        lines = [self._dealt(a, b) for a, b in zip(self._begins, self._begins[1:], strict=False)]
        self._shares = Shares(np.stack(lines, axis=1))
        self._first_shard = np.cumsum([0, *map(len, sizes)])
        self._first_sample = np.cumsum([0, *self._held])
        self._kept: dict[int, tuple[tuple[int, int], Window]] = {}

    def _dealt(self, begin: int, end: int) -> np.ndarray:
        """Elements of the line from begin to end that belong to each stripe: int64 [C]."""
        last = self.stripes - 1 - np.arange(self.stripes)
        return (end + last) // self.stripes - (begin + last) // self.stripes

    def samples(self, epoch: int, stripes: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Sample ids [n], counted over all shards of all streams, of positions [n] in stripes [n]."""
        if not self._shuffle:
            return self._as_they_lie(stripes, positions)
        found = np.empty(len(positions), np.int64)
        for stream, number, which, place in self._passes(epoch, stripes, positions):
            shard, row = self._pass(stream, epoch, number).samples(stripes[which], place)
            found[which] = self._first_sample[stream] + self._edges[stream][shard] + row
        return found

    def shards_ahead(self, epoch: int, stripes: np.ndarray, positions: np.ndarray) -> list[int]:
        """Shards that these positions need or that come next, the first ones first; ids over all streams."""
        if not self._shuffle:
            return self._shards_as_they_lie(stripes, positions)
        found: list[int] = []
        for stream, number, which, place in self._passes(epoch, stripes, positions):
            ahead = self._pass(stream, epoch, number).shards_ahead(stripes[which], place)
            found += (self._shards[stream][ahead] + self._first_shard[stream]).tolist()
        return list(dict.fromkeys(found))

    def _as_they_lie(self, stripes: np.ndarray, positions: np.ndarray) -> np.ndarray:
        stream, inside = self._lying(stripes, positions)
        return self._first_sample[stream] + inside

    def _lying(self, stripes: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Streams [n] of positions, and sequences [n] inside them."""
        place = positions * self.stripes + stripes
        stream = np.searchsorted(self._begins, place, "right") - 1
        return stream, (place - self._begins[stream]) % np.array(self._held)[stream]

    def _shards_as_they_lie(self, stripes: np.ndarray, positions: np.ndarray) -> list[int]:
        found: list[int] = []
        streams, inside = self._lying(stripes, positions)
        for stream in np.unique(streams).tolist():
            needed = np.searchsorted(self._edges[stream], inside[streams == stream], "right") - 1
            after = np.append(needed, needed[-1] + 1)
            ahead = self._shards[stream][after[after < len(self._shards[stream])]]
            found += (ahead + self._first_shard[stream]).tolist()
        return list(dict.fromkeys(found))

    def _passes(
        self, epoch: int, stripes: np.ndarray, positions: np.ndarray
    ) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """For each pass over a stream that is met: (stream, pass, which positions, their places in stripe and pass)."""
        key = key_of(self._seed, _SHARES, epoch)
        streams, places = self._shares.stream_of(key, stripes, positions)
        for stream in np.unique(streams).tolist():
            which = np.flatnonzero(streams == stream)
            begin, held = int(self._begins[stream]), self._held[stream]
            element = (stripes[which] - begin) % self.stripes + places[which] * self.stripes
            passes = element // held
            for number in np.unique(passes).tolist():
                inside = which[passes == number]
                before = self._dealt(begin, begin + number * held)
                yield stream, number, inside, places[inside] - before[stripes[inside]]

    def _pass(self, stream: int, epoch: int, number: int) -> Window:
        kept = self._kept.get(stream)
        if kept is None or kept[0] != (epoch, number):
            begin, held = int(self._begins[stream]), self._held[stream]
            cuts = np.cumsum([0, *self._dealt(begin + number * held, begin + (number + 1) * held)])
            kept = (
                (epoch, number),
                Window(
                    np.diff(self._edges[stream]),
                    cuts,
                    window=self._window,
                    run_key=key_of(self._seed, _RUN, stream),
                    pass_key=key_of(self._seed, _PASS, stream, epoch, number),
                ),
            )
            self._kept[stream] = kept
        return kept[1]

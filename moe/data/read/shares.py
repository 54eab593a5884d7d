"""Which stream each position of an epoch reads, and the how manieth of that stream it is: exact shares, without a list.

- A stripe's positions are divided into blocks of about BLOCK. By the end of block j of J a stream that has n positions
  in all has had n j / J of them, rounded: never more than half a sequence from its share at any block's end, and
  exactly n at the last. Rounded, blocks differ by a few positions; where each begins is a sum over streams.
- Inside a block, positions go to streams by a keyed permutation.
"""

from __future__ import annotations

import numpy as np

from moe.data.read.permutation import permuted, scattered

BLOCK = 256  # positions of a stripe; more where there are many streams


class Shares:
    """counts: positions of each stream in each stripe, int64 [C, S]; the stripes are equally long."""

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts
        self.positions = int(counts[0].sum())  # of a stripe
        self.blocks = max(1, self.positions // max(BLOCK, 4 * counts.shape[1]))

    def stream_of(self, key: int, stripes: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(stream, its n-th position in the stripe) of positions [n] in stripes [n], int64 each. key: the epoch's."""
        if self.counts.shape[1] == 1:
            return np.zeros_like(positions), positions
        block = positions * self.blocks // self.positions
        while True:  # rounding moves a block's begin by less than a block
            had, after = self._had(stripes, block), self._had(stripes, block + 1)
            step = (positions >= after.sum(1)).astype(np.int64) - (positions < had.sum(1))
            if not step.any():
                break
            block = block + step
        begin, end = had.sum(1), after.sum(1)
        keys = scattered(key, stripes * self.blocks + block)
        place = permuted(positions - begin, end - begin, keys)
        ends = np.cumsum(after - had, axis=1)
        stream = (place[:, None] >= ends).sum(1)
        row = np.arange(len(stream))
        begins = ends[row, stream] - (after - had)[row, stream]
        return stream, had[row, stream] + place - begins

    def _had(self, stripes: np.ndarray, block: np.ndarray) -> np.ndarray:
        """What each stream has had when a block begins: int64 [n, S]."""
        return (2 * self.counts[stripes] * block[:, None] + self.blocks) // (2 * self.blocks)

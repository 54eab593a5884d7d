"""The order of one pass over one stream: n-th position of a stripe -> sequence, by a window that slides over shards.

- Shards are put in an order of the run's and cut into C stripes of equal length: a stripe owns its shards in every
  epoch, and at most C - 1 shards are divided between neighbours. In each pass a stripe takes its shards ("pieces") in
  an order of that pass.
- The rows of a piece are permuted and cut into W parts. Block j of a stripe holds the last part of piece j - W + 1,
  the one before the last of the next piece, and so on to the first part of piece j: W shards, of which one leaves and
  one comes at a block's end. The first W - 1 blocks of that kind are one, and the last ones too; where a stripe has at
  most W pieces, all is one block. Positions are permuted inside a block.
- So a shard is needed in one run of blocks, and never again in the pass. Memory: 20 bytes a shard.
"""

from __future__ import annotations

import numpy as np

from moe.data.read.permutation import permuted, scattered


class Window:
    """A pass. sizes: sequences of each shard of the stream, int64 [K], none 0. cuts: where stripes begin in the
    stream's sequences, int64 [C + 1]. run_key orders shards into stripes, pass_key all else. window: W, in shards of a
    stripe.
    """

    def __init__(self, sizes: np.ndarray, cuts: np.ndarray, *, window: int, run_key: int, pass_key: int) -> None:
        self.window, self.pass_key, self.cuts = window, pass_key, cuts
        stripes = len(cuts) - 1
        shards = np.argsort(scattered(run_key, np.arange(len(sizes))), kind="stable")
        ends = np.cumsum(sizes[shards])
        edges = np.unique(np.concatenate([cuts, ends]))
        begins = edges[:-1]
        place = np.searchsorted(ends, begins, "right")
        stripe = np.searchsorted(cuts, begins, "right") - 1
        by = np.lexsort((scattered(pass_key, np.arange(len(begins))), stripe))
        self.shard = shards[place][by].astype(np.int32)
        self.first = (begins - ends[place] + sizes[shards[place]])[by].astype(np.int32)  # row of the shard
        self.rows = np.diff(edges)[by].astype(np.int32)
        self.piece = np.searchsorted(stripe[by], np.arange(stripes + 1))  # where the pieces of each stripe begin
        blocks = [self._blocks(self.rows[a:b]) for a, b in zip(self.piece, self.piece[1:], strict=False)]
        self.block = np.cumsum([0, *map(len, blocks)])  # and its blocks
        self.begins = np.cumsum(np.concatenate([[0], *blocks]).astype(np.int64))  # first position of each block

    def _blocks(self, rows: np.ndarray) -> np.ndarray:
        """Positions of each block of a stripe with pieces of so many rows."""
        if len(rows) <= self.window:
            return rows.sum(dtype=np.int64)[None][: len(rows)]
        single = np.zeros(len(rows) + self.window - 1, np.int64)
        for part in range(self.window):
            single[part : part + len(rows)] += _upto(rows, part + 1, self.window) - _upto(rows, part, self.window)
        first, last = self.window - 1, len(rows)
        ends = [single[:first].sum()], [single[last:].sum()]
        return np.concatenate([ends[0], single[first:last], ends[1]]) if self.window > 1 else single

    def samples(self, stripes: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard, row) of positions [n] in stripes [n] of this pass."""
        at = self.cuts[stripes] + positions
        block = self._block_of(at)
        found, which = np.unique(block, return_inverse=True)
        pieces, begin, rows = self._pieces(found)
        ends = np.cumsum(rows, axis=1)
        inside = permuted(
            at - self.begins[block],
            (self.begins[found + 1] - self.begins[found])[which],
            scattered(self.pass_key, found + len(self.shard))[which],
        )
        column = (inside[:, None] >= ends[which]).sum(1)
        piece = pieces[which, column]
        rank = begin[which, column] + inside - ends[which, column] + rows[which, column]
        keys = scattered(self.pass_key + 1, piece)
        return self.shard[piece], self.first[piece] + permuted(rank, self.rows[piece], keys)

    def shards_ahead(self, stripes: np.ndarray, positions: np.ndarray) -> list[int]:
        """The shards that these positions' blocks need, then those of the block after each, which begin with it."""
        found = np.unique(self._block_of(self.cuts[stripes] + positions))
        after = found + 1
        after = after[~np.isin(after, self.block)]  # a stripe's last block has none after it
        return self._shards(found) + self._shards(after)

    def _shards(self, blocks: np.ndarray) -> list[int]:
        pieces, _, rows = self._pieces(blocks)
        return self.shard[pieces[rows > 0]].tolist()

    def _block_of(self, at: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.begins, at, "right") - 1

    def _pieces(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each block: its pieces, the first rank that it takes of each, and how many; [n, W], 0 ranks in what is
        too much.
        """
        stripe = np.searchsorted(self.block, blocks, "right") - 1
        count = self.piece[stripe + 1] - self.piece[stripe]
        number, window = blocks - self.block[stripe], self.window
        low = number + window - 2  # a single one, behind the joint first ones
        first, last = number == 0, blocks + 1 == self.block[stripe + 1]
        low, high = np.where(first, 0, low), np.where(first, window - 2, low)
        low, high = np.where(last, count, low), np.where(last, count + window - 2, high)
        if window == 1:
            low = high = number
        low = np.where(count <= window, 0, low)
        high = np.where(count <= window, count + window - 2, high)
        piece = np.maximum(low - window + 1, 0)[:, None] + np.arange(window)
        there = piece <= np.minimum(high, count - 1)[:, None]
        piece = np.where(there, piece, 0)
        part = np.maximum(0, low[:, None] - piece), np.minimum(window, high[:, None] - piece + 1)
        piece = self.piece[stripe][:, None] + piece
        rows = self.rows[piece]
        begin = _upto(rows, part[0], window)
        return piece, begin, np.where(there, _upto(rows, part[1], window) - begin, 0)


def _upto(rows: np.ndarray, part: np.ndarray | int, parts: int) -> np.ndarray:
    """How many of a piece's rows lie before a part of it."""
    return rows.astype(np.int64) * part // parts

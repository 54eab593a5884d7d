"""Documents to blocks of S tokens, for one unit of work and its two splits.

- Every document ends with EOS. Documents follow each other without padding; what is left of a unit is packed with the
  other units' tails in the merge.
- Documents are shuffled in windows of at least WINDOW_TOKENS tokens and go out to the shard's file at once, so memory
  grows neither with the unit nor with the shard. Where a window ends depends on the documents alone, never on how they
  were read in batches.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from moe.data.meta import SPLITS
from moe.data.text.order import shuffled_order
from moe.data.write.shards import ShardFile, ShardFormat

WINDOW_TOKENS = 1 << 23
BUFFER_TOKENS = 1 << 19  # joined at once: no more than stays in a core's cache until it is hashed and written


class BlockWriter:
    """Blocks of one split: full shards as files, the rest (complete blocks and the tail) as `<split>.rest`.

    The rest is a shard that did not become full: behind the room for a full one's header.
    """

    def __init__(self, folder: Path, split: str, layout: ShardFormat) -> None:
        self._folder, self._split, self._layout = folder, split, layout
        self._buffer = np.empty(BUFFER_TOKENS, layout.dtype)
        self._filled = 0
        self._shard = self._next_shard()
        self.shards: list[dict] = []

    def _next_shard(self) -> ShardFile:
        return ShardFile(self._folder / f"{self._split}.rest", self._layout, self._layout.samples_per_shard)

    def add(self, documents: list[np.ndarray], lengths: np.ndarray) -> None:
        """Append documents of these lengths, joined in the buffer: each by itself would be a write of its own."""
        sizes = np.cumsum(lengths)
        done = first = 0
        while first < len(documents):
            fitting = int(np.searchsorted(sizes, done + len(self._buffer) - self._filled, side="right"))
            stop = max(first, fitting)
            if stop > first:
                count = int(sizes[stop - 1]) - done
                np.concatenate(documents[first:stop], out=self._buffer[self._filled : self._filled + count])
            else:  # the one at the buffer's end
                count = len(self._buffer) - self._filled
                self._buffer[self._filled :] = documents[first][:count]
                documents[first] = documents[first][count:]
            first, done, self._filled = stop, done + count, self._filled + count
            if self._filled == len(self._buffer):
                self._drain()

    def _drain(self) -> None:
        tokens, self._filled = self._buffer[: self._filled], 0
        while len(tokens := tokens[self._shard.write(tokens) :]):
            self._close_shard()
        if not self._shard.missing:
            self._close_shard()

    def _close_shard(self) -> None:
        info = self._shard.close()
        os.rename(self._folder / f"{self._split}.rest", self._folder / f"{self._split}.{len(self.shards):05}.mds")
        self.shards.append(info)
        self._shard = self._next_shard()

    def finish(self) -> int:
        """Write the rest. Returns its length in tokens."""
        self._drain()
        self._shard.abandon()
        return self._layout.samples_per_shard * self._layout.seq_len - self._shard.missing


class Writer(Protocol):
    def add(self, documents: list[np.ndarray], lengths: np.ndarray) -> None:
        """Append documents of these lengths."""


class TooManyTokensError(Exception):
    """More than HeldTokens holds: a small file may be unpacked to gigabytes."""


class HeldTokens:
    """In the place of BlockWriter for a small unit: its tokens stay in memory. Raises TooManyTokensError."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._room = WINDOW_TOKENS

    def add(self, documents: list[np.ndarray], lengths: np.ndarray) -> None:
        self._room -= int(lengths.sum())
        if self._room < 0:
            raise TooManyTokensError
        if documents:
            self._parts.append(np.concatenate(documents))

    def tokens(self, dtype: np.dtype) -> np.ndarray:
        """All that was added [N]."""
        return np.concatenate(self._parts) if self._parts else np.empty(0, dtype)


class Packer:
    """Takes encoded documents in row order, gives those of each split, shuffled, to its writer. `flush` at the end."""

    def __init__(self, writers: Mapping[str, Writer], *, dtype: np.dtype, eos_id: int, seed: int, unit: int) -> None:
        self._writers = writers
        self._eos_id, self._dtype = eos_id, dtype
        self._seed, self._unit = seed, unit
        self._window: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._in_val: list[np.ndarray] = []
        self._window_tokens = 0
        self._flushed = 0
        self.tokens = dict.fromkeys(SPLITS, 0)
        self.documents = dict.fromkeys(SPLITS, 0)

    def add(self, ids: np.ndarray, offsets: np.ndarray, in_val: np.ndarray) -> None:
        """ids [N] of documents bounded by offsets [d + 1]; in_val [d] says which go to val."""
        lengths = np.diff(offsets) + 1
        ends = np.cumsum(lengths)
        own = np.empty(len(ids) + len(lengths), self._dtype)  # the encoder's buffers may be reused
        own[ends - 1] = self._eos_id
        documents = []
        bounds = (offsets[:-1], offsets[1:], ends - lengths, ends)
        for start, stop, at, end in zip(*(bound.tolist() for bound in bounds), strict=True):
            own[at : end - 1] = ids[start:stop]
            documents.append(own[at:end])
        first = 0
        while first < len(documents):
            before = int(ends[first - 1]) if first else 0
            stop = 1 + int(np.searchsorted(ends, before + WINDOW_TOKENS - self._window_tokens))  # it fills the window
            self._window += documents[first:stop]
            self._lengths.append(lengths[first:stop])
            self._in_val.append(in_val[first:stop])
            self._window_tokens += int(lengths[first:stop].sum())
            if stop <= len(documents):
                self.flush()
            first = stop

    def flush(self) -> None:
        count = len(self._window)
        if not count:
            return
        lengths, in_val = np.concatenate(self._lengths), np.concatenate(self._in_val)
        order = shuffled_order(self._flushed, count, seed=self._seed, unit=self._unit)
        for split, mine in (("train", order[~in_val[order]]), ("val", order[in_val[order]])):
            self.documents[split] += len(mine)
            self.tokens[split] += int(lengths[mine].sum())
            self._writers[split].add([self._window[i] for i in mine.tolist()], lengths[mine])
        self._flushed += count
        self._window, self._lengths, self._in_val, self._window_tokens = [], [], [], 0

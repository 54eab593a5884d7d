"""Documents to blocks of S tokens, for one unit of work and its two splits.

- Every document ends with EOS. Documents follow each other without padding; what is left of a unit is packed with the
  other units' tails in the merge.
- Documents are shuffled in windows of at least WINDOW_TOKENS tokens, so memory does not grow with the unit. Where a
  window ends depends on the documents alone, never on how they were read in batches.
- The shuffle sorts by splitmix64 of (seed, unit, row): no library's random stream, so the order never changes.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from moe.data.shards import ShardFormat

WINDOW_TOKENS = 1 << 23
SPLITS = ("train", "val")


def splitmix64(values: np.ndarray) -> np.ndarray:
    """A 64-bit mix of each uint64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def shuffled_order(first_document: int, count: int, *, seed: int, unit: int) -> np.ndarray:
    """The order of `count` documents of a unit, the first of which is its `first_document`-th:

    a permutation of range(count).
    """
    rows = np.arange(first_document, first_document + count, dtype=np.uint64)
    key = splitmix64(splitmix64(np.array([seed], np.uint64)) ^ np.uint64(unit))
    return np.argsort(splitmix64(rows ^ splitmix64(key)), kind="stable")


@lru_cache(maxsize=len(SPLITS))
def shard_buffer(split: str, tokens: int, dtype: str) -> np.ndarray:
    """One buffer a split for all units of this process: fresh memory for each would cost as much as filling it."""
    return np.empty(tokens, dtype)


class BlockWriter:
    """Blocks of one split: full shards as files, the rest (whole blocks and the tail) as `<split>.rest`."""

    def __init__(self, folder: Path, split: str, layout: ShardFormat) -> None:
        self._folder, self._split, self._layout = folder, split, layout
        self._buffer = shard_buffer(split, layout.samples_per_shard * layout.seq_len, str(layout.dtype))
        self._filled = 0
        self.shards: list[dict] = []

    def add(self, documents: list[np.ndarray]) -> None:
        """Append documents, joined straight into the buffer: a window would be 16 MB more."""
        sizes = np.cumsum([len(document) for document in documents])
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
                path = self._folder / f"{self._split}.{len(self.shards):05}.mds"
                self.shards.append(self._layout.write(path, self._buffer.reshape(-1, self._layout.seq_len)))
                self._filled = 0

    def finish(self) -> int:
        """Write the rest. Returns its length in tokens."""
        self._buffer[: self._filled].tofile(self._folder / f"{self._split}.rest")
        return self._filled


class Packer:
    """Takes encoded documents in row order, writes shuffled blocks of both splits into `folder`."""

    def __init__(self, folder: Path, *, layout: ShardFormat, eos_id: int, seed: int, unit: int) -> None:
        self._writers = {split: BlockWriter(folder, split, layout) for split in SPLITS}
        self._eos = np.array([eos_id], layout.dtype)
        self._dtype = layout.dtype
        self._seed, self._unit = seed, unit
        self._window: list[np.ndarray] = []
        self._in_val: list[bool] = []
        self._window_tokens = 0
        self._flushed = 0
        self.tokens = dict.fromkeys(SPLITS, 0)
        self.documents = dict.fromkeys(SPLITS, 0)

    def add(self, ids: np.ndarray, offsets: np.ndarray, in_val: np.ndarray) -> None:
        """ids [N] of documents bounded by offsets [d + 1]; in_val [d] says which go to val."""
        narrow = ids.astype(self._dtype)  # a copy: the encoder's buffers may be reused
        for start, stop, val in zip(offsets[:-1].tolist(), offsets[1:].tolist(), in_val.tolist(), strict=True):
            self._window.append(narrow[start:stop])
            self._in_val.append(val)
            self._window_tokens += stop - start + 1
            if self._window_tokens >= WINDOW_TOKENS:
                self._flush()

    def _flush(self) -> None:
        order = shuffled_order(self._flushed, len(self._window), seed=self._seed, unit=self._unit)
        parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        for i in order.tolist():
            split = "val" if self._in_val[i] else "train"
            parts[split] += (self._window[i], self._eos)
            self.documents[split] += 1
        for split, arrays in parts.items():
            self.tokens[split] += sum(map(len, arrays))
            self._writers[split].add(arrays)
        self._flushed += len(self._window)
        self._window, self._in_val, self._window_tokens = [], [], 0

    def finish(self) -> dict[str, dict]:
        """Write what is left. Returns per split {"shards": [...], "rest": tokens}."""
        self._flush()
        return {split: {"shards": w.shards, "rest": w.finish()} for split, w in self._writers.items()}

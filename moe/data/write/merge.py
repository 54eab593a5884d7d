"""Finished units to one dataset folder: `train/`, `val/`, `meta.json`.

- Full shards are linked (on a bucket, copied by the server); the rests of all units are packed into further shards,
  then the tails, so only the last shard of a split is not full and less than one block a split is dropped.
- Everything is a function of the units in order: who made them, and when, leaves no trace. So a merge that was killed
  resumes with the shard that is not there yet (journal.py).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from moe.data.folders import Folder
from moe.data.write.gather import FullShard, Gathered, Rests
from moe.data.write.journal import Journal
from moe.data.write.shards import ShardFile, ShardFormat
from moe.data.write.unit_store import damaged

PIECE_TOKENS = 1 << 19
COPIES_AT_ONCE = 8  # on a bucket each takes a second, of waiting


@dataclass
class SplitResult:
    samples: int
    dropped_tokens: int


class ShardSequence:
    """Shards of one split in their final folder, numbered as they come."""

    def __init__(self, folder: Folder, split: str, layout: ShardFormat, journal: Journal) -> None:
        self._folder, self._split, self._layout, self._journal = folder, split, layout, journal
        self._there = folder.sizes() if journal.resumed else {}
        self.infos: list[dict] = []

    def copy(self, shards: Iterable[FullShard]) -> None:
        """Take finished shards of units."""
        threads = ThreadPoolExecutor(COPIES_AT_ONCE)
        try:
            copies = []
            for store, unit, name, info in shards:
                if (size := store.size(f"{unit}/{name}")) != info["bytes"]:
                    error = f"has {size or 0} bytes, {info['bytes']} were written"
                    raise damaged(store.folder, f"{unit}/{name}", error)
                own = f"shard.{len(self.infos):05}.mds"
                if self._there.get(own) != size:
                    copies.append(threads.submit(self._folder.copy, store.folder / unit, name, own))
                self.infos.append(info)
            for copy in copies:
                copy.result()
        finally:  # after a signal, or an error of one, those that are not begun are not waited for
            threads.shutdown(cancel_futures=True)

    def resume(self) -> int:
        """Take the packed shards that an earlier merge has left here. Returns how many sequences they hold."""
        first, samples = len(self.infos), 0
        for info in self._journal.written(self._split):
            if self._there.get(f"shard.{len(self.infos):05}.mds") != info["bytes"]:
                break
            self.infos.append(info)
            samples += info["samples"]
        self._journal.keep(self._split, len(self.infos) - first)
        return samples

    def write(self, pieces: Iterator[np.ndarray], samples: int) -> None:
        """Further shards of `samples` sequences, whose tokens come in pieces of any length."""
        piece = np.empty(0, self._layout.dtype)
        while samples:
            count = min(samples, self._layout.samples_per_shard)
            with self._folder.scratch("shard") as aside:
                shard = ShardFile(aside / "shard", self._layout, count)
                while shard.missing:
                    if not len(piece):
                        piece = next(pieces)
                    piece = piece[shard.write(piece) :]
                info = shard.close()
                self._folder.put(aside / "shard", f"shard.{len(self.infos):05}.mds")
            self.infos.append(info)
            self._journal.add(self._split, info)
            samples -= count

    def finish(self) -> int:
        with self._folder.scratch("index") as aside:
            self._layout.write_index(aside, self.infos)
            self._folder.put(aside / "index.json", "index.json")
        return sum(info["samples"] for info in self.infos)


def merge_split(found: Gathered, split: str, out: Folder, layout: ShardFormat, journal: Journal) -> SplitResult:
    """Write `out`/{split} from units."""
    for store in {id(shard.store): shard.store for shard in found.shards[split]}.values():
        store.refresh()
    shards = ShardSequence(out / split, split, layout, journal)
    shards.copy(found.shards[split])
    samples, dropped = divmod(found.rests[split].tokens, layout.seq_len)
    done = shards.resume()
    shards.write(rest_tokens(found.rests[split], layout, skip=done * layout.seq_len), samples - done)
    return SplitResult(shards.finish(), dropped)


def rest_tokens(rests: Rests, layout: ShardFormat, *, skip: int = 0) -> Iterator[np.ndarray]:
    """What full shards have left of units, in pieces: the complete blocks of each, then all that is behind these,
    without the first `skip` tokens.

    What is behind is read when its turn comes: of a million small files it is most of the text.
    """
    width = layout.dtype.itemsize
    name = ""
    file: BinaryIO = io.BytesIO()
    try:
        for (store, rest, size), at, count in rests.places(layout.seq_len):
            left_out = min(skip, count)
            skip -= left_out
            if count == left_out:
                continue
            if (full := f"{store.folder}/{rest}") != name:
                file.close()
                name, file = full, store.open(rest, size)
            file.seek(at + left_out * width)
            for done in range(left_out, count, PIECE_TOKENS):
                yield np.frombuffer(file.read(min(PIECE_TOKENS, count - done) * width), layout.dtype)
    finally:
        file.close()


def threshold_for_one_block(lengths: np.ndarray, hashes: np.ndarray, seq_len: int) -> int | None:
    """The smallest hash threshold that gives val at least one block and leaves train one; None when there is none."""
    order = np.argsort(hashes, kind="stable")
    sizes = np.cumsum(lengths[order].astype(np.int64))
    first = int(np.searchsorted(sizes, seq_len))
    if first >= len(sizes):
        return None
    threshold = int(hashes[order[first]]) + 1
    in_val = int(lengths[hashes < np.uint64(threshold)].sum()) if threshold < 1 << 64 else int(lengths.sum())
    return threshold if int(lengths.sum()) - in_val >= seq_len else None

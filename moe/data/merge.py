"""Finished units to one dataset folder: `train/`, `val/`, `meta.json`.

- Full shards are linked (on a bucket, copied by the server); the rests of all units are packed into further shards,
  then the tails, so only the last shard of a split is not full and less than one block a split is dropped.
- Everything is a function of the units in order: who made them, and when, leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from moe.data.files import Unit
from moe.data.folders import Folder
from moe.data.packing import SPLITS
from moe.data.rows import Skipped
from moe.data.shards import ShardFormat
from moe.data.unit_store import UnitStore
from moe.errors import InputError

COPIES_AT_ONCE = 8  # on a bucket each takes a second, of waiting
Parts = list[tuple[UnitStore, Unit]]


@dataclass
class SplitResult:
    samples: int
    dropped_tokens: int


class ShardSequence:
    """Shards of one split in their final folder, numbered as they come."""

    def __init__(self, folder: Folder, layout: ShardFormat) -> None:
        self._folder, self._layout = folder, layout
        self.infos: list[dict] = []

    def copy(self, shards: Iterable[tuple[UnitStore, Unit, str, dict]]) -> None:
        """Take finished shards of units, each with its entry of the done mark."""
        with ThreadPoolExecutor(COPIES_AT_ONCE) as threads:
            copies = []
            for store, unit, name, info in shards:
                if (size := store.size(unit, name)) != info["bytes"]:
                    raise InputError(
                        f"{store.folder}/{unit.name}/{name} has {size or 0} bytes, {info['bytes']} were written; "
                        "run with --overwrite"
                    )
                own = f"shard.{len(self.infos):05}.mds"
                copies.append(threads.submit(self._folder.copy, store.folder / unit.name, name, own))
                self.infos.append(info)
            for copy in copies:
                copy.result()

    def write(self, rows: np.ndarray) -> None:
        with self._folder.scratch("shard") as aside:
            info = self._layout.write(aside / "shard", rows)
            self._folder.put(aside / "shard", f"shard.{len(self.infos):05}.mds")
        self.infos.append(info)

    def finish(self) -> int:
        with self._folder.scratch("index") as aside:
            self._layout.write_index(aside, self.infos)
            self._folder.put(aside / "index.json", "index.json")
        return sum(info["samples"] for info in self.infos)


def merge_split(parts: Parts, split: str, out: Folder, layout: ShardFormat) -> SplitResult:
    """Write `out`/{split} from units."""
    for store in {id(store): store for store, _ in parts}.values():
        store.refresh()
    shards = ShardSequence(out / split, layout)
    entries = [mark_of(store, unit)["splits"][split] for store, unit in parts]
    shards.copy(
        (store, unit, f"{split}.{i:05}.mds", info)
        for (store, unit), entry in zip(parts, entries, strict=True)
        for i, info in enumerate(entry["shards"])
    )
    buffer = np.empty((layout.samples_per_shard, layout.seq_len), layout.dtype)
    filled = 0

    def add(rows: np.ndarray) -> None:
        nonlocal filled
        while len(rows):
            taken = min(len(rows), len(buffer) - filled)
            buffer[filled : filled + taken] = rows[:taken]
            filled, rows = filled + taken, rows[taken:]
            if filled == len(buffer):
                shards.write(buffer)
                filled = 0

    tails = []
    for (store, unit), entry in zip(parts, entries, strict=True):
        content = store.read(unit, f"{split}.rest", entry["rest"] * layout.dtype.itemsize)
        tokens = np.frombuffer(content, layout.dtype)
        whole = len(tokens) - len(tokens) % layout.seq_len
        add(tokens[:whole].reshape(-1, layout.seq_len))
        tails.append(tokens[whole:].copy())  # a view would keep the rest in memory
    tail = np.concatenate(tails) if tails else np.empty(0, layout.dtype)
    whole = len(tail) - len(tail) % layout.seq_len
    add(tail[:whole].reshape(-1, layout.seq_len))
    if filled:
        shards.write(buffer[:filled])
    return SplitResult(shards.finish(), len(tail) - whole)


def mark_of(store: UnitStore, unit: Unit) -> dict:
    mark = store.done(unit)
    assert mark is not None, (str(store.folder), unit)
    return mark


def collect(parts: Parts) -> dict:
    """Sums over units:

    documents and tokens per split, text bytes, skipped rows, lengths and hashes of all documents.
    """
    documents, tokens, text_bytes, skipped = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0), 0, Skipped()
    lengths, hashes = [np.empty(0, np.uint32)], [np.empty(0, np.uint64)]
    for store, unit in parts:
        mark = mark_of(store, unit)
        for split in SPLITS:
            documents[split] += mark["documents"][split]
            tokens[split] += mark["tokens"][split]
        text_bytes += mark["text_bytes"]
        skipped.merge(Skipped(**mark["skipped"]))
        lengths.append(store.array(unit, "lengths.npy"))
        hashes.append(store.array(unit, "hashes.npy"))
    return {
        "documents": documents,
        "tokens": tokens,
        "text_bytes": text_bytes,
        "skipped": skipped,
        "lengths": np.concatenate(lengths),
        "hashes": np.concatenate(hashes),
    }


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

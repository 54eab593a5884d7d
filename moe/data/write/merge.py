"""Finished units to one dataset folder: `train/`, `val/`, `meta.json`.

- Full shards are linked (on a bucket, copied by the server); the rests of all units are packed into further shards,
  then the tails, so only the last shard of a split is not full and less than one block a split is dropped.
- Everything is a function of the units in order: who made them, and when, leaves no trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from moe.common.errors import InputError
from moe.data.folders import Folder
from moe.data.meta import SPLITS
from moe.data.text.files import Unit
from moe.data.text.rows import Skipped
from moe.data.write.doubled import Doubled
from moe.data.write.shards import ShardFile, ShardFormat
from moe.data.write.unit_store import UnitStore

PIECE_TOKENS = 1 << 19
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
            samples -= count

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
    rests = [(store, unit, entry["rest"]) for (store, unit), entry in zip(parts, entries, strict=True)]
    samples, dropped = divmod(sum(tokens for _, _, tokens in rests), layout.seq_len)
    shards.write(rest_tokens(rests, split, layout), samples)
    return SplitResult(shards.finish(), dropped)


def rest_tokens(rests: list[tuple[UnitStore, Unit, int]], split: str, layout: ShardFormat) -> Iterator[np.ndarray]:
    """What full shards have left of units, in pieces: the complete blocks of each, then all that is behind these."""
    start, width = len(layout.header(layout.samples_per_shard)), layout.dtype.itemsize
    tails = [np.empty(0, layout.dtype)]
    for store, unit, tokens in rests:
        whole = tokens - tokens % layout.seq_len
        with store.open(unit, f"{split}.rest", start + tokens * width) as file:
            file.seek(start)
            for done in range(0, whole, PIECE_TOKENS):
                yield np.frombuffer(file.read(min(PIECE_TOKENS, whole - done) * width), layout.dtype)
            tails.append(np.frombuffer(file.read(), layout.dtype))
    yield np.concatenate(tails)


def mark_of(store: UnitStore, unit: Unit) -> dict:
    mark = store.done(unit)
    assert mark is not None, (str(store.folder), unit)
    return mark


def collect(parts: Parts) -> dict:
    """Sums over units:

    documents and tokens per split, text bytes, skipped rows, doubled ids, the units' other counts, and how many
    documents there are of each length: rows of (tokens, documents), as the lengths themselves would be 60 MB for
    FineWeb's 10B tokens.
    """
    documents, tokens, text_bytes, skipped = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0), 0, Skipped()
    lengths, counts, doubled = np.empty((0, 2), np.int64), Counter[str](), Doubled()
    for store, unit in parts:
        mark = mark_of(store, unit)
        for split in SPLITS:
            documents[split] += mark["documents"][split]
            tokens[split] += mark["tokens"][split]
        text_bytes += mark["text_bytes"]
        skipped.merge(Skipped(**mark["skipped"]))
        counts.update(mark["counts"])
        lengths = add_lengths(lengths, store.array(unit, "lengths.npy"))
        if mark["counts"]["named"]:
            doubled.add(store.array(unit, "hashes.npy"))
    counts["duplicate_ids"] = doubled.count
    return {
        "documents": documents,
        "tokens": tokens,
        "text_bytes": text_bytes,
        "skipped": skipped,
        "counts": counts,
        "duplicates_estimated": doubled.is_estimate,
        "lengths": lengths,
    }


def _strength(proof: str) -> bool:
    return not proof.startswith("size")


def proofs(parts: Parts) -> dict[str, list[str]]:
    """Of the hub's files, by what their bytes were held against: their names. A file is in the list of its weakest."""
    found: dict[str, set[str]] = {}
    for mark in (mark_of(store, unit) for store, unit in parts):
        if "proof" in mark:
            found.setdefault(mark["file"], set()).add(mark["proof"])
    named: dict[str, list[str]] = {}
    for file, kinds in found.items():
        named.setdefault(min(kinds, key=_strength), []).append(file)
    return named


def reads(parts: Parts) -> list[list]:
    """What was read of the files of this machine: (place of the file, then a recorded.Read for each unit of it)."""
    found: dict[int, list] = {}
    for store, unit in parts:
        if (read := mark_of(store, unit)["read"]) is not None:
            found.setdefault(unit.file_index, []).append(read)
    return [[place, *entries] for place, entries in found.items()]


def add_lengths(counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """counts [n, 2] of (length, documents), sorted, with those of `lengths` [d] added."""
    new = np.stack(np.unique(lengths.astype(np.int64), return_counts=True), axis=1)
    both = np.concatenate([counts, new])
    values, places = np.unique(both[:, 0], return_inverse=True)
    sums = np.zeros(len(values), np.int64)
    np.add.at(sums, places, both[:, 1])
    return np.stack([values, sums], axis=1)


def length_statistics(counts: np.ndarray) -> dict[str, float]:
    """Mean, median, 99th percentile (a length that occurs, as numpy's `lower`) and maximum of counts [n, 2]."""
    ends = np.cumsum(counts[:, 1])
    p50, p99 = (int(counts[np.searchsorted(ends, int((ends[-1] - 1) * q), side="right"), 0]) for q in (0.5, 0.99))
    mean = int((counts[:, 0] * counts[:, 1]).sum()) / int(ends[-1])
    return {"mean": round(mean, 2), "p50": p50, "p99": p99, "max": int(counts[-1, 0])}


def document_keys(parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """Length in tokens and hash of every document."""
    found = [[store.array(unit, f"{name}.npy") for store, unit in parts] for name in ("lengths", "hashes")]
    return np.concatenate(found[0]), np.concatenate(found[1])


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

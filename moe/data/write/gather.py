"""Finished units, looked at once: what the merge takes of each, and sums over all.

A unit costs some numbers here, whether there are ten or a million: no mark, and no document's length, is kept.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xxhash

from moe.data.meta import SPLITS
from moe.data.text.files import Unit
from moe.data.text.planning import in_order
from moe.data.text.rows import Skipped
from moe.data.write.doubled import Doubled
from moe.data.write.shards import ShardFormat
from moe.data.write.streamed_json import Packed
from moe.data.write.unit_store import UnitStore

LENGTHS_HELD, ARRAYS_HELD, READERS = 1 << 20, 4096, 8
Units = Sequence[tuple[UnitStore, Unit]]


class Parts(Sequence[tuple[UnitStore, Unit]]):
    """Units of one store, those at `places` of `units`, without a pair for each of them."""

    def __init__(self, store: UnitStore, units: Sequence[Unit], places: Sequence[int] | None = None) -> None:
        self._store, self._units, self._places = store, units, range(len(units)) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: Any) -> Any:
        found = self._places[place]
        return Parts(self._store, self._units, found) if isinstance(place, slice) else (self._store, self._units[found])


class FullShard(NamedTuple):
    """A full shard of a unit: the file `name` in the store, and its entry of the done mark."""

    store: UnitStore
    unit: str
    name: str
    info: dict


class Rests:
    """Of one split, what each unit has left beside its full shards, in order: a few numbers a unit."""

    def __init__(self) -> None:
        self._files: list[tuple[UnitStore, str, int]] = []
        self._file, self._tokens, self._blocks, self._tail = (array(kind) for kind in "IIQQ")

    def add(self, store: UnitStore, tokens: int, name: str, size: int, blocks: int, tail: int) -> None:
        """tokens: of which the complete blocks begin at byte `blocks` of the file, what is behind them at `tail`."""
        if not tokens:
            return
        if not self._files or self._files[-1] != (store, name, size):
            self._files.append((store, name, size))
        for column, value in (
            (self._file, len(self._files) - 1),
            (self._tokens, tokens),
            (self._blocks, blocks),
            (self._tail, tail),
        ):
            column.append(value)

    @property
    def tokens(self) -> int:
        return sum(self._tokens)

    def places(self, block: int) -> Iterator[tuple[tuple[UnitStore, str, int], int, int]]:
        """(file, byte, tokens) of each unit's complete blocks, of `block` tokens, then of what is behind these."""
        for file, tokens, at in zip(self._file, self._tokens, self._blocks, strict=True):
            yield self._files[file], at, tokens - tokens % block
        for file, tokens, at in zip(self._file, self._tokens, self._tail, strict=True):
            yield self._files[file], at, tokens % block


@dataclass
class Gathered:
    """The units of a dataset: what there is to merge of each split, and sums.

    lengths: int64 [n, 2], how many documents there are of each length in tokens. proofs: of the hub's files, by what
    their bytes were held against, their names; a file is in the list of its weakest. reads: of the files of this
    machine, (place of the file, recorded.Read) of each unit. digest: of all that decides the merge.
    """

    shards: dict[str, list[FullShard]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    rests: dict[str, Rests] = field(default_factory=lambda: {split: Rests() for split in SPLITS})
    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    text_bytes: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    counts: Counter[str] = field(default_factory=Counter)
    duplicates_estimated: bool = False
    lengths: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    proofs: dict[str, list[str]] = field(default_factory=dict)
    reads: Packed = field(default_factory=Packed)
    digest: str = ""
    units: int = 0


def gather(units: Units, layout: ShardFormat) -> Gathered:
    found, doubled = Gathered(), Doubled()
    held, held_count = list[np.ndarray](), 0
    header, width = len(layout.header(layout.samples_per_shard)), layout.dtype.itemsize
    digest = xxhash.xxh128(str(layout.config))
    proofs: dict[str, set[str]] = {}
    for store, unit, mark, own_lengths, hashes in _loaded(units):
        found.units += 1
        home = store.home(unit)
        for split in SPLITS:
            entry = mark["splits"][split]
            rest = store.rest(unit, mark, split, header=header, block=layout.seq_len, width=width)
            found.shards[split] += [
                FullShard(store, home, f"{split}.{i:05}.mds", info) for i, info in enumerate(entry["shards"])
            ]
            found.rests[split].add(store, entry["rest"], *rest)
            found.documents[split] += mark["documents"][split]
            found.tokens[split] += mark["tokens"][split]
            digest.update(f"{store.folder}/{home}/{split} {entry} {rest}\n".encode())
        found.text_bytes += mark["text_bytes"]
        found.skipped.merge(Skipped(**mark["skipped"]))
        found.counts.update(mark["counts"])
        held.append(own_lengths)
        held_count += len(held[-1])
        if held_count >= LENGTHS_HELD or len(held) >= ARRAYS_HELD:
            found.lengths, held, held_count = add_lengths(found.lengths, np.concatenate(held)), [], 0
        if hashes is not None:
            doubled.add(hashes)
        if "proof" in mark:
            proofs.setdefault(mark["file"], set()).add(mark["proof"])
        if mark["read"] is not None:
            found.reads.add([unit.file_index, mark["read"]])
    if held:
        found.lengths = add_lengths(found.lengths, np.concatenate(held))
    found.counts["duplicate_ids"], found.duplicates_estimated = doubled.count, doubled.is_estimate
    for file, kinds in proofs.items():
        found.proofs.setdefault(min(kinds, key=_strength), []).append(file)
    found.digest = digest.hexdigest()
    return found


def _loaded(units: Units) -> Iterator[tuple[UnitStore, Unit, dict[str, Any], np.ndarray, np.ndarray | None]]:
    """Each unit with its done mark, lengths and the hashes of documents with ids, if there are such.

    Units that were made by themselves are read by READERS at once: on a bucket each file takes a while.
    """
    alone = [(store, unit) for store, unit in units if store.home(unit) == unit.name]
    with contextlib.closing(in_order(_load, alone, threads=READERS, ahead=2 * READERS)) as found:
        for store, unit in units:
            is_alone = store.home(unit) == unit.name
            yield store, unit, *(next(found) if is_alone else _load((store, unit)))


def _load(part: tuple[UnitStore, Unit]) -> tuple[dict[str, Any], np.ndarray, np.ndarray | None]:
    store, unit = part
    mark = store.mark(unit.name)
    named = mark["counts"]["named"]
    hashes = store.array(unit, "hashes") if named else None
    if hashes is not None and "named_first" in mark:  # marks of before have all of them count
        hashes = hashes[:named]
    return mark, store.array(unit, "lengths"), hashes


def _strength(proof: str) -> bool:
    return not proof.startswith("size")


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


def document_keys(units: Units) -> tuple[np.ndarray, np.ndarray]:
    """Length in tokens and hash of every document."""
    found = [[store.array(unit, name) for store, unit in units] for name in ("lengths", "hashes")]
    return np.concatenate(found[0]), np.concatenate(found[1])

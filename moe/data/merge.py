"""Finished units to one dataset folder: `train/`, `val/`, `meta.json`.

- Full shards are linked, not copied; the rests of all units are packed into further shards, then the tails, so only
  the last shard of a split is not full and less than one block a split is dropped.
- Everything is a function of the units in order: who made them, and when, leaves no trace.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe.data.packing import SPLITS
from moe.data.rows import Skipped
from moe.data.shards import ShardFormat
from moe.data.sources import Unit
from moe.data.unit import read_done
from moe.errors import InputError


@dataclass
class SplitResult:
    samples: int
    dropped_tokens: int


class ShardSequence:
    """Shards of one split in their final folder, numbered as they come."""

    def __init__(self, folder: Path, layout: ShardFormat) -> None:
        folder.mkdir(parents=True)
        self._folder, self._layout = folder, layout
        self.infos: list[dict] = []

    def path(self) -> Path:
        return self._folder / f"shard.{len(self.infos):05}.mds"

    def link(self, source: Path, info: dict) -> None:
        if source.stat().st_size != info["bytes"]:
            raise InputError(
                f"{source} has {source.stat().st_size} bytes, {info['bytes']} were written; run with --overwrite"
            )
        try:
            os.link(source, self.path())
        except OSError:  # a file system without hard links
            shutil.copyfile(source, self.path())
        self.infos.append(info)

    def write(self, rows: np.ndarray) -> None:
        self.infos.append(self._layout.write(self.path(), rows))

    def finish(self) -> int:
        self._layout.write_index(self._folder, self.infos)
        return sum(info["samples"] for info in self.infos)


def _rest(folder: Path, unit: Unit, split: str, tokens: int, dtype: np.dtype) -> np.ndarray:
    path = folder / unit.name / f"{split}.rest"
    if path.stat().st_size != tokens * dtype.itemsize:
        raise InputError(
            f"{path} has {path.stat().st_size} bytes, {tokens * dtype.itemsize} were written; run with --overwrite"
        )
    return np.fromfile(path, dtype)


def merge_split(parts: list[tuple[Path, Unit]], split: str, out: Path, layout: ShardFormat) -> SplitResult:
    """Write `out`/{split} from units, each given as (the folder of units, the unit)."""
    shards = ShardSequence(out / split, layout)
    done = []
    for folder, unit in parts:
        mark = read_done(folder, unit)
        assert mark is not None, (folder, unit)
        done.append(mark["splits"][split])
        for i, info in enumerate(mark["splits"][split]["shards"]):
            shards.link(folder / unit.name / f"{split}.{i:05}.mds", info)
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
    for (folder, unit), entry in zip(parts, done, strict=True):
        tokens = _rest(folder, unit, split, entry["rest"], layout.dtype)
        whole = len(tokens) - len(tokens) % layout.seq_len
        add(tokens[:whole].reshape(-1, layout.seq_len))
        tails.append(tokens[whole:])
    tail = np.concatenate(tails) if tails else np.empty(0, layout.dtype)
    whole = len(tail) - len(tail) % layout.seq_len
    add(tail[:whole].reshape(-1, layout.seq_len))
    if filled:
        shards.write(buffer[:filled])
    return SplitResult(shards.finish(), len(tail) - whole)


def collect(parts: list[tuple[Path, Unit]]) -> dict:
    """Sums over units:

    documents and tokens per split, text bytes, skipped rows, lengths and hashes of all documents.
    """
    documents, tokens, text_bytes, skipped = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0), 0, Skipped()
    lengths, hashes = [np.empty(0, np.uint32)], [np.empty(0, np.uint64)]
    for folder, unit in parts:
        mark = read_done(folder, unit)
        assert mark is not None, (folder, unit)
        for split in SPLITS:
            documents[split] += mark["documents"][split]
            tokens[split] += mark["tokens"][split]
        text_bytes += mark["text_bytes"]
        skipped.merge(Skipped(**mark["skipped"]))
        lengths.append(np.load(folder / unit.name / "lengths.npy"))
        hashes.append(np.load(folder / unit.name / "hashes.npy"))
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

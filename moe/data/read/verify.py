"""Is what index.json promises there, on the disk or on a bucket? Sizes always; xxh64 of every shard when asked.

Shards are hashed in threads, in pieces: reading and hashing leave Python's lock.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash

from moe.common.errors import InputError
from moe.data.folders import Folder
from moe.data.locations import open_folder
from moe.data.read.index import Shard, read_index

PIECE_BYTES = 4 << 20
MOST_THREADS = 8
ENCODING = re.compile(r"ndarray:(uint16|uint32):(\d+)")


def verify_split(
    folder: str | Path, full: bool = False, progress: Callable[[int], None] = lambda count: None
) -> list[str]:
    """Errors of one split's folder, each naming its file, in the shards' order; empty when all is well.

    full: read every byte. progress: called, by several threads, with the number of bytes read since it was called.
    """
    place = open_folder(folder)
    try:
        shards = read_index(place)
    except InputError as error:
        return [str(error)]
    sizes = place.sizes()

    def error_of(shard: Shard) -> str | None:
        if error := size_error(folder, shard, sizes):
            return error
        if shard.samples * (_sample_bytes(shard) + 4) > shard.bytes:
            return f"{folder}/{shard.name}: {shard.bytes} bytes are not the {shard.samples} sequences of index.json"
        if full and shard.xxh64 is None:
            return f"{folder}/{shard.name}: index.json holds no xxh64 of it, so its bytes cannot be verified"
        if full and _xxh64(place, shard.name, progress) != shard.xxh64:
            return f"{folder}/{shard.name}: its bytes changed (xxh64 is not that of index.json)"
        return None

    if not full:
        return [error for error in map(error_of, shards) if error]
    with ThreadPoolExecutor(min(MOST_THREADS, 2 * len(os.sched_getaffinity(0)))) as threads:
        return [error for error in threads.map(error_of, shards) if error]


def size_error(folder: str | Path, shard: Shard, sizes: Mapping[str, int], *, packed: bool = False) -> str | None:
    """What is wrong with a shard's size in `folder`, whose files have these sizes. packed: a remote, which holds the
    compressed file where there is one.
    """
    name, expected = (shard.packed if packed else None) or (shard.name, shard.bytes)
    if name not in sizes:
        return f"{folder}/{name}: missing, index.json says {expected} bytes"
    if sizes[name] != expected:
        return f"{folder}/{name}: {sizes[name]} bytes, index.json says {expected}"
    return None


def _xxh64(place: Folder, name: str, progress: Callable[[int], None]) -> str:
    """Of a file's bytes, in hex. Raises InputError where they cannot be read."""
    digest = xxhash.xxh64()
    try:
        file = place.open(name)
        if file is not None:
            with file:
                while piece := file.read(PIECE_BYTES):
                    digest.update(piece)
                    progress(len(piece))
    except OSError as error:
        raise InputError(f"{place}/{name}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _sample_bytes(shard: Shard) -> int:
    """Bytes of one sequence's tokens; 0 where the columns are no tokens."""
    match = ENCODING.fullmatch(shard.columns)
    return np.dtype(match[1]).itemsize * int(match[2]) if match else 0


def read_samples(folder: str | Path, first: int, count: int) -> np.ndarray:
    """Sequences [count, S] of a split in the order they lie there, without a loader. Fewer at the split's end.

    Raises InputError where a shard is damaged or holds no tokens.
    """
    rows = list(_runs(folder, first, count))
    return np.concatenate(rows) if rows else np.empty((0, 0), np.uint16)


def sample_batches(folder: str | Path, count: int, size: int) -> Generator[np.ndarray, None, None]:
    """The first `count` sequences of a split as arrays [size, S], the last one smaller. Each shard is read once, and
    one at a time is in memory.

    Raises as `read_samples` does.
    """
    waiting: list[np.ndarray] = []
    for run in _runs(folder, 0, count):
        while len(run):
            room = size - sum(map(len, waiting))
            waiting.append(run[:room])
            run = run[room:]
            if sum(map(len, waiting)) == size:
                yield np.concatenate(waiting)
                waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _runs(folder: str | Path, first: int, count: int) -> Iterator[np.ndarray]:
    """Those sequences, shard by shard."""
    place = open_folder(folder)
    start = 0
    for shard in read_index(place):
        low, high = max(first - start, 0), min(first + count - start, shard.samples)
        if low < high:
            match = ENCODING.fullmatch(shard.columns)
            content = place.read(shard.name) or b""
            try:
                if match is None:
                    raise ValueError(f"columns {shard.columns} are not tokens")
                offset = int(np.frombuffer(content, np.uint32, 1, offset=4)[0])
                shape = (shard.samples, int(match[2]))
                yield np.ndarray(shape, match[1], content, offset)[low:high]
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{folder}/{shard.name}: cannot be read ({error}); restore it or convert again"
                ) from None
        start += shard.samples

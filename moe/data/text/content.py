"""What a file on this machine holds, named by its bytes: no path, time or owner decides.

- A sample names a file: its size, its first and last 64 KiB (of parquet its complete footer) and 16 blocks of 64 KiB at
  places that follow from the size. A file no larger than all these together is read completely. 500 GB in files of 2 GB
  cost 300 MB of reading.
- An edit between the samples that keeps the size is not seen by them. A conversion reads every byte anyway, so it
  records a hash of them, and holds files against it whose stat (size, times, inode) is another since
  (moe/data/write/recorded.py). A stat record says when to look, never what is the same file.
- A sample that was taken of a file before is not taken again where size, both times, inode and device are those of
  then: nobody can set the ctime back. Not kept is the record of a file that changed within SETTLED_NS before it was
  read, as clocks of file systems are coarse.
"""

from __future__ import annotations

import itertools
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xxhash

from moe.data.text.known import Lookup
from moe.data.text.order import splitmix64

BLOCK_BYTES, BLOCKS = 64 << 10, 16
MOST_FOOTER = 64 << 20
MOST_REREAD = 10_000_000_000
READ_BYTES = 4 << 20
SETTLED_NS = 3_000_000_000
Known = Mapping[tuple[Any, ...], str]  # (kind, what stat_of gives) of a file then, and its name by content
UNREADABLE = "none: "  # begins the version of a file that cannot be read
THREADS = 8  # at once, where many small files lie on a disk that is far away
AT_ONCE = 1024  # files that are handed to them


def offsets(size: int) -> list[int]:
    """Where the 16 blocks of a file of `size` bytes begin: one in each sixteenth, at a place drawn from the size."""
    drawn = splitmix64(np.uint64(size) * np.uint64(31) + np.arange(BLOCKS, dtype=np.uint64))
    span = (size - BLOCK_BYTES) // BLOCKS
    return [i * span + int(value) % max(1, span) for i, value in enumerate(drawn.tolist())]


def sample_of(path: str, kind: str) -> str:
    """The file's name by content: an xxh128, in decimal. Raises OSError where it cannot be read."""
    digest = xxhash.xxh128()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        if size <= (BLOCKS + 2) * BLOCK_BYTES:
            digest.update(file.read())
            return str(digest.intdigest())
        ends = [0, size - BLOCK_BYTES] if kind != "parquet" else []
        for offset in [*ends, *offsets(size)]:
            file.seek(offset)
            digest.update(file.read(BLOCK_BYTES))
        if kind == "parquet":
            file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-min(size, MOST_FOOTER, length + 8), os.SEEK_END)
            while part := file.read(READ_BYTES):
                digest.update(part)
    return str(digest.intdigest())


def hash_of(path: str, begin: int = 0, end: int | None = None) -> str:
    """xxh128 (hex) of the file's bytes [begin, end). Raises OSError."""
    digest = xxhash.xxh128()
    with open(path, "rb") as file:
        file.seek(begin)
        while part := file.read(READ_BYTES if end is None else min(READ_BYTES, end - file.tell())):
            digest.update(part)
    return digest.hexdigest()


def hashes_of(paths: Sequence[str]) -> list[str]:
    """xxh128 (hex) of all bytes of each file; for one that cannot be read, why."""

    def whole(path: str) -> str:
        try:
            return hash_of(path)
        except OSError as error:
            return UNREADABLE + str(error.strerror)

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(whole, paths))


def stat_of(path: str) -> list[int] | None:
    """(size, mtime, ctime, inode, device) of a file; None where there is none. No one can set back the ctime."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def known_of(files: Iterable[tuple[str, str, Sequence[Any] | None]]) -> Known:
    """What is known of files given as (kind, name by content, what stat_of gave or None)."""
    return {(kind, *found): version for kind, version, found in files if found}


def settled(found: list[int] | None) -> list[int] | None:
    """The record of a file that may be kept; None for one that may still change without another time."""
    if found is None or time.time_ns() - max(found[1], found[2]) < SETTLED_NS:
        return None
    return found


def versions_of(files: Iterable[tuple[str, str]], known: Lookup) -> Iterator[tuple[int, str, list[int] | None]]:
    """(bytes, name by content, its stat record) of files given as (path, kind), in order; for one that cannot be read,
    why. known: what was sampled before.
    """

    def version(file: tuple[str, str]) -> tuple[int, str, list[int] | None]:
        path, kind = file
        try:
            size = os.stat(path).st_size
        except OSError as error:
            return 0, UNREADABLE + str(error.strerror), None
        found = stat_of(path)
        if found is not None and (before := known.get((kind, *found))) is not None:
            return size, before, found
        found = settled(found)  # before the bytes are read: what changes meanwhile has another time
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return size, UNREADABLE + "no regular file", None
            return size, sample_of(path, kind), found
        except OSError as error:  # reported with the other files that cannot be read
            return size, UNREADABLE + str(error.strerror), None

    waiting = iter(files)
    with ThreadPoolExecutor(THREADS) as threads:
        while block := list(itertools.islice(waiting, AT_ONCE)):  # each that waits is an object of its own
            yield from threads.map(version, block)

"""Files that are on the disk when they are said to be: fsynced, with size and hash.

What is written reaches the disk as it comes: behind many GB one fsync would be minutes in which nothing seems to move.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, TypedDict

import xxhash

from moe.common.durable import sync
from moe.common.moved import MOVED

PIECE = 1 << 22  # bytes that are read, written and hashed at once
SYNC_EVERY = 1 << 28  # bytes


class File(TypedDict):
    bytes: int
    xxh64: str


class SteadyFile:
    """An open file as torch.save writes into it, piece by piece; what it has written is counted in MOVED."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.unsynced = 0

    def write(self, content: bytes | memoryview) -> int:
        """Raises OSError."""
        whole = memoryview(content).cast("B")
        for start in range(0, len(whole), PIECE):
            piece = whole[start : start + PIECE]
            self.file.write(piece)
            MOVED.add(len(piece))
            self.unsynced += len(piece)
            if self.unsynced >= SYNC_EVERY:
                sync(self.file)
                self.unsynced = 0
        return len(whole)

    def flush(self) -> None:
        self.file.flush()


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> File:
    """Writes the pieces one after the other, hashed on the way. Raises OSError."""
    digest, size = xxhash.xxh64(), 0
    with open(path, "wb") as file:
        steady = SteadyFile(file)
        for piece in pieces:
            steady.write(piece)
            digest.update(piece)
            size += len(piece)
        sync(file)
    return {"bytes": size, "xxh64": digest.hexdigest()}


def hash_file(path: Path) -> str:
    """xxh64 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hash_rest(file)


def hash_rest(file: BinaryIO) -> str:
    """Of an open file, from where it stands to its end."""
    digest = xxhash.xxh64()
    while piece := file.read(PIECE):
        digest.update(piece)
        MOVED.add(len(piece))
    return digest.hexdigest()

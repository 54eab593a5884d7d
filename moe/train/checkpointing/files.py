"""Files that are on the disk when they are said to be: fsynced, with size and hash."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, BinaryIO, TypedDict

import xxhash

PIECE = 1 << 22  # bytes that are read, written and hashed at once


class File(TypedDict):
    bytes: int
    xxh64: str


def sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> File:
    """Writes the pieces one after the other, hashed on the way. Raises OSError."""
    digest, size = xxhash.xxh64(), 0
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)
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
    return digest.hexdigest()

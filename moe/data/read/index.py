"""index.json of one split: its shards, in little memory, parsed once in a process.

What was read stays until the file changes: a start asks for it some four times, and of 30,000 shards each time takes a
second. Streaming reads the file for itself (stream.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypedDict

from moe.common.errors import InputError
from moe.common.typed_json import parse_json
from moe.common.untrusted_names import file_name
from moe.data.folders import Folder, LocalFolder
from moe.data.locations import open_folder


class Shard(NamedTuple):
    name: str  # of its file
    bytes: int
    xxh64: str | None
    samples: int
    columns: str  # encodings, a comma between them
    packed: tuple[str, int] | None  # name and bytes of the compressed file that a remote holds in its place


class _File(TypedDict):
    basename: str
    bytes: int
    hashes: dict[str, str]


class _Entry(TypedDict):
    samples: int
    column_encodings: list[str]
    raw_data: _File
    zip_data: _File | None


class _Index(TypedDict):
    shards: list[_Entry]


_read: dict[Path, tuple[tuple[int, ...], list[Shard]]] = {}  # by path, with what tells one content from the next


def read_index(place: Folder) -> list[Shard]:
    """The shards of one split's folder; not to be changed. Raises InputError where it has no index.json that can be
    used, or one that names files elsewhere.
    """
    path = place.path / "index.json" if isinstance(place, LocalFolder) else None
    before = _state(path)
    if path is not None and before and _read.get(path, ((), []))[0] == before:
        return _read[path][1]
    shards = _parsed(place)
    if path is not None and before:
        _read[path] = before, shards
    return shards


def _state(path: Path | None) -> tuple[int, ...]:
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return ()
    return (status.st_mtime_ns, status.st_size, status.st_ino) if status is not None else ()


def _parsed(place: Folder) -> list[Shard]:
    content = place.read("index.json")
    if content is None:
        raise InputError(f"{place}/index.json: missing")
    try:
        entries = parse_json(content, _Index)["shards"]
    except ValueError as error:
        raise InputError(f"{place}/index.json: not an MDS index ({error})") from None
    columns: dict[str, str] = {}  # one text for all that are alike
    shards = []
    for entry in entries:
        raw, packed = entry["raw_data"], entry.get("zip_data")
        for file in (raw, packed) if packed else (raw,):
            file_name(file["basename"], f"{place}/index.json")
        encodings = ",".join(entry["column_encodings"])
        shards.append(
            Shard(
                raw["basename"],
                raw["bytes"],
                raw["hashes"].get("xxh64"),
                entry["samples"],
                columns.setdefault(encodings, encodings),
                (packed["basename"], packed["bytes"]) if packed else None,
            )
        )
    return shards


def split_bytes(folder: str | Path) -> int:
    """Bytes of one split's shards, by its index.json; 0 where that cannot be read."""
    try:
        return sum(shard.bytes for shard in read_index(open_folder(folder)))
    except InputError:
        return 0

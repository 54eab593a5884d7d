"""index.json of one split: its shards, in little memory.

- What was read stays until the file changes: a start asks for it some four times.
- A large one is read and parsed by one process of a machine (parsed_once.py): of 30,000 shards that takes 0.8 s. The
  others take what it leaves, the shards column by column, in 0.04 s.
- Streaming's readers are made from it as well (stream.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from moe.common.errors import InputError
from moe.common.typed_json import parse_json
from moe.common.untrusted_names import file_name
from moe.data.folders import Folder, LocalFolder
from moe.data.locations import open_folder
from moe.data.read.parsed_once import parsed_once

LARGE_BYTES = 1 << 18  # of an index.json, about 750 shards; smaller ones are parsed faster than looked for
APART = ("raw_data", "zip_data", "samples")  # what is of one shard alone in its entry


class Shard(NamedTuple):
    name: str  # of its file
    bytes: int
    xxh64: str | None
    samples: int
    columns: str  # encodings, a comma between them
    packed: tuple[str, int] | None  # name and bytes of the compressed file that a remote holds in its place
    packed_xxh64: str | None
    layout: dict[str, Any]  # all else of its entry, one object for all that are alike


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
    version: int | None
    shards: list[_Entry]


_read: dict[Path, tuple[tuple[int, ...], list[Shard]]] = {}  # by path, with what tells one content from the next


def read_index(place: Folder) -> list[Shard]:
    """The shards of one split's folder; not to be changed. Raises InputError where it has no index.json that can be
    used, or one that names files elsewhere.
    """
    path = place.path / "index.json" if isinstance(place, LocalFolder) else None
    state = _state(path)
    if path is None or not state:
        return _parsed(place)
    if _read.get(path, ((), []))[0] != state:
        if state[1] < LARGE_BYTES:
            shards = _parsed(place)
        else:
            shards = _from_columns(parsed_once(path, state, lambda: _columns(_parsed(place))))
        _read[path] = state, shards
    return _read[path][1]


def _state(path: Path | None) -> tuple[int, ...]:
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return ()
    return (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev) if status is not None else ()


def _columns(shards: list[Shard]) -> bytes:
    layouts = list({id(shard.layout): shard.layout for shard in shards}.values())
    number = {id(layout): i for i, layout in enumerate(layouts)}
    rows = ((*shard[:-1], number[id(shard.layout)]) for shard in shards)
    return json.dumps([layouts, *zip(*rows, strict=True)]).encode()


def _from_columns(content: bytes) -> list[Shard]:
    layouts, *columns = json.loads(content)
    if not columns:
        return []
    *others, encodings, packed, packed_xxh64, numbers = columns
    texts = {text: text for text in set(encodings)}
    pairs = (pair and tuple(pair) for pair in packed)
    rows = zip(*others, map(texts.get, encodings), pairs, packed_xxh64, map(layouts.__getitem__, numbers), strict=True)
    return list(map(Shard._make, rows))


def _parsed(place: Folder) -> list[Shard]:
    content = place.read("index.json")
    if content is None:
        raise InputError(f"{place}/index.json: missing")
    try:
        index = parse_json(content, _Index)
        if index.get("version", 2) != 2:
            raise ValueError(f"version {index['version']}, 2 is known")
    except ValueError as error:
        raise InputError(f"{place}/index.json: not an MDS index ({error})") from None
    layouts: dict[str, tuple[str, dict[str, Any]]] = {}  # one for all that are alike, with its columns' text
    shards = []
    for entry in index["shards"]:
        if "zip_data" not in entry:  # stock's reader asks for it, also where it is null
            raise InputError(f"{place}/index.json: not an MDS index (zip_data: missing)")
        raw, packed = entry["raw_data"], entry["zip_data"]
        for file in (raw, packed) if packed else (raw,):
            file_name(file["basename"], f"{place}/index.json")
        rest = {name: value for name, value in entry.items() if name not in APART}
        columns, layout = layouts.setdefault(repr(rest), (",".join(entry["column_encodings"]), rest))
        shards.append(
            Shard(
                raw["basename"],
                raw["bytes"],
                raw["hashes"].get("xxh64"),
                entry["samples"],
                columns,
                (packed["basename"], packed["bytes"]) if packed else None,
                packed["hashes"].get("xxh64") if packed else None,
                layout,
            )
        )
    return shards


def split_bytes(folder: str | Path) -> int:
    """Bytes of one split's shards, by its index.json; 0 where that cannot be read."""
    try:
        return sum(shard.bytes for shard in read_index(open_folder(folder)))
    except InputError:
        return 0

"""Is what index.json promises there, on the disk or on a bucket? Sizes always; xxh64 of every shard when asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xxhash

from moe.data.places import open_folder


def verify_split(folder: str | Path, full: bool = False) -> list[str]:
    """Faults of one split's folder, each naming its file; empty when all is well. `full` reads every byte."""
    place = open_folder(folder)
    index = place.read("index.json")
    if index is None:
        return [f"{folder}/index.json: missing"]
    try:
        shards = [shard["raw_data"] for shard in json.loads(index)["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        return [f"{folder}/index.json: not an MDS index ({type(error).__name__})"]
    faults, sizes = [], place.sizes()
    for info in shards:
        name = info["basename"]
        if name not in sizes:
            faults.append(f"{folder}/{name}: missing")
        elif sizes[name] != info["bytes"]:
            faults.append(f"{folder}/{name}: {sizes[name]} bytes, index.json says {info['bytes']}")
        elif full and xxhash.xxh64_hexdigest(place.read(name) or b"") != info["hashes"].get("xxh64", ""):
            faults.append(f"{folder}/{name}: its bytes changed (xxh64 is not that of index.json)")
    return faults


def read_samples(folder: str | Path, first: int, count: int) -> np.ndarray:
    """Samples [count, S] of a split in the order they lie there, without a loader. Fewer at the split's end."""
    place = open_folder(folder)
    rows: list[np.ndarray] = []
    start = 0
    for shard in json.loads(place.read("index.json") or b"")["shards"]:
        _, dtype, seq_len = shard["column_encodings"][0].split(":")
        low, high = max(first - start, 0), min(first + count - start, shard["samples"])
        if low < high:
            content = place.read(shard["raw_data"]["basename"]) or b""
            offset = int(np.frombuffer(content, np.uint32, 1, offset=4)[0])
            shape = (shard["samples"], int(seq_len))
            rows.append(np.ndarray(shape, dtype, content, offset)[low:high])
        start += shard["samples"]
    return np.concatenate(rows) if rows else np.empty((0, 0), np.uint16)

"""Is what index.json promises on disk? Sizes always; xxh64 of every shard when asked, at disk speed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xxhash


def verify_split(folder: str | Path, full: bool = False) -> list[str]:
    """Faults of one split's folder, each naming its file; empty when all is well. `full` reads every byte."""
    folder = Path(folder)
    index = folder / "index.json"
    try:
        shards = [shard["raw_data"] for shard in json.loads(index.read_text())["shards"]]
    except FileNotFoundError:
        return [f"{index}: missing"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        return [f"{index}: not an MDS index ({type(error).__name__})"]
    faults = []
    for info in shards:
        path = folder / info["basename"]
        if not path.is_file():
            faults.append(f"{path}: missing")
        elif (size := path.stat().st_size) != info["bytes"]:
            faults.append(f"{path}: {size} bytes, index.json says {info['bytes']}")
        elif full and file_xxh64(path) != info["hashes"].get("xxh64", ""):
            faults.append(f"{path}: its bytes changed (xxh64 is not that of index.json)")
    return faults


def file_xxh64(path: Path) -> str:
    digest = xxhash.xxh64()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_samples(folder: str | Path, first: int, count: int) -> np.ndarray:
    """Samples [count, S] of a split in the order they lie on the disk, without a loader. Fewer at the split's end."""
    folder = Path(folder)
    rows: list[np.ndarray] = []
    start = 0
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        _, dtype, seq_len = shard["column_encodings"][0].split(":")
        low, high = max(first - start, 0), min(first + count - start, shard["samples"])
        if low < high:
            path = folder / shard["raw_data"]["basename"]
            offset = int(np.fromfile(path, np.uint32, 1, offset=4)[0])
            rows.append(np.memmap(path, dtype, "r", offset, (shard["samples"], int(seq_len)))[low:high])
        start += shard["samples"]
    return np.concatenate(rows) if rows else np.empty((0, 0), np.uint16)

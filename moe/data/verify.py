"""Is what index.json promises on disk? Sizes always; xxh64 of every shard when asked, at disk speed."""

from __future__ import annotations

import json
from pathlib import Path

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

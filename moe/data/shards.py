"""MDS shards from whole arrays: the same bytes MDSWriter gives for one `ndarray:<dtype>:<S>` column, written at disk
speed.

MDSWriter encodes and joins one sample at a time (111 thousand a second); here header, offsets and a block of rows go
out as they lie in memory. A shard is full at MDSWriter's own limit, so a folder is equal to one that MDSWriter wrote.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xxhash

SIZE_LIMIT = 1 << 26


class ShardFormat:
    """The layout of one dataset: S tokens of `dtype` a sample, shards of at most `size_limit` bytes, xxh64."""

    def __init__(self, *, seq_len: int, dtype: str, size_limit: int = SIZE_LIMIT) -> None:
        self.seq_len, self.dtype = seq_len, np.dtype(dtype)
        sample_bytes = seq_len * self.dtype.itemsize
        self.config = {
            "version": 2,
            "format": "mds",
            "compression": None,
            "hashes": ["xxh64"],
            "size_limit": size_limit,
            "column_names": ["tokens"],
            "column_encodings": [f"ndarray:{dtype}:{seq_len}"],
            "column_sizes": [sample_bytes],
        }
        self._config_bytes = json.dumps(self.config, sort_keys=True).encode()
        self._sample_bytes = sample_bytes
        self.samples_per_shard = (size_limit - 8 - len(self._config_bytes)) // (sample_bytes + 4)
        if self.samples_per_shard < 1:
            raise ValueError(f"seq_len ({seq_len}) does not fit into a shard of {size_limit} bytes; lower it")

    def write(self, path: Path, rows: np.ndarray) -> dict:
        """Write rows [n, S] as one shard. Returns its entry for index.json, whose basename the merge sets."""
        assert rows.ndim == 2 and rows.shape[1] == self.seq_len and rows.dtype == self.dtype, (rows.shape, rows.dtype)
        n = len(rows)
        start = 4 + 4 * (n + 1) + len(self._config_bytes)
        offsets = (np.arange(n + 1, dtype=np.int64) * self._sample_bytes + start).astype(np.uint32)
        digest, size = xxhash.xxh64(), 0
        with open(path, "wb") as out:
            for part in (
                np.uint32(n).tobytes(),
                offsets.tobytes(),
                self._config_bytes,
                np.ascontiguousarray(rows).data,
            ):
                out.write(part)
                digest.update(part)
                size += memoryview(part).nbytes
        return {"samples": n, "bytes": size, "xxh64": digest.hexdigest()}

    def index_entry(self, number: int, info: dict) -> dict:
        """The entry of shard `number` in index.json, from what `write` returned."""
        raw = {"basename": f"shard.{number:05}.mds", "bytes": info["bytes"], "hashes": {"xxh64": info["xxh64"]}}
        return {"samples": info["samples"], "raw_data": raw, "zip_data": None, **self.config}

    def write_index(self, folder: Path, infos: list[dict]) -> None:
        entries = [self.index_entry(i, info) for i, info in enumerate(infos)]
        (folder / "index.json").write_text(json.dumps({"version": 2, "shards": entries}, sort_keys=True))

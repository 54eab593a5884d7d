"""MDS shards from complete arrays: the same bytes MDSWriter gives for one `ndarray:<dtype>:<S>` column, written at disk
speed.

MDSWriter encodes and joins one sample at a time (111 thousand a second); here header, offsets and many rows at once go
out as they lie in memory. A shard is full at MDSWriter's own limit, so a folder is equal to one that MDSWriter wrote.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xxhash

SIZE_LIMIT = 1 << 26


class ShardFormat:
    """The layout of one dataset: S tokens of `dtype` a sequence, shards of at most `size_limit` bytes, xxh64."""

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

    def header(self, samples: int) -> bytes:
        """What stands in front of the tokens of a shard of so many sequences."""
        start = 4 + 4 * (samples + 1) + len(self._config_bytes)
        offsets = (np.arange(samples + 1, dtype=np.int64) * self._sample_bytes + start).astype(np.uint32)
        return np.uint32(samples).tobytes() + offsets.tobytes() + self._config_bytes

    def write(self, path: Path, rows: np.ndarray) -> dict:
        """Write rows [n, S] as one shard. Returns its entry for index.json, whose basename the merge sets."""
        assert rows.ndim == 2 and rows.shape[1] == self.seq_len, rows.shape
        shard = ShardFile(path, self, len(rows))
        shard.write(np.ascontiguousarray(rows).reshape(-1))
        return shard.close()

    def index_entry(self, number: int, info: dict) -> dict:
        """The entry of shard `number` in index.json, from what `write` returned."""
        raw = {"basename": f"shard.{number:05}.mds", "bytes": info["bytes"], "hashes": {"xxh64": info["xxh64"]}}
        return {"samples": info["samples"], "raw_data": raw, "zip_data": None, **self.config}

    def write_index(self, folder: Path, infos: list[dict]) -> None:
        entries = [self.index_entry(i, info) for i, info in enumerate(infos)]
        (folder / "index.json").write_text(json.dumps({"version": 2, "shards": entries}, sort_keys=True))


class ShardFile:
    """One shard of `samples` sequences, written as its tokens come: memory does not grow with it.

    The header is written last; a file that is abandoned holds its tokens behind as many bytes of nothing.
    """

    def __init__(self, path: Path, layout: ShardFormat, samples: int) -> None:
        self._dtype, self._samples = layout.dtype, samples
        self._header = layout.header(samples)
        self._bytes = len(self._header)
        self.missing = samples * layout.seq_len  # tokens
        self._digest = xxhash.xxh64(self._header)
        self._out = open(path, "wb")  # noqa: SIM115 (it is closed by close or abandon)
        self._out.seek(self._bytes)

    def write(self, tokens: np.ndarray) -> int:
        """Append tokens [n], as many as there is room for. Returns how many these were."""
        assert tokens.dtype == self._dtype, tokens.dtype
        tokens = tokens[: self.missing]
        self._out.write(tokens.data)
        self._digest.update(tokens.data)
        self._bytes += tokens.nbytes
        self.missing -= len(tokens)
        return len(tokens)

    def close(self) -> dict:
        """Finish a full shard. Returns its entry for index.json."""
        assert self.missing == 0, self.missing
        self._out.seek(0)
        self._out.write(self._header)
        self._out.close()
        return {"samples": self._samples, "bytes": self._bytes, "xxh64": self._digest.hexdigest()}

    def abandon(self) -> None:
        """Leave a file that did not become full: room for the header, then its tokens."""
        self._out.truncate(self._bytes)
        self._out.close()

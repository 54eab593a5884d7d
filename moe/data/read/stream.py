"""Streaming's Stream, whose readers of shards are made from the index as the project has read it (index.py).

Stock reads and parses index.json for itself, in each process, and copies each shard's entry deeply, at every look: of
30,000 shards that is 4 s and 100 MB, three times in a start. Here readers of one layout share what is the same in all
of them, and the list is kept with the stream.
"""

from __future__ import annotations

import os
from pathlib import Path

from moe.common.errors import InputError
from moe.data.folders import LocalFolder
from moe.data.read.index import Shard, read_index
from moe.data.read.stock import TICK, FileInfo, MDSReader, Reader, Stream, World, wait_for_file_to_exist

INDEX = "index.json"


class TokenStream(Stream):
    """A stream whose copies (copy.copy) share the readers of its shards."""

    _found: list[Reader] | None = None

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """Raises InputError for an index that cannot be used, and what a download raises."""
        if self._found is None:
            folder = Path(self.local) / self.split
            if not (folder / INDEX).exists():
                self._fetch_index(folder / INDEX, world)
            shards = read_index(LocalFolder(folder))
            readers = [self._reader(shard) for shard in shards]
            for reader in {id(shard.layout): reader for shard, reader in zip(shards, readers, strict=True)}.values():
                reader.validate(allow_unsafe_types)
            self._found = readers
        return list(self._found)

    def _fetch_index(self, path: Path, world: World) -> None:
        """One process of a machine fetches it, under another name; the others wait. As stock."""
        if not world.is_local_leader:
            wait_for_file_to_exist(str(path), TICK, self.download_timeout, f"{self.remote}: no index.json has come")
        elif self.remote is not None:
            os.rename(self._download_file(INDEX, f"{INDEX}.tmp"), path)

    def _reader(self, shard: Shard) -> Reader:
        shared = {name: value for name, value in shard.layout.items() if name not in ("version", "format")}
        if (shard.layout.get("version"), shard.layout.get("format")) != (2, "mds"):
            raise InputError(f"{self.local}/{self.split}/{INDEX}: not an MDS index ({shard.name} is none of version 2)")
        raw = FileInfo(shard.name, shard.bytes, _hashes(shard.xxh64))
        zipped = FileInfo(*shard.packed, _hashes(shard.packed_xxh64)) if shard.packed else None
        return MDSReader(
            dirname=self.local, split=self.split, raw_data=raw, zip_data=zipped, samples=shard.samples, **shared
        )


def _hashes(xxh64: str | None) -> dict[str, str]:
    return {} if xxh64 is None else {"xxh64": xxh64}

"""Which data a run was trained on: what its manifest calls them, and whether a folder still holds them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from moe.common.errors import InputError
from moe.common.paths import refuse_irregular
from moe.data.locations import open_folder
from moe.data.meta import SPLITS, Meta, read_meta
from moe.data.read.index import read_index


def shards_fingerprint(folder: str | Path) -> str:
    """Names converted data by its tokens: their shape, EOS and tokenizer, and each shard's sequences, bytes and hash.
    Who made it, of files called what, with which versions, is no part of it.

    Raises InputError for an index.json that does not say so.
    """
    meta = read_meta(folder)
    content: dict[str, Any] = {
        "seq_len": meta.seq_len,
        "dtype": meta.dtype,
        "eos_id": meta.eos_id,
        "tokenizer": meta.tokenizer_fingerprint,
    }
    for split in SPLITS:
        path = Path(folder) / split / "index.json"
        content[split] = None
        try:
            there = path.exists()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); make it readable") from None
        if there:
            shards = read_index(open_folder(path.parent))
            if unnamed := [shard.name for shard in shards if shard.xxh64 is None]:
                raise InputError(f"{path}: holds no xxh64 of {unnamed[0]}; restore it, or convert again")
            content[split] = [[shard.samples, shard.bytes, shard.xxh64] for shard in shards]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def data_fingerprint(folder: str | Path) -> str:
    """As earlier versions named converted data, by what made it: sha256 of its meta.json."""
    return hashlib.sha256((Path(folder) / "meta.json").read_bytes()).hexdigest()[:16]


def meta_of(folder: str | Path, trained_on: str) -> Meta | None:
    """meta.json of a folder, where that holds what a run was trained on; None where it holds other data, or none.

    trained_on: what the run's manifest calls its data, of a mixture all streams.
    """
    try:
        for path in [Path(folder) / "meta.json", *[Path(folder) / split / "index.json" for split in SPLITS]]:
            if path.exists():
                refuse_irregular(path)
        if any(name(folder) in trained_on for name in (data_fingerprint, shards_fingerprint)):
            return read_meta(folder)
    except (OSError, InputError):
        pass
    return None

"""What a conversion is asked for: its flags, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe.common.errors import InputError
from moe.common.units import printable


@dataclass(frozen=True)
class Request:
    """The flags of convert/fineweb_to_mds.py."""

    dataset: tuple[str, ...]
    config: str | None
    split: str
    revision: str | None
    text_column: str
    tokenizer: str
    seq_len: int
    out: Path | str  # a path, or s3://bucket/prefix
    val_fraction: float
    seed: int
    max_documents: int | None
    max_tokens: int | None
    workers: int | None  # None: one a core, fewer for little text
    encoder: str
    overwrite: bool
    skip_bad_files: bool
    shard_index: int | None = None
    num_shards: int | None = None
    merge_only: bool = False
    engine: str = "local"
    verify: str = "samples"  # or "full": files that were read before are hashed again, whatever their times
    dry_run: bool = False

    @property
    def val_threshold(self) -> int:
        """A document whose 64-bit hash is below it goes to val."""
        return int(self.val_fraction * 2**64)

    @property
    def title(self) -> str:
        """The dataset as it was typed, fit to be printed."""
        return printable(" ".join(self.dataset))

    def identity(self, tokenizer_fingerprint: str) -> dict[str, Any]:
        """All but the files that decides the result: a resumed run must agree in each. No path is in it."""
        return {
            "text_column": self.text_column,
            "tokenizer": tokenizer_fingerprint,
            "seq_len": self.seq_len,
            "seed": self.seed,
            "val_fraction": self.val_fraction,
            "max_documents": self.max_documents,
            "max_tokens": self.max_tokens,
        }

    def check(self) -> None:
        """InputError for a value out of range."""
        for flag, value, least in (("--seq-len", self.seq_len, 2), ("--workers", self.workers, 1)):
            if value is not None and value < least:
                raise InputError(f"{flag} {value}: must be at least {least}")
        for flag, limit in (("--max-documents", self.max_documents), ("--max-tokens", self.max_tokens)):
            if limit is not None and limit < 1:
                raise InputError(f"{flag} {limit}: must be at least 1; leave it out for no limit")
        if not 0 <= self.val_fraction < 1:
            raise InputError(f"--val-fraction {self.val_fraction}: must be at least 0 and below 1, such as 0.005")
        if (self.shard_index is None) != (self.num_shards is None) or (
            self.num_shards is not None and not 0 <= (self.shard_index or 0) < self.num_shards
        ):
            raise InputError(
                f"--shard-index {self.shard_index} --num-shards {self.num_shards}: "
                "give both, the index from 0 to one less than the number"
            )
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"--seed {self.seed}: must be at least 0 and below 2**63")

"""What a conversion is asked for: flags checked, the dataset's name resolved to files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe.data.errors import InputError
from moe.data.hub import hub_source, is_hub_name
from moe.data.sources import Source, local_source


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
    out: Path
    val_fraction: float
    seed: int
    max_documents: int | None
    max_tokens: int | None
    workers: int | None  # None: one a core, fewer for little text
    encoder: str
    overwrite: bool
    skip_bad_files: bool

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
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"--seed {self.seed}: must be at least 0")


def resolve(request: Request) -> Source:
    """The dataset's files, on this machine or on the hub."""
    names = request.dataset
    if len(names) == 1 and is_hub_name(names[0]):
        return hub_source(names[0], config=request.config, split=request.split, revision=request.revision)
    if request.revision is not None:
        raise InputError(f"--revision {request.revision}: {' '.join(names)} is on this machine; leave --revision out")
    paths = [Path(name).expanduser() for name in names]
    return local_source(paths, dataset=" ".join(names), config=request.config, split=request.split)

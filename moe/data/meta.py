"""`meta.json`:

what a converted dataset holds and what made it. The same bytes for any number of workers and any encoder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypedDict

from moe.common.errors import InputError
from moe.common.typed_json import parse_json
from moe.data.locations import open_folder

SPLITS = ("train", "val")
FORMAT = 1
WORTH_A_WARNING = 0.01


COUNTS = ("duplicate_ids", "separators", "unknown_tokens", "sampled_characters", "lost_characters")


class Vocabulary(Protocol):
    """What a model needs to know of its data."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...


@dataclass(frozen=True)
class Meta:
    """Beside `train/` and `val/`. Token counts include EOS; `samples` are sequences of `seq_len` tokens."""

    dataset: str
    config: str | None
    split: str
    revision: str | None
    text_column: str
    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int  # largest id + 1
    eos_id: int
    seq_len: int
    dtype: str
    seed: int
    val_fraction: float  # as used: raised for a dataset so small that val would be empty
    max_documents: int | None
    max_tokens: int | None
    documents: dict[str, int]
    tokens: dict[str, int]
    samples: dict[str, int]
    dropped_tokens: dict[str, int]  # less than one block in each split
    text_bytes: int
    tokens_per_document: dict[str, float]  # mean, p50, p99, max
    skipped: dict[str, int]
    skipped_examples: dict[str, list[str]]
    left_out: dict[str, str]  # file -> why
    versions: dict[str, str]
    # counted since these fields are there; None in an older meta.json
    proofs: dict[str, list[str]] | None = None  # files of the hub, by what their bytes were held against
    id_column: str | None = None  # what names documents; None: their text
    duplicate_ids: int | None = None  # documents whose id an earlier one has, over all of the dataset
    duplicates_estimated: bool | None = None  # by a sample of the ids: above a million different ones
    separators: int | None = None  # EOS lines of .txt files, which ended documents
    unknown_tokens: int | None = None  # among `tokens`
    sampled_characters: int | None = None  # drawn from all over each unit, white space aside
    lost_characters: int | None = None  # among these: decoding does not give them back
    format: int = field(default=FORMAT)


def warnings_of(meta: Meta) -> list[str]:
    """Losses above WORTH_A_WARNING: rows skipped, tokens unknown, characters gone, ids that are not unique."""
    documents, tokens = sum(meta.documents.values()), sum(meta.tokens.values())
    skipped = sum(meta.skipped.values())
    same = "documents share their id with another" + (", by estimate" if meta.duplicates_estimated else "")
    shares = (
        (skipped, documents + skipped, "rows were skipped", "see skipped_examples in meta.json"),
        (meta.unknown_tokens, tokens, "tokens are unknown to the tokenizer", "take one with byte fallback"),
        (meta.lost_characters, meta.sampled_characters, "characters are lost in a sample", "take another tokenizer"),
        (meta.duplicate_ids, documents, same, "duplicates, or ids that name no document"),
    )
    return [
        f"{count / total:.1%} of the {what} ({count:,} of {total:,}); {fix}"
        for count, total, what, fix in shares
        if count and total and count > WORTH_A_WARNING * total
    ]


class _Versioned(TypedDict):
    format: int


class _Splits(TypedDict):
    train: int
    val: int


class _Lengths(TypedDict):
    mean: float
    p50: float
    p99: float
    max: float


class _Counts(TypedDict):
    documents: _Splits
    samples: _Splits
    tokens: _Splits
    tokens_per_document: _Lengths


def meta_json(meta: Meta) -> str:
    return json.dumps(asdict(meta), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_meta(folder: str | Path) -> Meta:
    """The dataset's description. Raises InputError when `folder`, a path or an s3:// address, holds no finished
    conversion.
    """
    place = open_folder(folder)
    text = place.read("meta.json")
    fix = "give the folder that convert/fineweb_to_mds.py wrote (--out), or convert first"
    if text is None:
        state = "is empty or not there" if place.is_empty() else "has no meta.json"
        raise InputError(f"{folder} {state}: {fix}")
    path = f"{folder}/meta.json"
    try:
        version = parse_json(text, _Versioned)["format"]
        content: Any = {**parse_json(text, _Counts), **parse_json(text, Meta)} if version == FORMAT else {}
        for name in ("seq_len", "vocab_size") if content else ():
            if content[name] < 2:
                raise ValueError(f"{name} is {content[name]}; at least 2 is needed")
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}): {fix}") from None
    if version != FORMAT:
        raise InputError(f"{path}: format {version}, this version reads {FORMAT}; convert again")
    return Meta(**{f.name: content.get(f.name) for f in fields(Meta)})

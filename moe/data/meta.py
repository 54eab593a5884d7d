"""`meta.json`:

what a converted dataset holds and what made it. The same bytes for any number of workers and any encoder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from moe.errors import InputError

FORMAT = 1


@dataclass(frozen=True)
class Meta:
    """Beside `train/` and `val/`. Token counts include EOS; `samples` are blocks of `seq_len` tokens."""

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
    format: int = field(default=FORMAT)


def write_meta(folder: Path, meta: Meta) -> None:
    (folder / "meta.json").write_text(json.dumps(asdict(meta), indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_meta(folder: str | Path) -> Meta:
    """The dataset's description. Raises InputError when `folder` holds no finished conversion."""
    path = Path(folder) / "meta.json"
    mend = "give the folder that convert/fineweb_to_mds.py wrote (--out), or convert first"
    if not path.is_file():
        state = "is not there" if not path.parent.exists() else "has no meta.json"
        raise InputError(f"{path.parent} {state}: {mend}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InputError(f"{path}: format {content['format']}, this version reads {FORMAT}; convert again")
        return Meta(**{f.name: content[f.name] for f in fields(Meta)})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error}): {mend}") from error

"""How many tokens a run's vocabulary has, from what is on this machine; never from the network."""

from __future__ import annotations

import json
from pathlib import Path

from moe.common.errors import InputError
from moe.config import Config
from moe.config.bounds import brief

MOST_TOKENS = 100_000_000
KNOWN = {"openai-community/gpt2": 50257, "gpt2": 50257}


def find_vocab_size(config: Config, given: int | None = None) -> tuple[int, str]:
    """The size, and where it was found: `given` (--vocab-size), else the converted data, else the tokenizer's folder,
    else a table.

    Raises:
        InputError: none of them has it, or it is no size that a vocabulary can have.
    """
    if given is not None:
        if not 2 <= given <= MOST_TOKENS:
            raise InputError(f"--vocab-size ({brief(given)}) must be at least 2 and at most {MOST_TOKENS:,}")
        return given, "--vocab-size"
    data = config.train_data
    for folder in [data.local] if data.local is not None else [stream.local for stream in data.streams.values()]:
        path = Path(folder) / "meta.json"
        if path.is_file():
            return _read(path, lambda content: int(content["vocab_size"])), str(path)
    path = Path(config.tokenizer) / "tokenizer.json"
    if path.is_file():
        return _read(path, _of_tokenizer), str(path)
    if config.tokenizer in KNOWN:
        return KNOWN[config.tokenizer], config.tokenizer
    raise InputError(
        f"tokenizer ({config.tokenizer}): the size of its vocabulary is not known before the data is converted or the "
        "tokenizer is a folder; give --vocab-size"
    )


def _of_tokenizer(content: dict) -> int:
    """One more than the largest id, as the converted data has it."""
    vocabulary = content["model"]["vocab"]
    size = max(vocabulary.values()) + 1 if isinstance(vocabulary, dict) else len(vocabulary)
    return max([size, *(token["id"] + 1 for token in content["added_tokens"])])


def _read(path: Path, find) -> int:
    try:
        size = find(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {error}); give --vocab-size") from None
    if not 2 <= size <= MOST_TOKENS:
        raise InputError(f"{path}: gives a vocabulary of {size} tokens; convert again, or give --vocab-size")
    return size

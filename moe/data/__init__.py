"""Text to tokens on disk (conversion), and tokens to batches (reading).

- write/ converts, read/ makes batches; neither imports the other. Both stand on text/: files, documents, tokenizers.
- Beside this file is what all three use: folders on the disk, on a bucket and on the hub, and `meta.json`.

Names are loaded on first use: conversion workers must not pay for torch, nor training for pyarrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "load_tokenizer": "text.tokenizer",
    "tokenizer_fingerprint": "text.tokenizer",
    "vocab_size": "text.tokenizer",
    "Meta": "meta",
    "read_meta": "meta",
    "TokenDataset": "read.dataset",
    "build_train_loader": "read.loader",
    "build_eval_loader": "read.loader",
    "StreamSpec": "read.mixture",
    "epoch_samples": "read.mixture",
    "TextPlan": "read.text_plan",
    "open_text": "read.text_plan",
    "build_text_loader": "read.text_loader",
    "build_text_eval_loader": "read.text_loader",
    "verify_split": "read.verify",
    "clean_stale_shared_memory": "read.shared_memory",
    "build_corpus": "text.corpus",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

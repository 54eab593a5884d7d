"""Text to tokens on disk (conversion), and tokens to batches (reading).

Names are loaded on first use: conversion workers must not pay for torch, nor training for pyarrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "load_tokenizer": "tokenizer",
    "tokenizer_fingerprint": "tokenizer",
    "vocab_size": "tokenizer",
    "Meta": "meta",
    "read_meta": "meta",
    "TokenDataset": "dataset",
    "build_train_loader": "loader",
    "build_eval_loader": "loader",
    "StreamSpec": "mixture",
    "epoch_samples": "mixture",
    "TextPlan": "text",
    "open_text": "text",
    "build_text_loader": "text",
    "build_text_eval_loader": "text",
    "verify_split": "verify",
    "clean_stale_shared_memory": "shared_memory",
    "build_corpus": "corpus",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

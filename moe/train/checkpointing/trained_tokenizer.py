"""The tokenizer a checkpoint was trained with: which one it is, by its fingerprint, and where it is to be had.

- New checkpoints hold its files and its fingerprint. Older ones name it by path or hub name alone; the meta.json of
  their data tells its fingerprint, where that file is still the one that they were trained on.
- Another tokenizer gives other ids for the same text. It is refused, but where a user names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe.common.errors import InputError
from moe.common.paths import expanded
from moe.data.meta import read_meta
from moe.data.text.tokenizer import load_tokenizer, tokenizer_fingerprint, vocab_size
from moe.train.checkpointing.checkpoints import MANIFEST, TOKENIZER, Checkpoint, CheckpointError


def trained_fingerprint(manifest: dict[str, Any]) -> str | None:
    """The fingerprint of the tokenizer that a manifest's run was trained with; None where nothing tells."""
    if manifest.get("tokenizer"):
        return manifest["tokenizer"]
    data = manifest["config"].get("train_data")
    data = data if isinstance(data, dict) else {}
    streams = data.get("streams")
    for stream in streams.values() if isinstance(streams, dict) and streams else (data,):
        folder = stream.get("local") if isinstance(stream, dict) else None
        if not isinstance(folder, str):
            continue
        try:
            content = (Path(folder) / "meta.json").read_bytes()
            if hashlib.sha256(content).hexdigest()[:16] in manifest["data"]:  # as it was then
                return read_meta(folder).tokenizer_fingerprint
        except (OSError, InputError, ValueError):
            continue
    return None


def checkpoint_tokenizer(checkpoint: Checkpoint, named: str | None, report: Callable[[str], None]) -> Any:
    """The tokenizer that the checkpoint was trained with, or the one that a user has `named` (--tokenizer).

    Raises:
        InputError: none is to be had, it is another one than that of the training, or `named` does not fit the model.
    """
    manifest = checkpoint.manifest
    trained = trained_fingerprint(manifest)
    if named is not None:
        return _named(checkpoint, named, trained, report)
    kept = checkpoint.path / TOKENIZER
    if any(name.startswith(f"{TOKENIZER}/") for name in manifest["files"]):
        return _same(checkpoint, str(kept), trained)
    name = manifest["config"]["tokenizer"]
    tokenizer = _same(checkpoint, name, trained)
    if not manifest.get("tokenizer"):
        proof = (
            "which made its data" if trained else "and nothing says whether that is still the one it was trained with"
        )
        report(f"{checkpoint.path.name} holds no tokenizer; using {name}, {proof}")
    return tokenizer


def _same(checkpoint: Checkpoint, name: str, trained: str | None) -> Any:
    tokenizer = _load(checkpoint, name)
    found = tokenizer_fingerprint(tokenizer)
    if trained is not None and found != trained:
        raise InputError(
            f"tokenizer ({name}) is another one than {checkpoint.path} was trained with (fingerprint {found[:12]}, was "
            f"{trained[:12]}): its ids mean other text. Bring the old one back, or name one with --tokenizer"
        )
    if error := _misfit(checkpoint, tokenizer):
        raise InputError(f"tokenizer ({name}) is another one than {checkpoint.path} was trained with: {error}")
    return tokenizer


def _named(checkpoint: Checkpoint, name: str, trained: str | None, report: Callable[[str], None]) -> Any:
    tokenizer = load_tokenizer(expanded(name, "--tokenizer"))
    if error := _misfit(checkpoint, tokenizer):
        raise InputError(f"--tokenizer ({name}) does not fit {checkpoint.path}: {error}; leave it out, or name another")
    found = tokenizer_fingerprint(tokenizer)
    if found != trained:
        was = f"was trained with {trained[:12]}" if trained else "does not tell which one it was trained with"
        report(f"warning: --tokenizer ({name}) has the fingerprint {found[:12]}, {checkpoint.path.name} {was}")
    return tokenizer


def _load(checkpoint: Checkpoint, name: str) -> Any:
    try:
        return load_tokenizer(name)
    except InputError as error:
        raise CheckpointError(
            f"{checkpoint.path / MANIFEST} names a tokenizer that is not available: {error}; name one with --tokenizer"
        ) from None


def _misfit(checkpoint: Checkpoint, tokenizer: Any) -> str | None:
    """Why the model cannot be used with it: its ids must be rows of the embedding, and its EOS that of the model."""
    rows, eos = checkpoint.manifest["vocab_size"], checkpoint.manifest["eos_id"]
    if vocab_size(tokenizer) > rows:
        return f"its ids go up to {vocab_size(tokenizer) - 1:,}, the model has {rows:,}"
    if tokenizer.eos_token_id != eos:
        return f"its EOS is id {tokenizer.eos_token_id}, the model's is {eos}"
    return None

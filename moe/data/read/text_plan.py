"""Text to train on, looked up before the first step: its files, the encoder, and what names them for a resume."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from moe.data.read.lanes import TextJob, cut_pieces
from moe.data.text.encoders import choose_encoder
from moe.data.text.errors import faults_text
from moe.data.text.files import Unit
from moe.data.text.ids import choose_id
from moe.data.text.losses import lossy, warning_before
from moe.data.text.planning import plan_units
from moe.data.text.sample import sample_documents
from moe.data.text.sources import resolve
from moe.data.text.tokenizer import load_tokenizer, plain_json, token_dtype, tokenizer_fingerprint, vocab_size
from moe.errors import InputError


@dataclass(frozen=True)
class TextPlan:
    """Text looked up: its units, how they are read, and what names them."""

    job: TextJob
    units: tuple[Unit, ...]
    fingerprint: str
    summary: str
    vocab_size: int


def open_text(
    *,
    dataset: str,
    config: str | None,
    split: str,
    revision: str | None,
    text_column: str,
    val_fraction: float,
    val_seed: int,
    lanes: int,
    tokenizer_name: str,
    seq_len: int,
    seed: int,
    say: Callable[[str], None],
) -> TextPlan:
    """Resolve the dataset and choose the encoder. Raises InputError for what cannot be read."""
    tokenizer = load_tokenizer(tokenizer_name)
    try:
        source = resolve(dataset=(dataset,), config=config, split=split, revision=revision)
        units, faults = plan_units(source.files, text_column)
        if faults:
            raise InputError(faults_text(faults, skipping=True) + "\nMend them, or take them out of the dataset.")
    except InputError as error:
        raise InputError(f"train_data.text: {in_keys(error)}") from None
    spec, size = plain_json(tokenizer), vocab_size(tokenizer)
    documents = sample_documents(units, text_column, separator=tokenizer.eos_token)
    encoder = choose_encoder(
        "auto",
        tokenizer=tokenizer,
        tokenizer_name=tokenizer_name,
        spec_json=spec,
        documents=documents,
        say=say,
    )
    warning = warning_before(
        lossy(tokenizer), documents, encoder=encoder, spec_json=spec, tokenizer_name=tokenizer_name
    )
    if warning:
        say(warning)
    id_column, told = choose_id(units, text_column)
    job = TextJob(
        pieces=cut_pieces(units, lanes),
        lanes=lanes,
        seq_len=seq_len,
        dtype=token_dtype(size),
        eos_id=tokenizer.eos_token_id,
        seed=seed,
        val_seed=val_seed,
        val_threshold=int(val_fraction * 2**64),
        text_column=text_column,
        id_column=id_column,
        separator=tokenizer.eos_token,
        encoder=encoder,
        tokenizer=tokenizer_name,
        spec_json=spec,
    )
    content = {
        "files": [(file.name, file.size, file.version) for file in source.files],
        "revision": source.revision,
        "text_column": text_column,
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    commit = f" at {source.revision[:12]}" if source.revision else ""
    text_bytes = sum(unit.weight for unit in units)
    return TextPlan(
        job,
        tuple(units),
        f"text {digest}{commit}, lanes {lanes}, val_fraction {val_fraction:g}, val_seed {val_seed}",
        f"{dataset}: {len(source.files)} files, {text_bytes / 1e6:,.0f} MB, tokenised as they are read by {encoder}; "
        f"{told}",
        size,
    )


def in_keys(error: InputError) -> str:
    """The sources' messages name the converter's flags: here they are keys."""
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda match: match[1].replace("-", "_"), str(error))

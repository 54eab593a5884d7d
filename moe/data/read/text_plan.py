"""Text to train on, looked up before the first step: its files, the encoder, and what names them for a resume."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe.common.errors import InputError
from moe.common.units import printable, size
from moe.data.read.lanes import TextJob, cut_pieces
from moe.data.read.text_known import read_commit
from moe.data.read.touched import touched_line
from moe.data.text.content import Known, hashes_of, stat_of
from moe.data.text.encoders import choose_encoder
from moe.data.text.errors import errors_text
from moe.data.text.files import Source, SourceFile, Unit
from moe.data.text.ids import choose_id
from moe.data.text.losses import WORTH_A_WARNING, Lossy, lossy, measured, warning_of
from moe.data.text.plain_ids import plain_json
from moe.data.text.planning import plan_units
from moe.data.text.sample import Spread, sample_documents, spread_documents
from moe.data.text.selection import left_out_lines
from moe.data.text.sources import is_hub_name, resolve
from moe.data.text.tokenizer import load_tokenizer, token_dtype, tokenizer_fingerprint, vocab_size

SEPARATOR = " | "  # in a fingerprint: what is compared, then what only tells which file changed
WHOLE = "all bytes="  # begins the part of a fingerprint that is compared where both have it
MOST_NAMED = 64


@dataclass(frozen=True)
class TextPlan:
    """Text looked up: its units, how they are read, and what names them."""

    job: TextJob
    units: tuple[Unit, ...]
    fingerprint: str
    former: tuple[str, ...]  # what earlier versions called the same text
    summary: str
    vocab_size: int
    files: Sequence[SourceFile]
    asked: dict[str, Any]  # the dataset as it was typed
    commit: str | None  # of a hub dataset
    warning: str | None  # of rows without text, and of what the tokenizer cannot write


def open_text(
    *,
    dataset: str,
    config: str | None,
    split: str,
    revision: str | None,
    text_column: str,
    skip_bad_files: bool = False,
    verify: str = "samples",
    val_fraction: float,
    val_seed: int,
    lanes: int,
    tokenizer_name: str,
    seq_len: int,
    seed: int,
    say: Callable[[str], None],
    outputs: tuple[Path, ...] = (),
    known: Known | None = None,
    run_folder: Path | None = None,
) -> TextPlan:
    """Resolve the dataset and choose the encoder.

    outputs: the run's folders, which are no text. known: files that were sampled before. verify: `full` names them by
    all of their bytes, too. run_folder: where an earlier start may have kept the commit of a hub dataset.

    Raises InputError for what cannot be read.
    """
    tokenizer = load_tokenizer(tokenizer_name)
    asked = {"dataset": dataset, "config": config, "split": split, "revision": revision}
    begun = read_commit(run_folder, asked) if run_folder is not None and is_hub_name(dataset) else None
    if begun is not None:
        say(f"train_data.text: {dataset}, commit {begun[:12]}, as when this run began; revision names another")
    try:
        source = resolve(
            dataset=(dataset,),
            config=config,
            split=split,
            revision=begun or revision,
            outputs=outputs,
            known=None if verify == "full" else known,
        )
        for line in [*left_out_lines(source.left_out), *source.notes]:
            say(f"train_data.text: {in_keys(line)}")
        if verify != "full" and (line_of_touched := touched_line(source.files, known or {})):
            say(line_of_touched)
        units, errors = plan_units(source.files, text_column)
        if errors and (not skip_bad_files or not units):
            fix = "Fix them, or set train_data.text.skip_bad_files=true to continue without them."
            raise InputError(errors_text(errors, skipping=True) + "\n" + fix)
        for reason in errors:
            say(f"train_data.text: a file is skipped: {reason}")
    except InputError as error:
        raise InputError(f"train_data.text: {in_keys(error)}") from None
    spec, rows = plain_json(tokenizer), vocab_size(tokenizer)
    documents = sample_documents(units, text_column, separator=tokenizer.eos_token)
    encoder = choose_encoder(
        "auto",
        tokenizer=tokenizer,
        tokenizer_name=tokenizer_name,
        spec_json=spec,
        documents=documents,
        say=say,
    )
    id_column, id_line = choose_id(units, text_column)
    job = TextJob(
        pieces=cut_pieces(units, lanes),
        lanes=lanes,
        seq_len=seq_len,
        dtype=token_dtype(rows),
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
        skip_bad_files=skip_bad_files,
    )
    lost, warning = _losses(job, lossy(tokenizer))
    if warning:
        say(warning)
    fingerprint = tokenizer_fingerprint(tokenizer)
    bad = {reason.file for reason in errors}
    content = {
        "files": ["skipped" if file.name in bad else file.version for file in source.files],
        "text_column": text_column,
        "tokenizer": fingerprint,
    }
    rest = f", lanes {lanes}, val_fraction {val_fraction:g}, val_seed {val_seed}"
    name = f"text {_digest(content)}{rest}"
    files = _grouped(
        [f"{file.name}={'skipped' if file.name in bad else _digest(file.version)[:8]}" for file in source.files]
    )
    if source.revision is not None:
        files.insert(0, f"commit={source.revision}")
    if verify == "full":
        files += _whole(source, bad, say)
    text_bytes = sum(unit.weight for unit in units)
    return TextPlan(
        job,
        tuple(units),
        SEPARATOR.join([name, *files]),
        (_former(source, text_column, fingerprint) + rest,),
        f"{dataset}: {len(source.files)} files, {text_bytes / 1e6:,.0f} MB, tokenised as they are read by {encoder}; "
        f"{id_line}{lost}",
        rows,
        source.files,
        asked,
        source.revision,
        warning,
    )


def _whole(source: Source, bad: set[str], say: Callable[[str], None]) -> list[str]:
    """What names the text by all of its bytes: one hash that is compared, then what tells which file changed."""
    local = [file for file in source.files if not file.remote and file.name not in bad]
    say(f"train_data.text.verify=full: hashing {len(local)} files, {size(sum(file.size for file in local))} ...")
    hashes = hashes_of([file.path for file in local])
    return [
        f"{WHOLE}{_digest(hashes)}",
        *_grouped([f"{file.name} whole={digest[:8]}" for file, digest in zip(local, hashes, strict=True)]),
    ]


def _losses(job: TextJob, kind: Lossy | None) -> tuple[str, str | None]:
    """(what to add to the summary, a warning or None) of rows without text, and of a tokenizer that cannot write all.

    Measured on documents from all over the text: training reads all of it only in the course of an epoch.
    """
    places = list(dict.fromkeys(piece.unit for piece in job.pieces))
    found = spread_documents(places, job.text_column, separator=job.separator)
    summary, warnings = _rows(found)
    if kind is not None:
        losses, tokens = measured(
            kind, found.texts, encoder=job.encoder, spec_json=job.spec_json, tokenizer_name=job.tokenizer
        )
        what = f"{len(found.texts):,} documents from all over the text"
        summary += (
            f"; in a sample of {what} {losses.unknown_tokens / max(1, tokens):.2%} of the tokens are unknown to the "
            f"tokenizer, {losses.lost_characters / max(1, losses.sampled_characters):.2%} of the characters are lost"
        )
        warnings += [warning for warning in [warning_of(losses, tokens, what)] if warning]
    return summary, "; ".join([*warnings[:1], *(line.removeprefix("warning: ") for line in warnings[1:])]) or None


def _rows(found: Spread) -> tuple[str, list[str]]:
    """(what to add to the summary, warnings) of rows that hold no text, and of lines that end documents."""
    bad = sum(found.skipped.counts.values())
    rows = found.documents + bad
    ended = f"; {found.separators:,} lines of EOS ended documents there" if found.separators else ""
    if not bad:
        return (f"; a sample of {rows:,} documents from all over the text{ended}" if ended else ""), []
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(found.skipped.counts.items()))
    what = f"{rows:,} rows from all over the text"
    line = f"; in a sample of {what} {bad / rows:.2%} are skipped ({reasons}){ended}"
    if bad <= WORTH_A_WARNING * rows:
        return line, []
    named = "; ".join(names[0] for names in found.skipped.examples.values())
    return line, [f"warning: of {what} {bad / rows:.1%} are skipped ({reasons}), such as {printable(named)}"]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _grouped(files: list[str]) -> list[str]:
    """What tells which file changed: each file where they are few, else groups of neighbours."""
    count = -(-len(files) // MOST_NAMED)
    if count <= 1:
        return files
    groups = [files[i : i + count] for i in range(0, len(files), count)]
    return [f"{group[0].rsplit('=', 1)[0]} to {group[-1].rsplit('=', 1)[0]}={_digest(group)[:8]}" for group in groups]


def _former(source: Source, text_column: str, tokenizer: str) -> str:
    """What the text was called when files of this machine were known by their times, as long as those still hold."""
    files = []
    for file in source.files:
        found = None if file.remote else stat_of(file.path)
        files.append((file.name, file.size, str(found[1]) if found else file.version))
    content = {"files": files, "revision": source.revision, "text_column": text_column, "tokenizer": tokenizer}
    return f"text {_digest(content)}" + (f" at {source.revision[:12]}" if source.revision else "")


def in_keys(error: InputError | str) -> str:
    """The sources' messages name the converter's flags: here they are keys."""
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda match: match[1].replace("-", "_"), str(error))

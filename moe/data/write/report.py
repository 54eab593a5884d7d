"""What a conversion says at its end, and `moe inspect` from disk."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from moe.common.errors import InputError
from moe.common.typed_json import parse_json
from moe.data.locations import open_folder
from moe.data.meta import SPLITS, Meta, warnings_of
from moe.data.write.progress import clock, human


class Report(TypedDict):
    seconds: float
    encoder: str


def recorded_report(folder: str | Path) -> Report | None:
    """What conversion.json says of the run; None without one. Raises InputError for one that is damaged."""
    try:
        return parse_json(open_folder(folder).read("conversion.json") or b"null", Report | None)
    except ValueError as error:
        raise InputError(f"{folder}/conversion.json: is damaged ({error}); restore it or remove it") from None


def summary(meta: Meta, folder: str | Path, report: Report | None = None) -> list[str]:
    """Lines for a person about the dataset at a path or an s3:// address; with `report` also about the last run."""
    tokens, documents = sum(meta.tokens.values()), sum(meta.documents.values())
    per = meta.tokens_per_document
    size = sum(open_folder(folder).sizes().values())
    lines = [
        f"dataset      {meta.dataset}" + (f", config {meta.config}" if meta.config else "") + f", split {meta.split}",
        f"tokenizer    {meta.tokenizer} ({meta.vocab_size} ids, EOS {meta.eos_id})",
        f"sequence     {meta.seq_len} tokens, {meta.dtype}",
        f"documents    {documents:,}",
        f"tokens       {tokens:,} ({human(tokens)})",
        *(f"  {s:<10} {meta.samples[s]:,} sequences from {meta.documents[s]:,} documents" for s in SPLITS),
        f"a document   {per['mean']:g} tokens, p50 {per['p50']:g}, p99 {per['p99']:g}, longest {per['max']:g}",
        f"skipped rows {sum(meta.skipped.values()):,}"
        + (f" ({', '.join(f'{n} {reason}' for reason, n in sorted(meta.skipped.items()))})" if meta.skipped else ""),
        *_text_lines(meta),
        f"dropped      {sum(meta.dropped_tokens.values()):,} tokens (incomplete last sequence)",
        *(f"left out     file {file}: {reason}" for file, reason in meta.left_out.items()),
        f"on disk      {size:,} bytes, {size / max(1, sum(meta.samples.values()) * meta.seq_len):.3f} a token",
    ]
    if report is not None:
        # no rate: for little text the seconds are mostly imports, and a run that resumed made only a part
        lines.append(f"last run     {clock(report['seconds'])} from start to end, encoder {report['encoder']}")
    lines.append(f"folder       {folder}")
    return lines + [f"warning      {warning}" for warning in warnings_of(meta)]


def _text_lines(meta: Meta) -> list[str]:
    """How the text became documents, and what of it the tokens do not hold; nothing from an older meta.json."""
    if meta.duplicate_ids is None:
        return []
    about = "about " if meta.duplicates_estimated else ""
    named = (
        f"by column '{meta.id_column}', {about}{meta.duplicate_ids:,} with the id of another"
        if meta.id_column
        else "by their text"
    )
    lines = [f"identified   {named}"]
    if meta.separators:
        lines.append(f"separators   {meta.separators:,} lines of .txt files that are EOS ended documents")
    if meta.sampled_characters:  # a tokenizer that can write everything has nothing to count
        lines.append(
            f"lost         {meta.unknown_tokens:,} unknown tokens; {meta.lost_characters:,} of "
            f"{meta.sampled_characters:,} sampled characters do not come back"
        )
    return lines

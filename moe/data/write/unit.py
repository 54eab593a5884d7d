"""One unit of work from rows to blocks: the function every engine runs, with the same bytes as its result.

A unit is written into a scratch folder, its done mark last, and moves from there: one that has its mark is complete.
Two processes may do the same unit at once; both make the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from moe.common.errors import InputError
from moe.data.folders import Folder
from moe.data.hub_proof import verified_against
from moe.data.meta import SPLITS
from moe.data.text.content import stat_of
from moe.data.text.encoders import Encoder, build_encoder
from moe.data.text.errors import NO_ROWS, BadFileError
from moe.data.text.files import SourceFile, Unit
from moe.data.text.losses import Counting, Lossy
from moe.data.text.reading import opened, read_batches
from moe.data.text.rows import Skipped, clean, document_hashes, have_ids
from moe.data.write.packing import BlockWriter, Packer, Writer
from moe.data.write.recorded import record_of
from moe.data.write.shards import ShardFormat
from moe.data.write.unit_store import MARK, save_array

Report = Callable[[int, int, int], None]  # tokens, weight, documents made since the last call


@dataclass(frozen=True)
class Job:
    """All that decides a unit's bytes, and the encoder, which does not."""

    seq_len: int
    dtype: str
    eos_id: int
    seed: int
    val_threshold: int  # a document with a hash below it goes to val
    text_column: str
    id_column: str | None  # names documents; None: their text does
    separator: str | None  # the line that ends a document of a .txt
    max_documents: int | None
    max_tokens: int | None
    encoder: str
    tokenizer: str
    spec_json: str | None
    lossy: Lossy | None  # what to count; None for a tokenizer that can write everything

    def check(self) -> None:
        """InputError for a sequence length that no shard can hold."""
        try:
            _ = self.layout
        except ValueError as error:
            raise InputError(f"--seq-len {self.seq_len}: {error}") from error

    @property
    def layout(self) -> ShardFormat:
        return ShardFormat(seq_len=self.seq_len, dtype=self.dtype)


@lru_cache(maxsize=1)
def _encoder(name: str, spec_json: str | None, tokenizer: str) -> Encoder:
    return build_encoder(name, spec_json=spec_json, tokenizer_name=tokenizer)


def within_limits(lengths: np.ndarray, documents: int | None, tokens: int | None) -> int:
    """How many of the first documents (`lengths` in tokens, EOS included) stay within both limits."""
    count = len(lengths)
    if documents is not None:
        count = min(count, documents)
    if tokens is not None:
        count = min(count, int(np.searchsorted(np.cumsum(lengths), tokens, side="right")))
    return count


def convert_unit(job: Job, unit: Unit, folder: Folder, report: Report) -> None:
    """Make `folder`/<unit.name>, unless it is done. Raises BadFileError when its file cannot be read."""
    if folder.read(f"{unit.name}/{MARK}") is not None:
        return
    with folder.scratch(unit.name) as aside:
        writers = {split: BlockWriter(aside, split, job.layout) for split in SPLITS}
        mark, lengths, hashes = make_unit(job, unit, writers, report)
        mark["splits"] = {split: {"shards": w.shards, "rest": w.finish()} for split, w in writers.items()}
        save_array(aside / "lengths.npy", lengths)
        save_array(aside / "hashes.npy", hashes)
        (aside / MARK).write_text(json.dumps(mark, sort_keys=True))
        folder.adopt(aside, unit.name, MARK)


def make_unit(
    job: Job, unit: Unit, writers: Mapping[str, Writer], report: Report
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The unit's tokens go to the splits' writers. Returns its done mark without `splits`, and the lengths (uint32, EOS
    included) and hashes (uint64) of its documents, those with an id first.

    Raises BadFileError when its file cannot be read.
    """
    unit = opened(unit, job.text_column)
    before = None if unit.file.remote else stat_of(unit.file.path)
    encoder = _encoder(job.encoder, job.spec_json, job.tokenizer)
    packer = Packer(writers, dtype=job.layout.dtype, eos_id=job.eos_id, seed=job.seed, unit=unit.key)
    skipped = Skipped()
    counting = Counting(job.lossy, spec_json=job.spec_json, tokenizer_name=job.tokenizer, seed=job.seed ^ unit.key)
    separators = met = 0
    named: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    hashes: list[np.ndarray] = []
    documents, tokens, text_bytes, seen, full = 0, 0, 0, 0, False

    def is_reached() -> bool:
        return (job.max_documents is not None and documents >= job.max_documents) or (
            job.max_tokens is not None and tokens >= job.max_tokens
        )

    for batch in read_batches(unit, job.text_column, id_column=job.id_column, separator=job.separator):
        if is_reached():
            full = True
            break
        met += len(batch.texts) + len(batch.bad)
        bad = Skipped()
        texts, ids, rows = clean(batch, file=unit.file.name, skipped=bad)
        if not len(texts):
            separators += len(batch.separators)
            skipped.merge(bad)
            report(0, batch.weight, 0)
            seen += batch.weight
            continue
        encoded, offsets = encoder.encode(texts)
        sizes = np.diff(offsets) + 1
        count = within_limits(
            sizes,
            None if job.max_documents is None else job.max_documents - documents,
            None if job.max_tokens is None else job.max_tokens - tokens,
        )
        full = count < len(sizes)
        if full:
            texts, ids, offsets, sizes = (
                texts[:count],
                ids[:count] if ids is not None else None,
                offsets[: count + 1],
                sizes[:count],
            )
        keys = document_hashes(texts, ids, job.seed)
        start = int(offsets[0])
        own = encoded[start : int(offsets[-1])]
        packer.add(own, offsets - start, keys < np.uint64(job.val_threshold))
        counting.add(texts, own)
        documents, tokens = documents + count, tokens + int(sizes.sum())
        text_bytes += int(
            np.diff(np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + count + 1]).sum()
        )
        lengths.append(sizes.astype(np.uint32))
        hashes.append(keys)
        named.append(have_ids(ids, count))
        if full or is_reached():  # what lies behind the last document is not counted
            batch, bad = batch.until(int(rows[count - 1]) if count else -1), Skipped()
            clean(batch, file=unit.file.name, skipped=bad)
        separators += len(batch.separators)
        skipped.merge(bad)
        seen += batch.weight
        report(int(sizes.sum()), batch.weight, count)
        if full:
            break
    if not met and unit.file.kind not in ("jsonl", "parquet"):  # looked at before; a part of these may have none
        raise BadFileError(unit.file.name, NO_ROWS)
    if not full and not unit.file.remote:
        _refuse_changed(unit.file, before)
    report(0, unit.weight - seen, 0)
    packer.flush()
    with_id = np.concatenate(named) if named else np.empty(0, bool)
    all_lengths = np.concatenate(lengths) if lengths else np.empty(0, np.uint32)
    all_hashes = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    if is_mixed := bool(with_id.any() and not with_id.all()):
        order = np.argsort(~with_id, kind="stable")
        all_lengths, all_hashes = all_lengths[order], all_hashes[order]
    mark: dict[str, Any] = {
        "file": unit.file.name,
        "file_version": unit.file.version,
        "read": record_of(unit),
        "documents": packer.documents,
        "tokens": packer.tokens,
        "text_bytes": text_bytes,
        "skipped": asdict(skipped),
        "counts": {
            **asdict(counting.result(encoder)),
            "named": int(with_id.sum()),  # documents with an id
            "separators": separators,
        },
        "limited": full,
        **({"proof": proof_of(unit)} if unit.file.remote else {}),
        **({"named_first": True} if is_mixed else {}),
    }
    return mark, all_lengths, all_hashes


def _refuse_changed(file: SourceFile, before: list[int] | None) -> None:
    """Raises BadFileError for a file that is not as it was planned, or as it was before its unit was read.

    before: its stat record (content.stat_of) then. Times of the plan count where they are of the same inode.
    """
    now = stat_of(file.path)
    planned = list(file.stat) if file.stat and before and list(file.stat[3:]) == before[3:] else before
    if now is None or before is None or now[:2] != before[:2] or before[:2] != (planned or before)[:2]:
        raise BadFileError(file.name, "changed while it was read; let its writer finish, then run again")
    if now[0] != file.size:
        raise BadFileError(
            file.name,
            f"changed while it was read ({file.size:,} bytes when this began, {now[0]:,} now); "
            "let its writer finish, then run again",
        )


def proof_of(unit: Unit) -> str:
    """What a unit's bytes from the hub were held against. One that is a part of its file says nothing of all of it."""
    whole = unit.begin == 0 and (unit.file.kind == "parquet" or unit.end == unit.file.size)
    if whole and (proof := verified_against(unit.file.path, unit.file.listed)):
        return proof
    return "size, ETag" + (", page checksums where the file has them" if unit.file.kind == "parquet" else "")

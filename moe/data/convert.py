"""Text to an MDS dataset of tokens: plan, run the units, merge.

- Work happens in `<out>.partial`; `<out>` appears in one rename when it is complete. Killed at any moment, the same command
  goes on with the units that are not done, and the bytes are those of an uninterrupted run.
- A plan that differs from the partial work's is refused with both values, and an existing `<out>` is never touched without
  `--overwrite`, and then only replaced when its successor is complete.
- A dataset too small for a val block at `--val-fraction` gets the smallest fraction that gives one, and a line that says so.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moe.data import merge, pool
from moe.data.encoders import choose_encoder
from moe.data.errors import BadFileError, InputError
from moe.data.meta import Meta, read_meta, write_meta
from moe.data.packing import SPLITS
from moe.data.progress import Progress, human
from moe.data.reading import read_batches
from moe.data.report import summary
from moe.data.rows import Skipped, clean
from moe.data.sources import Source, Unit, plan_units
from moe.data.state import Workspace
from moe.data.tokenizer import load_tokenizer, plain_json, token_dtype, tokenizer_fingerprint, vocab_size
from moe.data.unit import Job, convert_unit, read_done, totals

CHECK_DOCUMENTS, CHECK_CHARS = 1000, 4 << 20


@dataclass(frozen=True)
class Request:
    """The flags of convert/fineweb_to_mds.py."""

    dataset: tuple[str, ...]
    config: str | None
    split: str
    revision: str | None
    text_column: str
    tokenizer: str
    seq_len: int
    out: Path
    val_fraction: float
    seed: int
    max_documents: int | None
    max_tokens: int | None
    workers: int | None  # None: one a core, fewer for little text
    encoder: str
    overwrite: bool
    skip_bad_files: bool

    def check(self) -> None:
        """InputError for a value out of range."""
        for flag, value, least in (("--seq-len", self.seq_len, 2), ("--workers", self.workers, 1)):
            if value is not None and value < least:
                raise InputError(f"{flag} {value}: must be at least {least}")
        for flag, limit in (("--max-documents", self.max_documents), ("--max-tokens", self.max_tokens)):
            if limit is not None and limit < 1:
                raise InputError(f"{flag} {limit}: must be at least 1; leave it out for no limit")
        if not 0 <= self.val_fraction < 1:
            raise InputError(f"--val-fraction {self.val_fraction}: must be at least 0 and below 1, such as 0.005")
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"--seed {self.seed}: must be at least 0")


def say(text: str) -> None:
    print(text, flush=True)


def resolve(request: Request) -> Source:
    """The dataset's files, on this machine or on the hub."""
    from moe.data.hub import hub_source, is_hub_name
    from moe.data.sources import local_source

    names = request.dataset
    if len(names) == 1 and is_hub_name(names[0]):
        return hub_source(names[0], config=request.config, split=request.split, revision=request.revision)
    if request.revision is not None:
        raise InputError(f"--revision {request.revision}: {' '.join(names)} is on this machine; leave --revision out")
    paths = [Path(name).expanduser() for name in names]
    return local_source(paths, dataset=" ".join(names), config=request.config, split=request.split)


def sample_documents(units: list[Unit], text_column: str) -> list[str]:
    """The first documents, for holding an encoder against transformers."""
    texts: list[str] = []
    chars = 0
    for unit in units:
        try:
            for batch in read_batches(unit, text_column):
                for text in clean(batch, file=unit.file.name, skipped=Skipped())[0].to_pylist():
                    texts.append(text[: CHECK_CHARS // 4])
                    chars += len(texts[-1])
                    if len(texts) >= CHECK_DOCUMENTS or chars >= CHECK_CHARS:
                        return texts
        except BadFileError:
            continue
    return texts


class Limits:
    """Which units a limited run needs: those in order until the documents or tokens taken reach the limit."""

    def __init__(self, units: list[Unit], folder: Path, job: Job, left_out: set[str]) -> None:
        self._units, self._folder, self._job, self._left_out = units, folder, job, left_out
        self.documents, self.tokens = job.max_documents, job.max_tokens
        self.used: list[Unit] = []
        self.cut: Unit | None = None  # the unit that is taken in part
        self._next = 0

    def advance(self) -> bool:
        """Take the units that are done; True once no further unit is needed."""
        while self.cut is None and self._next < len(self._units):
            unit = self._units[self._next]
            if unit.file.name not in self._left_out:
                done = read_done(self._folder, unit)
                if done is None:
                    return False
                documents, tokens = totals(done)
                over = (self.documents is not None and documents > self.documents) or (
                    self.tokens is not None and tokens > self.tokens
                )
                if over or done["limited"]:
                    self.cut = unit
                else:
                    self.used.append(unit)
                    self.documents = None if self.documents is None else self.documents - documents
                    self.tokens = None if self.tokens is None else self.tokens - tokens
            self._next += 1
        return self.cut is not None or self.documents == 0 or self.tokens == 0


def run(job: Job, units: list[Unit], folder: Path, *, workers: int | None, left_out: set[str]) -> list[BadFileError]:
    """Make every unit that is needed and not done. Returns the faults of files."""
    faults: list[BadFileError] = []
    pending = [unit for unit in units if read_done(folder, unit) is None]
    limits = Limits(units, folder, job, left_out)
    if not pending or limits.advance():
        return []
    if len(pending) < len(units):
        say(f"resuming: {len(units) - len(pending)} of {len(units)} units are done")
    weight = sum(unit.weight for unit in pending)
    if workers is None:  # starting a process takes as long as 32 MB of text
        workers = min(len(os.sched_getaffinity(0)), 1 + weight // (32 << 20))
    counter = pool.new_counter()
    total = max(1, sum(unit.weight for unit in units))
    before = total - weight

    def read() -> tuple[int, float, float]:
        shares = [min(1.0, (before + counter[1]) / total)]
        if job.max_documents:
            shares.append(min(1.0, counter[2] / job.max_documents))
        if job.max_tokens:
            shares.append(min(1.0, counter[0] / job.max_tokens))
        return counter[0], max(shares), before / total

    def finished(unit: Unit, fault: BadFileError | None) -> bool:
        if fault is not None:
            faults.append(fault)
            left_out.add(unit.file.name)
        return not limits.advance()

    with Progress(read, token_bytes=np.dtype(job.dtype).itemsize):
        pool.run_units(job, pending, folder, workers=min(workers, len(pending)), counter=counter, finished=finished)
    return faults


def parts_of(job: Job, units: list[Unit], folder: Path, left_out: set[str]) -> list[tuple[Path, Unit]]:
    """The units the dataset is made of, in order; the last one made again, shorter, where a limit falls inside it."""
    limits = Limits([u for u in units if u.file.name not in left_out], folder, job, left_out)
    limits.advance()
    parts = [(folder, unit) for unit in limits.used]
    if limits.cut is not None and limits.documents != 0 and limits.tokens != 0:
        cut = replace(job, max_documents=limits.documents, max_tokens=limits.tokens)
        if cut == job:
            return [*parts, (folder, limits.cut)]
        aside = folder.with_name(f"{folder.name}-cut")
        convert_unit(cut, limits.cut, aside, lambda *_: None)
        parts.append((aside, limits.cut))
    return parts


def convert(request: Request) -> Meta:
    """Convert, or finish a conversion. Returns what the dataset holds. Raises InputError for what the user can mend."""
    started = time.monotonic()
    request.check()
    tokenizer = load_tokenizer(request.tokenizer)
    source = resolve(request)
    size = vocab_size(tokenizer)
    identity = {
        "dataset": " ".join(request.dataset),
        "config": request.config,
        "split": request.split,
        "revision": source.revision,
        "text_column": request.text_column,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "seq_len": request.seq_len,
        "seed": request.seed,
        "val_fraction": request.val_fraction,
        "max_documents": request.max_documents,
        "max_tokens": request.max_tokens,
    }
    space = Workspace(request.out, overwrite=request.overwrite)
    if space.is_complete(identity, source.files):
        say(f"{request.out} is complete; nothing to do (--overwrite makes it again)")
        return read_meta(request.out)
    units, bad = plan_units(source.files, request.text_column)
    if bad and not request.skip_bad_files and not units:
        raise InputError(faults_text(bad, request.skip_bad_files))
    if not units:
        raise InputError(f"--dataset {identity['dataset']}: no file can be read\n" + faults_text(bad, True))
    spec = plain_json(tokenizer)
    documents = sample_documents(units, request.text_column)
    encoder = choose_encoder(
        request.encoder,
        tokenizer=tokenizer,
        tokenizer_name=request.tokenizer,
        spec_json=spec,
        documents=documents,
        say=say,
    )
    threshold = int(request.val_fraction * 2**64)
    job = Job(
        seq_len=request.seq_len,
        dtype=token_dtype(size),
        eos_id=tokenizer.eos_token_id,
        seed=request.seed,
        val_threshold=threshold,
        text_column=request.text_column,
        max_documents=request.max_documents,
        max_tokens=request.max_tokens,
        encoder=encoder,
        tokenizer=request.tokenizer,
        spec_json=spec,
    )
    _ = job.layout  # refuses a sequence length that no shard can hold, before anything is written
    say(
        f"{identity['dataset']}: {len(source.files)} files, {len(units)} units of work, "
        f"{human(sum(u.weight for u in units))}B of text; encoder {encoder}"
    )
    with space.lock(identity, source.files, units):
        left_out = {error.file: error.reason for error in bad}
        faults = run(job, units, space.units, workers=request.workers, left_out=set(left_out))
        left_out |= {error.file: error.reason for error in faults}
        if left_out and not request.skip_bad_files:
            every = [BadFileError(file, reason) for file, reason in left_out.items()]
            raise InputError(faults_text(every, False) + f"\nWhat is done is kept in {space.partial}.")
        job, parts, sums = settle(job, units, space, set(left_out), request)
        merged = space.fresh_merged()
        results = {split: merge.merge_split(parts, split, merged, job.layout) for split in SPLITS}
        meta = Meta(
            dataset=identity["dataset"],
            config=request.config,
            split=request.split,
            revision=source.revision,
            text_column=request.text_column,
            tokenizer=request.tokenizer,
            tokenizer_fingerprint=identity["tokenizer"],
            vocab_size=size,
            eos_id=job.eos_id,
            seq_len=job.seq_len,
            dtype=job.dtype,
            seed=job.seed,
            val_fraction=request.val_fraction if job.val_threshold == threshold else job.val_threshold / 2**64,
            max_documents=request.max_documents,
            max_tokens=request.max_tokens,
            documents=sums["documents"],
            tokens=sums["tokens"],
            samples={split: result.samples for split, result in results.items()},
            dropped_tokens={split: result.dropped_tokens for split, result in results.items()},
            text_bytes=sums["text_bytes"],
            tokens_per_document=length_statistics(sums["lengths"]),
            skipped=sums["skipped"].counts,
            skipped_examples=sums["skipped"].examples,
            left_out=left_out,
            versions=versions("transformers", "tokenizers", "mosaicml-streaming", "pyarrow", "numpy"),
        )
        write_meta(merged, meta)
        report = {
            "request": identity,
            "files": {file.name: file.version for file in source.files},
            "seconds": round(time.monotonic() - started, 2),
            "encoder": encoder,
            "workers": request.workers,
            "versions": versions("gigatoken", "fastokens"),
        }
        (merged / "conversion.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
        space.publish()
    for line in summary(meta, request.out, report):
        say(line)
    return meta


def settle(
    job: Job, units: list[Unit], space: Workspace, left_out: set[str], request: Request
) -> tuple[Job, list[tuple[Path, Unit]], dict[str, Any]]:
    """The parts to merge. Makes the units again with a larger val where val would hold no block."""
    parts = parts_of(job, units, space.units, left_out)
    sums = merge.collect(parts)
    total = sum(sums["tokens"].values())
    if total == 0:
        skipped = ", ".join(f"{n} {reason}" for reason, n in sums["skipped"].counts.items()) or "none"
        space.discard()
        raise InputError(f"--dataset {' '.join(request.dataset)}: no documents in it (rows skipped: {skipped})")
    if total < job.seq_len:
        space.discard()
        raise InputError(
            f"the dataset has {total} tokens, less than one block of --seq-len {job.seq_len}; lower --seq-len"
        )
    if job.val_threshold == 0 or sums["tokens"]["val"] >= job.seq_len:
        return job, parts, sums
    threshold = merge.threshold_for_one_block(sums["lengths"], sums["hashes"], job.seq_len)
    if threshold is None:
        say(
            f"note: {total} tokens in {len(sums['lengths'])} documents leave no block of {job.seq_len} for val; "
            "train without eval_data, or lower --seq-len"
        )
        return replace(job, val_threshold=0), *remake(replace(job, val_threshold=0), units, space, left_out, request)
    say(
        f"note: at --val-fraction {request.val_fraction} val would hold less than one block of {job.seq_len} tokens; "
        f"using {threshold / 2**64:.4g}, which gives one"
    )
    job = replace(job, val_threshold=threshold)
    return job, *remake(job, units, space, left_out, request)


def remake(
    job: Job, units: list[Unit], space: Workspace, left_out: set[str], request: Request
) -> tuple[list[tuple[Path, Unit]], dict[str, Any]]:
    folder = space.units.with_name(f"units-{job.val_threshold:016x}")
    run(job, units, folder, workers=request.workers, left_out=set(left_out))
    parts = parts_of(job, units, folder, left_out)
    return parts, merge.collect(parts)


def faults_text(faults: list[BadFileError], skipping: bool) -> str:
    lines = [
        f"{len(faults)} file{'s' if len(faults) > 1 else ''} cannot be used:",
        *(f"  {fault}" for fault in faults[:20]),
    ]
    if len(faults) > 20:
        lines.append(f"  and {len(faults) - 20} more")
    if not skipping:
        lines.append("Mend them and run the same command again, or add --skip-bad-files to go on without them.")
    return "\n".join(lines)


def length_statistics(lengths: np.ndarray) -> dict[str, float]:
    p50, p99 = np.percentile(lengths, [50, 99], method="lower")
    return {"mean": round(float(lengths.mean()), 2), "p50": int(p50), "p99": int(p99), "max": int(lengths.max())}


def versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

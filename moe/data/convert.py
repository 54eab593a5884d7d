"""Text to an MDS dataset of tokens: plan, run the units, merge.

- Work happens in `<out>.partial`; `<out>` appears in one rename when it is complete. Killed at any moment, the same
  command goes on with the units that are not done, and the bytes are those of an uninterrupted run.
- A plan that differs from the partial work's is refused with both values, and an existing `<out>` is never touched
  without `--overwrite`, and then only replaced when its successor is complete.
- A dataset too small for a val block at `--val-fraction` gets the smallest fraction that gives one, and a line that
  says so.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moe.data import merge
from moe.data.encoders import choose_encoder
from moe.data.errors import BadFileError, InputError
from moe.data.meta import Meta, read_meta, write_meta
from moe.data.packing import SPLITS
from moe.data.progress import human
from moe.data.reading import read_batches
from moe.data.report import summary
from moe.data.request import Request, resolve
from moe.data.rows import Skipped, clean
from moe.data.run_units import parts_of, run
from moe.data.sources import Unit, plan_units
from moe.data.state import Workspace
from moe.data.tokenizer import load_tokenizer, plain_json, token_dtype, tokenizer_fingerprint, vocab_size
from moe.data.unit import Job

CHECK_DOCUMENTS, CHECK_CHARS = 1000, 4 << 20


def say(text: str) -> None:
    print(text, flush=True)


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


def convert(request: Request) -> Meta:
    """Convert, or finish a conversion. Returns what the dataset holds. Raises InputError for what the user can mend."""
    started = time.monotonic()
    request.check()
    tokenizer = load_tokenizer(request.tokenizer)
    source = resolve(request)
    size = vocab_size(tokenizer)
    identity: dict[str, Any] = {
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

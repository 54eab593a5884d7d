"""Text to an MDS dataset of tokens: plan, make the units, merge.

- Work happens in `<out>.partial`; `<out>` is a dataset only when it is complete. Killed at any moment, the same command
  goes on with the units that are not done, and the bytes are those of an uninterrupted run.
- A plan that differs from the partial work's is refused with both values, and an existing `<out>` is never touched
  without `--overwrite`, and then only replaced when its successor is complete (on a bucket: when all its units are).
- A dataset too small for a val block at `--val-fraction` gets the smallest fraction that gives one, and a line says so.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from moe.data.meta import COUNTS, SPLITS, Meta, meta_json, read_meta
from moe.data.text.encoders import choose_encoder
from moe.data.text.errors import BadFileError, faults_text
from moe.data.text.files import Source, Unit
from moe.data.text.ids import choose_id
from moe.data.text.losses import lossy, warning_before
from moe.data.text.planning import plan_units
from moe.data.text.sample import sample_documents
from moe.data.text.sources import resolve
from moe.data.text.tokenizer import load_tokenizer, plain_json, token_dtype, tokenizer_fingerprint, vocab_size
from moe.data.write import merge
from moe.data.write.merge import Parts
from moe.data.write.progress import human
from moe.data.write.report import summary
from moe.data.write.request import Request
from moe.data.write.run_units import parts_of, run
from moe.data.write.state import Workspace, open_workspace
from moe.data.write.unit import Job
from moe.data.write.unit_store import UnitStore
from moe.errors import InputError
from moe.units import tell as say


@dataclass(frozen=True)
class Plan:
    """A request with everything looked up: what will be made of what."""

    request: Request
    source: Source
    identity: dict[str, Any]  # what a run that goes on must agree with
    units: list[Unit]
    bad: dict[str, str]  # files that cannot be read at all: why
    job: Job
    vocab_size: int


def convert(request: Request) -> Meta | None:
    """Convert, or go on with a conversion. Returns what the dataset holds; None for one shard of a sharded run.

    Raises InputError for what the user can mend.
    """
    started = time.monotonic()
    space = open_workspace(request.out, overwrite=request.overwrite)
    plan = make_plan(request, space)
    if plan is None:
        say(f"{request.out} is complete; nothing to do (--overwrite makes it again)")
        return read_meta(request.out)
    with space.lock(plan.identity, plan.source.files, plan.units, shared=request.num_shards is not None):
        if request.num_shards is not None and not request.merge_only:
            make_shard(plan, space)
            return None
        left_out = make_units(plan, space)
        job, parts, sums = settle(plan, space, left_out)
        meta = publish(replace(plan, job=job), space, parts, sums, left_out, started)
    for line in summary(meta, request.out):
        say(line)
    return meta


def make_plan(request: Request, space: Workspace) -> Plan | None:
    """Source, units and encoder; None where <out> is the finished result already.

    Raises InputError for flags that cannot be, and when no file can be read.
    """
    request.check()
    tokenizer = load_tokenizer(request.tokenizer)
    source = resolve(dataset=request.dataset, config=request.config, split=request.split, revision=request.revision)
    identity = request.identity(tokenizer_fingerprint(tokenizer), source.revision)
    if space.is_complete(identity, source.files):
        space.discard_own(identity)  # killed after the last step but one
        return None
    units, faults = plan_units(source.files, request.text_column)
    if not units:
        raise InputError(faults_text(faults, skipping=True))
    spec, size = plain_json(tokenizer), vocab_size(tokenizer)
    documents = sample_documents(units, request.text_column, separator=tokenizer.eos_token)
    encoder = choose_encoder(
        request.encoder,
        tokenizer=tokenizer,
        tokenizer_name=request.tokenizer,
        spec_json=spec,
        documents=documents,
        say=say,
    )
    id_column, told = space.id_column(lambda: choose_id(units, request.text_column))
    identity["id_column"] = id_column  # judged once: a run that goes on keeps it
    job = Job(
        seq_len=request.seq_len,
        dtype=token_dtype(size),
        eos_id=tokenizer.eos_token_id,
        seed=request.seed,
        val_threshold=request.val_threshold,
        text_column=request.text_column,
        id_column=id_column,
        separator=tokenizer.eos_token,
        max_documents=request.max_documents,
        max_tokens=request.max_tokens,
        encoder=encoder,
        tokenizer=request.tokenizer,
        spec_json=spec,
        lossy=lossy(tokenizer),
    )
    job.check()
    others = f" ({source.others} more are of another --config or --split)" if source.others else ""
    say(
        f"{identity['dataset']}: {len(source.files)} files{others}, {len(units)} units of work, "
        f"{human(sum(u.weight for u in units))}B of text; encoder {encoder}"
    )
    say(told)
    warning = warning_before(job.lossy, documents, encoder=encoder, spec_json=spec, tokenizer_name=request.tokenizer)
    if warning:
        say(warning)
    return Plan(request, source, identity, units, {error.file: error.reason for error in faults}, job, size)


def make_units(plan: Plan, space: Workspace) -> dict[str, str]:
    """Every unit the request needs. Returns the files left out. Raises InputError for them without --skip-bad-files."""
    request, left_out = plan.request, dict(plan.bad)
    make = partial(run, engine=request.engine, workers=request.workers)
    if request.merge_only:
        pending = [unit for unit in plan.units if space.units.done(unit) is None]
        if pending:
            raise InputError(
                f"--merge-only: {len(pending)} of {len(plan.units)} units are not done, the first is {pending[0].name} "
                f"of {pending[0].file.name}; run the shards that miss them, or finish here without --merge-only"
            )
    else:
        # again after a fault: a limit may now need units behind those it counted on
        while faults := make(plan.job, plan.units, space.units, left_out=set(left_out)):
            left_out |= {error.file: error.reason for error in faults}
    last = parts_of(plan.job, plan.units, space.units, set(left_out))[-1:]
    if last and (request.max_documents or request.max_tokens):  # what lies behind the limit is no concern of this run
        needed = [file.name for file in plan.source.files[: last[0][1].file_index + 1]]
        left_out = {file: reason for file, reason in left_out.items() if file in needed}
    if left_out and not request.skip_bad_files:
        every = [BadFileError(file, reason) for file, reason in left_out.items()]
        raise InputError(faults_text(every, skipping=False) + f"\nWhat is done is kept in {space.partial}.")
    return left_out


def make_shard(plan: Plan, space: Workspace) -> None:
    """The units of one shard of a sharded run; the merge comes when all are done."""
    request = plan.request
    assert request.num_shards is not None and request.shard_index is not None
    mine = plan.units[request.shard_index :: request.num_shards]
    faults = run(
        plan.job,
        mine,
        space.units,
        engine=request.engine,
        workers=request.workers,
        left_out=set(plan.bad),
        all_of_them=True,
    )
    if faults and not request.skip_bad_files:
        raise InputError(faults_text(faults, skipping=False) + f"\nWhat is done is kept in {space.partial}.")
    say(
        f"shard {request.shard_index} of {request.num_shards} is done: {len(mine)} units; "
        "when all shards are, run once with --merge-only"
    )


def settle(plan: Plan, space: Workspace, left_out: dict[str, str]) -> tuple[Job, Parts, dict[str, Any]]:
    """The parts to merge. Makes the units again with a larger val where val would hold no block."""
    request, job = plan.request, plan.job
    parts = parts_of(job, plan.units, space.units, set(left_out))
    sums = merge.collect(parts)
    total = sum(sums["tokens"].values())
    if total < job.seq_len:
        space.discard()
        if total:
            raise InputError(f"{total} tokens are less than one block of --seq-len {job.seq_len}; lower --seq-len")
        skipped = ", ".join(f"{n} {reason}" for reason, n in sums["skipped"].counts.items()) or "none"
        raise InputError(f"--dataset {plan.identity['dataset']}: no documents in it (rows skipped: {skipped})")
    if job.val_threshold == 0 or sums["tokens"]["val"] >= job.seq_len:
        return job, parts, sums
    lengths, hashes = merge.document_keys(parts)  # val is small, so the dataset is
    threshold = merge.threshold_for_one_block(lengths, hashes, job.seq_len)
    if threshold is None:
        threshold = 0
        say(
            f"note: {total} tokens in {len(lengths)} documents leave no block of {job.seq_len} for val; "
            "train without eval_data, or lower --seq-len"
        )
    else:
        say(
            f"note: at --val-fraction {request.val_fraction} val would hold less than one block of {job.seq_len} "
            f"tokens; using {threshold / 2**64:.4g}, which gives one"
        )
    job = replace(job, val_threshold=threshold)
    store = UnitStore(space.units.folder.beside(f"-{threshold:016x}"))
    run(job, plan.units, store, engine=request.engine, workers=request.workers, left_out=set(left_out))
    parts = parts_of(job, plan.units, store, set(left_out))
    return job, parts, merge.collect(parts)


def publish(
    plan: Plan, space: Workspace, parts: Parts, sums: dict[str, Any], left_out: dict[str, str], started: float
) -> Meta:
    """Merge the parts, describe them, and let the result appear."""
    request, job = plan.request, plan.job
    say(f"merging {len(parts)} units into {request.out}")
    space.begin_merge()
    results = {split: merge.merge_split(parts, split, space.merged, job.layout) for split in SPLITS}
    as_asked = job.val_threshold == request.val_threshold
    meta = Meta(
        dataset=plan.identity["dataset"],
        config=request.config,
        split=request.split,
        revision=plan.source.revision,
        text_column=request.text_column,
        tokenizer=request.tokenizer,
        tokenizer_fingerprint=plan.identity["tokenizer"],
        vocab_size=plan.vocab_size,
        eos_id=job.eos_id,
        seq_len=job.seq_len,
        dtype=job.dtype,
        seed=job.seed,
        val_fraction=request.val_fraction if as_asked else job.val_threshold / 2**64,
        max_documents=request.max_documents,
        max_tokens=request.max_tokens,
        documents=sums["documents"],
        tokens=sums["tokens"],
        samples={split: result.samples for split, result in results.items()},
        dropped_tokens={split: result.dropped_tokens for split, result in results.items()},
        text_bytes=sums["text_bytes"],
        tokens_per_document=merge.length_statistics(sums["lengths"]),
        skipped=sums["skipped"].counts,
        skipped_examples=sums["skipped"].examples,
        left_out=left_out,
        id_column=job.id_column,
        **{name: sums["counts"][name] for name in COUNTS},
        versions=versions("transformers", "tokenizers", "mosaicml-streaming", "pyarrow", "numpy"),
    )
    report = {
        "request": plan.identity,
        "files": {file.name: file.version for file in plan.source.files},
        "seconds": round(time.monotonic() - started, 2),
        "encoder": job.encoder,
        "engine": request.engine,
        "workers": request.workers,
        "versions": versions("gigatoken", "fastokens"),
    }
    space.merged.write("conversion.json", (json.dumps(report, indent=1, sort_keys=True) + "\n").encode())
    space.merged.write("meta.json", meta_json(meta).encode())
    space.publish()
    return meta


def versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

"""Text to an MDS dataset of tokens: plan, make the units, merge.

- Work happens in `<out>.partial`; `<out>` is a dataset only when it is complete. Killed at any moment, the same command
  resumes with the units that are not done, and the bytes are those of an uninterrupted run.
- A plan that differs from the partial work's is refused with both values, and an existing `<out>` is never touched
  without `--overwrite`, and then only replaced when its successor is complete (on a bucket: when all its units are).
- A dataset too small for a val block at `--val-fraction` gets the smallest fraction that gives one, and a line says so.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

from moe.common.errors import InputError
from moe.common.units import tell as say
from moe.data.meta import COUNTS, SPLITS, Meta, meta_json, read_meta
from moe.data.text.ahead import Ahead
from moe.data.text.errors import BadFileError, errors_text
from moe.data.write.differences import FORMAT, file_rows
from moe.data.write.forecast import forecast
from moe.data.write.gather import Gathered, document_keys, gather, length_statistics
from moe.data.write.journal import Journal
from moe.data.write.merge import merge_split, threshold_for_one_block
from moe.data.write.plan import Plan, asked_for, look_up, make_plan, plan_of
from moe.data.write.report import Report, summary
from moe.data.write.request import Request
from moe.data.write.run_units import limit_is_reached, parts_of, run
from moe.data.write.sharded import made_by_shards, make_shard
from moe.data.write.state import Workspace, open_workspace
from moe.data.write.streamed_json import streamed
from moe.data.write.unit import Job
from moe.data.write.unit_store import UnitStore


def convert(request: Request) -> Meta | None:
    """Convert, or resume a conversion. Returns what the dataset holds; None for one shard of a sharded run.

    Raises InputError for what the user can fix.
    """
    started = time.monotonic()
    space = open_workspace(request.out, overwrite=request.overwrite)
    if request.dry_run:
        foresee(request, space)
        return None
    plan = make_plan(request, space)
    if plan is None:
        return nothing_to_do(request)
    full = request.verify == "full"
    is_shard = request.num_shards is not None and not request.merge_only
    with space.lock(plan.identity, plan.source.files, shared=is_shard, full=full):
        if space.is_complete(plan.identity, plan.source.files, full=full):  # by another process, since
            if not is_shard:
                space.discard_own(plan.identity)
            return nothing_to_do(request)
        if is_shard:
            make_shard(plan, space)
            return None
        left_out = make_units(plan, space)
        job, found = settle(plan, space, left_out)
        meta, report = publish(replace(plan, job=job), space, found, left_out, started)
    for line in summary(meta, request.out, report):
        say(line)
    return meta


def nothing_to_do(request: Request) -> Meta:
    say(f"{request.out} is complete; nothing to do (--overwrite makes it again)")
    return read_meta(request.out)


def foresee(request: Request, space: Workspace) -> None:
    """Tells what a run would do; writes nothing. Raises InputError where it would be refused."""
    looked_up = look_up(request, space.recorded_commit(asked_for(request)), space.known_files())
    if space.is_complete(looked_up[2], looked_up[1].files, full=request.verify == "full"):
        say(f"{request.out} is complete; there would be nothing to do (--overwrite makes it again)")
        return
    space.refuse_unplanned()
    plan = plan_of(request, space, *looked_up)
    for line in forecast(plan):
        say(line)
    if done := sum(space.units.done(unit) is not None for unit in plan.units):
        say(f"begun: {done} of {len(plan.units)} units are done and would be kept, unless what they came from changed")
    say("nothing was written (--dry-run)")
    if plan.bad and not request.skip_bad_files:
        raise InputError(errors_text(plan.planning.bad, skipping=False))


def make_units(plan: Plan, space: Workspace) -> dict[str, str]:
    """Every unit the request needs. Returns the files skipped. Raises InputError for them without --skip-bad-files."""
    request, left_out = plan.request, dict(plan.bad)
    limited = bool(request.max_documents or request.max_tokens)
    make = partial(run, groups=plan.groups, engine=request.engine, workers=request.workers)
    if request.merge_only:
        left_out |= made_by_shards(plan, space)
    else:
        if not limited and plan.planning.looked_at < len(plan.source.files):
            with Ahead(plan.planning) as ahead:
                errors = make(plan.job, plan.units, space.units, left_out=set(left_out), ahead=ahead)
            left_out |= {error.file: error.reason for error in errors} | plan.bad
        # again after an error: a limit may now need units behind those it counted on
        while True:
            while errors := make(plan.job, plan.units, space.units, left_out=set(left_out)):
                left_out |= {error.file: error.reason for error in errors}
            if limit_is_reached(plan.job, plan.units, space.units, set(left_out)) or not plan.planning.more():
                break
            left_out |= plan.bad
    if limited and limit_is_reached(plan.job, plan.units, space.units, set(left_out)):
        last = parts_of(plan.job, plan.units, space.units, set(left_out))[-1:]
        if last:  # what lies behind the limit is no concern of this run
            needed = {file.name for file in plan.source.files[: last[0][1].file_index + 1]}
            left_out = {file: reason for file, reason in left_out.items() if file in needed}
    if left_out and not request.skip_bad_files:
        every = [BadFileError(file, reason) for file, reason in left_out.items()]
        raise InputError(errors_text(every, skipping=False) + f"\nWhat is done is kept in {space.partial}.")
    return left_out


def settle(plan: Plan, space: Workspace, left_out: dict[str, str]) -> tuple[Job, Gathered]:
    """The units to merge. Makes them again with a larger val where val would hold no block."""
    request, job = plan.request, plan.job
    parts = parts_of(job, plan.units, space.units, set(left_out))
    found = gather(parts, job.layout)
    total = sum(found.tokens.values())
    if total < job.seq_len:
        raise too_little(request, job, total, found.skipped.counts)
    if job.val_threshold == 0 or found.tokens["val"] >= job.seq_len:
        return job, found
    lengths, hashes = document_keys(parts)  # val is small, so the dataset is
    threshold = threshold_for_one_block(lengths, hashes, job.seq_len)
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
    run(
        job,
        plan.units,
        store,
        groups=plan.groups,
        engine=request.engine,
        workers=request.workers,
        left_out=set(left_out),
    )
    return job, gather(parts_of(job, plan.units, store, set(left_out)), job.layout)


def too_little(request: Request, job: Job, tokens: int, skipped: dict[str, int]) -> InputError:
    """Less than one block came out. What was made is kept: the units are right."""
    rows = ", ".join(f"{n} {reason}" for reason, n in sorted(skipped.items())) or "none"
    if not tokens:
        return InputError(
            f"--dataset {request.title}: no documents in it (rows skipped: {rows}); fix it and add --overwrite"
        )
    text = f"--dataset {request.title}: {tokens} tokens are less than one block of --seq-len {job.seq_len}"
    if skipped:
        return InputError(f"{text}; rows skipped: {rows}. Fix these, or lower --seq-len and add --overwrite")
    return InputError(f"{text}; lower --seq-len and add --overwrite")


def publish(
    plan: Plan, space: Workspace, found: Gathered, left_out: dict[str, str], started: float
) -> tuple[Meta, Report]:
    """Merge the units, describe them, and let the result appear."""
    request, job = plan.request, plan.job
    journal = Journal(space.partial, found.digest)
    say(f"{'resuming the merge of' if journal.resumed else 'merging'} {found.units} units into {request.out}")
    space.begin_merge(journal)
    results = {split: merge_split(found, split, space.merged, job.layout, journal) for split in SPLITS}
    as_asked = job.val_threshold == request.val_threshold
    meta = Meta(
        dataset=request.title,
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
        documents=found.documents,
        tokens=found.tokens,
        samples={split: result.samples for split, result in results.items()},
        dropped_tokens={split: result.dropped_tokens for split, result in results.items()},
        text_bytes=found.text_bytes,
        tokens_per_document=length_statistics(found.lengths),
        skipped=found.skipped.counts,
        skipped_examples=found.skipped.examples,
        left_out=left_out,
        proofs=found.proofs,
        id_column=job.id_column if found.counts["named"] else None,
        duplicates_estimated=found.duplicates_estimated,
        **{name: found.counts[name] for name in COUNTS},
        versions=package_versions("transformers", "tokenizers", "mosaicml-streaming", "pyarrow", "numpy"),
    )
    of_the_run = Report(seconds=round(time.monotonic() - started, 2), encoder=job.encoder)
    report = {
        **of_the_run,
        "format": FORMAT,
        "request": plan.identity,
        "engine": request.engine,
        "workers": request.workers,
        "versions": package_versions("gigatoken", "fastokens"),
    }
    rows = {**file_rows(plan.source.files), "reads": found.reads}
    space.merged.write("conversion.json", streamed(report, rows))
    space.merged.write("meta.json", meta_json(meta).encode())
    space.publish()
    return meta, of_the_run


def package_versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

"""`--dry-run`: the files that are in, and what a conversion would take. Nothing is written.

- Tokens, disk and time are estimates: the first documents of each kind of file are encoded, in this process, for at
  most SECONDS. Later files may be of other text, and a disk or hub that is slower than the encoder is not seen.
"""

from __future__ import annotations

import os
import time

import numpy as np

from moe.common.units import printable
from moe.data.text.encoders import build_encoder
from moe.data.text.errors import BadFileError
from moe.data.text.files import Unit
from moe.data.text.reading import read_batches
from moe.data.text.rows import Skipped, clean
from moe.data.write.plan import Plan
from moe.data.write.progress import clock, human

SECONDS = 3.0


def measure(plan: Plan, units: list[Unit]) -> tuple[int, int, int, float]:
    """(tokens, documents, weight, seconds) of the front of some units."""
    job = plan.job
    encoder = build_encoder(job.encoder, spec_json=job.spec_json, tokenizer_name=job.tokenizer)
    tokens = documents = weight = 0
    started = time.monotonic()
    for unit in units:
        try:
            for batch in read_batches(unit, job.text_column, id_column=None, separator=job.separator):
                texts = clean(batch, file=unit.file.name, skipped=Skipped())[0]
                tokens += len(encoder.encode(texts)[0]) + len(texts) if len(texts) else 0
                documents, weight = documents + len(texts), weight + batch.weight
                if time.monotonic() - started > SECONDS:
                    return tokens, documents, weight, time.monotonic() - started
        except BadFileError:
            continue
    return tokens, documents, weight, time.monotonic() - started


def forecast(plan: Plan) -> list[str]:
    """Lines for a person."""
    files = [file for file in plan.source.files if file.name not in plan.bad]
    lines = [f"in: {file.name} ({file.kind}, {file.size:,} bytes)" for file in files]
    lines += [f"out: {printable(one.name)}: {one.reason}" for one in plan.source.left_out]
    lines += [f"cannot be read: {name}: {reason}" for name, reason in plan.bad.items()]
    by_kind: dict[str, list[Unit]] = {}
    for unit in plan.units:
        by_kind.setdefault(unit.file.kind, []).append(unit)
    tokens = documents = seconds = 0.0
    for units in by_kind.values():
        some, docs, weight, took = measure(plan, units)
        factor = sum(unit.weight for unit in units) / max(1, weight)
        tokens, documents, seconds = tokens + some * factor, documents + docs * factor, seconds + took * factor
    job, share = plan.job, 1.0
    if job.max_tokens:
        share = min(share, job.max_tokens / max(1.0, tokens))
    if job.max_documents:
        share = min(share, job.max_documents / max(1.0, documents))
    workers = min(plan.request.workers or len(os.sched_getaffinity(0)), len(plan.units))
    size = tokens * share * np.dtype(job.dtype).itemsize
    return [
        *lines,
        f"estimate, from the first documents: {human(round(tokens * share))} tokens in "
        f"{human(round(documents * share))} documents",
        f"disk         {human(round(size))}B in {plan.request.out}, up to twice that until it is complete",
        f"time         {clock(seconds * share / workers)} with {workers} workers, reading left aside",
    ]

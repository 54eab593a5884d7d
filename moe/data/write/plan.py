"""A request with everything looked up: files, units, tokenizer and encoder.

- Whatever is skipped of a dataset is reported here, before any work.
- A hub dataset resumes with the commit that a begun conversion recorded; whether ids tell documents apart is judged
  once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moe.common.errors import InputError
from moe.common.units import tell as say
from moe.data.text.encoders import choose_encoder
from moe.data.text.errors import errors_text
from moe.data.text.files import Source, Unit
from moe.data.text.ids import choose_id
from moe.data.text.known import Lookup
from moe.data.text.losses import lossy, measured, warning_of
from moe.data.text.plain_ids import plain_json
from moe.data.text.planning import Planning
from moe.data.text.sample import sample_documents
from moe.data.text.selection import left_out_lines
from moe.data.text.sources import resolve
from moe.data.text.tokenizer import load_tokenizer, token_dtype, tokenizer_fingerprint, vocab_size
from moe.data.write.items import groups_of
from moe.data.write.progress import human
from moe.data.write.request import Request
from moe.data.write.state import Workspace
from moe.data.write.unit import Job


@dataclass(frozen=True)
class Plan:
    """A request with everything looked up: what will be made of what."""

    request: Request
    source: Source
    identity: dict[str, Any]  # what a resumed run must agree with
    planning: Planning
    job: Job
    vocab_size: int
    groups: np.ndarray  # of the files: items.groups_of

    @property
    def units(self) -> Sequence[Unit]:
        return self.planning.units

    @property
    def bad(self) -> dict[str, str]:
        """Files that cannot be read at all: why."""
        return {error.file: error.reason for error in self.planning.bad}


def make_plan(request: Request, space: Workspace) -> Plan | None:
    """Source, units and encoder; None where <out> is the finished result already.

    Raises InputError for flags that cannot be, and when no file can be read.
    """
    asked = asked_for(request)
    commit = space.recorded_commit(asked)
    tokenizer, source, identity = look_up(request, commit, space.known_files())
    if commit is not None:
        say(f"{request.title}: commit {commit[:12]}, which this conversion began with; --revision names another")
    if space.is_complete(identity, source.files, full=request.verify == "full"):
        space.discard_own(identity)  # killed after the last step but one
        return None
    space.refuse_unplanned()
    return plan_of(request, space, tokenizer, source, identity)


def look_up(request: Request, commit: str | None, known: Lookup) -> tuple[Any, Source, dict[str, Any]]:
    """Tokenizer, source and identity.

    commit: of a hub dataset, in the place of --revision. known: files that were sampled before.
    """
    request.check()
    tokenizer = load_tokenizer(request.tokenizer)
    out = () if "://" in str(request.out) else (Path(request.out), Path(f"{request.out}.partial"))
    source = resolve(
        dataset=request.dataset,
        config=request.config,
        split=request.split,
        revision=commit or request.revision,
        outputs=out,
        known=None if request.verify == "full" else known,
    )
    for line in [*left_out_lines(source.left_out), *source.notes]:
        say(line)
    identity = request.identity(tokenizer_fingerprint(tokenizer))
    return tokenizer, source, {**identity, "asked": asked_for(request), "commit": source.revision}


def asked_for(request: Request) -> dict[str, Any]:
    """The dataset as it was typed: reported, not compared, as the files themselves are."""
    return {
        "dataset": request.title,
        "config": request.config,
        "split": request.split,
        "revision": request.revision,
    }


def plan_of(request: Request, space: Workspace, tokenizer: Any, source: Source, identity: dict[str, Any]) -> Plan:
    """Units and encoder."""
    planning = Planning(source.files, request.text_column, thorough=request.dry_run)
    if request.num_shards is None:  # each makes its share, whatever the limit needs
        planning = replace(planning, max_documents=request.max_documents, max_tokens=request.max_tokens)
    while planning.more() and not planning.units:
        pass
    units = planning.units
    if not units:
        raise InputError(errors_text(planning.bad, skipping=True))
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
    id_column, id_line = space.id_column(lambda: choose_id(planning.with_further_kinds(), request.text_column))
    identity["id_column"] = id_column  # judged once: a resumed run keeps it
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
    say(
        f"{request.title}: {len(source.files)} files{planning.scope()}, {len(units)} units of work, "
        f"{human(planning.weight)}B of text; encoder {encoder}"
    )
    say(id_line)
    if job.lossy is not None:
        found = measured(job.lossy, documents, encoder=encoder, spec_json=spec, tokenizer_name=request.tokenizer)
        if warning := warning_of(*found, f"the first {len(documents):,} documents"):
            say(warning)  # before hours of work
    return Plan(request, source, identity, planning, job, size, groups_of(source.files))

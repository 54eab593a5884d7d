"""A run over several machines: each makes its share of the units, and one merges what they made.

<out>.partial/failed/ holds the files that each shard could not read, and why: units that nobody will make. A file is
known there by its name and version, so one that was fixed since is no longer of it.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TypedDict

from moe.common.errors import InputError
from moe.common.typed_json import parse_json
from moe.common.units import tell as say
from moe.data.folders import Folder
from moe.data.text.ahead import Ahead
from moe.data.text.errors import BadFileError, errors_text
from moe.data.text.files import Unit
from moe.data.write.items import share_of
from moe.data.write.plan import Plan
from moe.data.write.run_units import run
from moe.data.write.state import Workspace

FAILED = "failed"  # the folder of the records


class _Failure(TypedDict):
    version: str
    reason: str


def make_shard(plan: Plan, space: Workspace) -> None:
    """The units of one shard of a sharded run; the merge comes when all are done.

    Raises InputError for files that cannot be read, without --skip-bad-files.
    """
    request = plan.request
    assert request.num_shards is not None and request.shard_index is not None
    share_of(plan.planning, plan.groups, request.shard_index, request.num_shards)
    make = partial(
        run,
        plan.job,
        plan.units,
        space.units,
        groups=plan.groups,
        engine=request.engine,
        workers=request.workers,
        left_out=set(plan.bad),
        all_of_them=True,
    )
    if plan.planning.looked_at == len(plan.source.files):
        errors = make()
    else:
        with Ahead(plan.planning) as ahead:
            errors = make(ahead=ahead)
    failed = {error.file: error.reason for error in errors}
    failed |= {file: reason for file, reason in plan.bad.items() if file not in failed}
    _record(plan, space.partial / FAILED, failed)
    found = [BadFileError(file, reason) for file, reason in failed.items()]
    if found and not request.skip_bad_files:
        raise InputError(errors_text(found, skipping=False) + f"\nWhat is done is kept in {space.partial}.")
    skipped = ""
    if found:
        say(errors_text(found, skipping=True))
        skipped = f", {len(found)} file{'s' * (len(found) > 1)} skipped"
    made = sum(unit.file.name not in failed for unit in plan.units)
    say(
        f"shard {request.shard_index} of {request.num_shards} is done: {made} units{skipped}; "
        "when all shards are, run once with --merge-only"
    )


def made_by_shards(plan: Plan, space: Workspace) -> dict[str, str]:
    """For the merge: the files that cannot be read, by the plan and by what the shards recorded: why.

    Raises InputError where other units are not done.
    """
    plan.planning.all()
    recorded: dict[tuple[str, str], str] = {}
    if any(space.units.done(unit) is None for unit in plan.units):
        plan.planning.open_rest()  # those of files that cannot be read are no units
        recorded = _recorded(space.partial / FAILED)
    failed, pending = dict[str, str](), list[Unit]()
    for unit in plan.units:
        if space.units.done(unit) is None:
            if (reason := recorded.get((unit.file.name, unit.file.version))) is not None:
                failed[unit.file.name] = reason
            else:
                pending.append(unit)
    if pending:
        raise InputError(
            f"--merge-only: {len(pending)} of {len(plan.units)} units are not done, the first is {pending[0].name} "
            f"of {pending[0].file.name}; run the shards that miss them, or finish here without --merge-only"
        )
    return failed | plan.bad


def _record(plan: Plan, folder: Folder, failed: dict[str, str]) -> None:
    """In the place of what the same shard recorded before."""
    name = f"{plan.request.shard_index}-of-{plan.request.num_shards}.json"
    if not failed:
        folder.delete([name])
        return
    versions = {file.name: file.version for file in plan.source.files if file.name in failed}
    record = {file: _Failure(version=versions[file], reason=reason) for file, reason in failed.items()}
    folder.write(name, json.dumps(record).encode())


def _recorded(folder: Folder) -> dict[tuple[str, str], str]:
    """Of all shards, by name and version of the file: why it cannot be read. A damaged record says nothing."""
    found: dict[tuple[str, str], str] = {}
    for name in folder.sizes():
        try:
            record = parse_json(folder.read(name) or b"", dict[str, _Failure])
        except ValueError:
            continue
        found |= {(file, failure["version"]): failure["reason"] for file, failure in record.items()}
    return found

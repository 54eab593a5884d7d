"""What a start would resume from, here or on the remote: read, never changed. `moe check` asks the same.

Decisions:
- A folder that contains a run is never started over: not when its checkpoints are broken, not when they are gone.
- A folder without run.json and checkpoints is no run's: a file in it that a run would write over or cut is the user's.
- A step folder whose manifest tells another step was renamed: what is saved, kept and removed goes by its name.
- A share of a remote checkpoint, as a machine fetches it for its own ranks, is no checkpoint.
- Of a remote checkpoint only the manifest is read; its bytes are verified as they are fetched.
- Where another machine has trained the run since, the run is what the remote holds: a folder here counts only where the
  remote has the same files of that step. It may be of a branch that was left behind there, or never have arrived.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe.common.errors import InputError
from moe.common.paths import refuse_irregular
from moe.common.typed_json import parse_json
from moe.train.checkpointing.checkpoints import (
    MANIFEST,
    SAVED_MARK,
    Checkpoint,
    CheckpointError,
    Manifest,
    folder_name,
    has_files,
    newest_checkpoint,
    read_checkpoint,
    replaced_folders,
    step_folders,
)
from moe.train.checkpointing.history import ALARMS, EVENTS, now
from moe.train.checkpointing.record import RUN_FILE, read_record
from moe.train.checkpointing.remote import RemoteRun, is_share

WRITTEN = ("config.yaml", "metrics.jsonl", EVENTS, ALARMS)  # by a start, over or into what is there


@dataclass
class Found:
    """A start's way, before it is taken.

    Attributes:
        record: of run.json, as this start will continue with it.
        checkpoint: where to resume from; None for a fresh start.
        only_remote, only_local: where that checkpoint is.
        logs_are_remote: another machine has trained the run since, or this one never has.
        broken: local folders after the checkpoint that do not verify, each with its error.
        broken_remote: such steps on the remote.
        diverged: local folders that are no part of the run as another machine has continued it.
        back_to: the step whose successors are left behind; None where none are.
    """

    record: dict[str, Any]
    checkpoint: Checkpoint | None = None
    only_remote: bool = False
    only_local: bool = False
    logs_are_remote: bool = False
    broken: list[tuple[Path, CheckpointError]] = field(default_factory=list)
    broken_remote: list[int] = field(default_factory=list)
    diverged: list[Path] = field(default_factory=list)
    back_to: int | None = None


def find_run(
    path: Path,
    remote: RemoteRun | None,
    *,
    run_name: str,
    autoresume: bool,
    resume_from: str | None,
    report: Callable[[str], None],
    read: Callable[[Path], Checkpoint] = read_checkpoint,
    skip: Collection[int] = (),
) -> Found:
    """Args:
        read: verifies a local checkpoint, and raises CheckpointError.
        skip: remote steps that turned out not to verify.

    Raises:
        InputError: the folder holds another run, may not be resumed, or no checkpoint of it verifies.
        OSError: what is there cannot be read; RemoteError among them.
    """
    _refuse_pipes(path)
    record, logs_are_remote = read_record(path, remote.store if remote is not None else None)
    if record and record.get("run_name") != run_name:
        raise InputError(
            f"save_folder ({path}) holds another run, {record.get('run_name')!r}; "
            f"this one is run_name ({run_name}). Give one of them another name"
        )
    folders = [*replaced_folders(path), *step_folders(path)]
    local = {int(folder.name.rpartition("-")[2]): folder for folder in folders if not is_share(folder)}
    if not local and not (path / RUN_FILE).exists() and not (path / SAVED_MARK).exists():
        _refuse_foreign(path)
    _refuse_renamed(local)
    remote_steps = remote.steps() if remote is not None else []
    if (path / SAVED_MARK).exists() and not local and not remote_steps:
        raise InputError(
            f"save_folder ({path}) held checkpoints of this run and they are gone; bring them back (step-* folders), "
            "or give another save_folder to start over"
        )
    if (local or remote_steps) and not autoresume and resume_from is None:
        raise InputError(
            f"save_folder ({path}) already contains a run, and autoresume is false; set autoresume=true to resume, "
            "or give another save_folder to start over"
        )
    found = Found(
        record or {"id": uuid.uuid4().hex[:8], "run_name": run_name, "created_at": now()},
        logs_are_remote=logs_are_remote,
        broken_remote=list(skip),
    )
    usable = [step for step in remote_steps if step not in skip]
    if remote is not None and logs_are_remote and remote_steps:
        shared = {step for step in local if step in remote_steps and _remote_has(remote, step, local[step])}
        # an older one that the remote has no more was removed there: retention does so here too
        found.diverged = [
            local[step] for step in local if step not in shared and (step in remote_steps or step > remote_steps[-1])
        ]
        local = {step: local[step] for step in shared}
    if resume_from is None:
        found.record.pop("went_back_to", None)
        _find_newest(found, path, remote, local, usable, read)
    else:
        _find_named(found, path, remote, local, usable, int(resume_from.removeprefix("step:")), report, read)
    if found.checkpoint is not None:  # one caught in its replacement gets its name back
        found.checkpoint = Checkpoint(path / folder_name(found.checkpoint.step), found.checkpoint.manifest)
    return found


def _remote_has(remote: RemoteRun, step: int, folder: Path) -> bool:
    """Whether the remote has this very checkpoint."""
    try:
        return has_files(folder, remote.manifest(step), hashes=False)
    except CheckpointError:
        return False


def _refuse_pipes(path: Path) -> None:
    for name in (RUN_FILE, *WRITTEN):
        if (path / name).exists():
            refuse_irregular(path / name)


def _refuse_foreign(path: Path) -> None:
    if found := next((path / name for name in WRITTEN if os.path.lexists(path / name)), None):
        raise InputError(
            f"save_folder ({path}) holds no run ({RUN_FILE}), but {found}, which a run would write over; "
            "give another save_folder, or move it away"
        )


def _refuse_renamed(local: dict[int, Path]) -> None:
    for step, folder in local.items():
        try:
            refuse_irregular(folder / MANIFEST)
            found = parse_json((folder / MANIFEST).read_bytes(), Manifest)["step"]
        except (OSError, ValueError):  # reported where it is read
            continue
        if found != step:
            raise CheckpointError(
                f"{folder} holds step {found} by its {MANIFEST}; give it its name {folder_name(found)} back, "
                "or move it out of the run folder"
            )


def _find_newest(
    found: Found,
    path: Path,
    remote: RemoteRun | None,
    local: dict[int, Path],
    remote_steps: list[int],
    read: Callable[[Path], Checkpoint],
) -> None:
    folders = [local[step] for step in sorted(local)]
    found.checkpoint, errors = newest_checkpoint(folders, read)
    found.broken = list(zip(reversed(folders), errors, strict=False))
    newest_local = found.checkpoint.step if found.checkpoint is not None else -1
    if remote is not None:
        for step in sorted(remote_steps, reverse=True):
            if step <= newest_local:
                break
            try:
                found.checkpoint, found.only_remote = Checkpoint(path / folder_name(step), remote.manifest(step)), True
                return
            except CheckpointError as error:
                found.broken_remote.append(step)
                errors.append(error)
        if found.checkpoint is not None:
            at = found.checkpoint.path
            found.only_local = newest_local not in remote_steps or not _remote_has(remote, newest_local, at)
        errors += [CheckpointError(f"{remote.store.url}: step {step} did not verify") for step in found.broken_remote]
    if found.checkpoint is None and errors:
        listed = "\n".join(f"  {error}" for error in dict.fromkeys(map(str, errors)))
        raise CheckpointError(
            f"save_folder ({path if remote is None else remote.store.url}) holds {len(local) or len(remote_steps)} "
            f"checkpoint(s) and none verifies:\n{listed}\n"
            "  restore one from a copy, or give another save_folder to start over"
        )


def _find_named(
    found: Found,
    path: Path,
    remote: RemoteRun | None,
    local: dict[int, Path],
    remote_steps: list[int],
    step: int,
    report: Callable[[str], None],
    read: Callable[[Path], Checkpoint],
) -> None:
    """The checkpoint of `step`; later ones will be left behind. Once: the same command resumes from the
    newest.
    """
    if found.record.get("went_back_to") == step:
        _find_newest(found, path, remote, local, remote_steps, read)
        if found.checkpoint is not None and found.checkpoint.step > step:
            report(
                f"resume_from=step:{step} was done before; resuming from step {found.checkpoint.step}. "
                "(To go back once more, first run without resume_from.)"
            )
            return
    if step not in local and step not in remote_steps:
        raise InputError(
            f"resume_from (step:{step}): no such checkpoint in {remote.store.url if remote is not None else path}; "
            f"there are {', '.join(f'step:{s}' for s in sorted({*local, *remote_steps})) or 'none'}"
        )
    found.broken, found.only_local, found.only_remote = [], False, step not in local
    if step in local:
        found.checkpoint = read(local[step])
    else:
        assert remote is not None
        found.checkpoint = Checkpoint(path / folder_name(step), remote.manifest(step))
    found.back_to = step
    found.record["went_back_to"] = step
    found.record.pop("wandb_id", None)  # W&B takes no step twice: what is trained again goes to a run of its own

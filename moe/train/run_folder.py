"""The run folder: whose it is, where to go on from, and that only one process trains in it.

    save_folder/run.json     id, run_name, W&B run id, state (running, stopped, done, failed), where it was resumed from
    save_folder/config.yaml  the configuration in force
    save_folder/events.jsonl what happened to the run (moe.train.history)
    save_folder/.lock        held while a process trains here; the kernel frees it when the process dies

Decisions: a folder that holds a run is never started over.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from moe.errors import InputError
from moe.s3 import RemoteError
from moe.train.checkpoints import (
    SAVED_MARK,
    Checkpoint,
    CheckpointError,
    clear_unfinished,
    folder_name,
    newest_checkpoint,
    read_checkpoint,
    step_folders,
)
from moe.train.history import History, now
from moe.train.remote import RemoteRun, Replaced
from moe.typed_json import parse_json

RUN_FILE = "run.json"
LOCK_PATIENCE = 12.0  # seconds


class Record(TypedDict):
    """What a start reads in run.json."""

    id: str
    run_name: str
    wandb_id: str | None
    session: str | None
    went_back_to: int | None


@dataclass
class RunFolder:
    """An opened, locked run folder.

    Attributes:
        checkpoint: where to go on from; None for a fresh start.
        record: the content of run.json.
        remote: its copy on s3, on the rank that holds the lock.
        history: what happened to it.
    """

    path: Path
    record: dict[str, Any]
    checkpoint: Checkpoint | None
    lock: Any
    remote: RemoteRun | None = None

    def __post_init__(self) -> None:
        self.history = History(self.path, mine=self.lock is not None)

    def note(self, **changes: Any) -> None:
        """Updates run.json, whole or not at all; only the rank that holds the lock writes."""
        self.record.update(changes, updated_at=now())
        if self.lock is not None:
            write_json(self.path / RUN_FILE, self.record)

    def close(self, state: str, reason: str | None = None) -> None:
        """The last note of this start, on this machine."""
        self.history.end(state, reason)
        self.note(state=state)

    def newest(self) -> str:
        """Where the run would go on, for people."""
        folders = step_folders(self.path)
        if not folders:
            return f"nothing is saved in {self.path} yet"
        return f"saved is step {int(folders[-1].name.removeprefix('step-')):,} in {self.path}"

    def end(self, state: str, report: Callable[[str], None], reason: str | None = None) -> None:
        """The last note of this start; goes to the remote too, with the last rows of the logs."""
        try:
            self.close(state, reason)
        except OSError as error:
            report(f"warning: {self.path / RUN_FILE} cannot be written: {error.strerror}")
        if self.remote is not None:
            try:
                with suppress(Replaced):  # what is there belongs to another process now
                    self.remote.push_logs()
            except RemoteError as error:
                report(f"warning: the last logs are only in {self.path}: {error}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes aside and renames, so that a reader or a kill never meets half a file."""
    aside = path.with_name(f".{path.name}.tmp")
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def local_folder(save_folder: str, run_name: str) -> Path:
    """Where the run works: `save_folder` itself, or a folder of this machine where that is on s3."""
    return Path("runs", run_name) if "://" in save_folder else Path(save_folder).expanduser()


def open_run_folder(
    save_folder: str, *, run_name: str, autoresume: bool, resume_from: str | None, report: Callable[[str], None]
) -> RunFolder:
    """Locks the folder, finds the checkpoint to go on from, here or on the remote, and writes run.json.

    Raises:
        InputError: the folder is in use, holds another run, may not be resumed, or no checkpoint of it verifies.
    """
    path = local_folder(save_folder, run_name)
    remote = RemoteRun(save_folder, path, report=report) if "://" in save_folder else None
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path, report)
        if remote is not None:
            remote.fetch_logs()
        return _open_locked(path, lock, remote, run_name, autoresume, resume_from, report)
    except RemoteError as error:
        raise InputError(f"save_folder ({save_folder}) cannot be used: {error}") from None
    except OSError as error:
        raise InputError(
            f"save_folder ({path}) cannot be used: {error.strerror or error} ({error.filename or path}); "
            "mend it or give another one"
        ) from None


def _open_locked(
    path: Path,
    lock: Any,
    remote: RemoteRun | None,
    run_name: str,
    autoresume: bool,
    resume_from: str | None,
    report: Callable[[str], None],
) -> RunFolder:
    record = _read_record(path)
    if record and record.get("run_name") != run_name:
        raise InputError(
            f"save_folder ({path}) holds another run, {record.get('run_name')!r}; "
            f"this one is run_name ({run_name}). Give one of them another name"
        )
    clear_unfinished(path, report)
    held = bool(step_folders(path)) or (remote is not None and bool(remote.steps()))
    if (path / SAVED_MARK).exists() and not held:
        raise InputError(
            f"save_folder ({path}) held checkpoints of this run and they are gone; bring them back (step-* folders), "
            "or give another save_folder to start over"
        )
    if held and not autoresume and resume_from is None:
        raise InputError(
            f"save_folder ({path}) holds a run and autoresume is false; set autoresume=true to go on, "
            "or give another save_folder to start over"
        )
    record = record or {"id": uuid.uuid4().hex[:8], "run_name": run_name, "created_at": now()}
    if resume_from is not None:
        checkpoint = _go_back(path, remote, int(resume_from.removeprefix("step:")), record, report)
    else:
        record.pop("went_back_to", None)
        checkpoint = _newest(path, remote, report)
    folder = RunFolder(path, record, checkpoint, lock, remote)
    folder.note(state="running", pid=os.getpid(), host=os.uname().nodename, session=uuid.uuid4().hex)
    if remote is not None:
        remote.claim(record["session"])
    return folder


def _newest(path: Path, remote: RemoteRun | None, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies, here or on the remote."""
    if remote is None:
        return newest_checkpoint(path, report)
    try:
        here, fault = newest_checkpoint(path, report), None
    except CheckpointError as error:
        here, fault = None, error
    found = remote.fetch_newest(after=here.step if here is not None else -1) or here
    if found is None and fault is not None:
        raise fault
    if here is not None and found is here and here.step not in remote.steps():
        report(f"uploading step {here.step:,}, which is only in {path} ...")
        remote.upload(here.path)
    return found


def _go_back(
    path: Path, remote: RemoteRun | None, step: int, record: dict[str, Any], report: Callable[[str], None]
) -> Checkpoint | None:
    """The checkpoint of `step`; later ones are set aside. Done once: the same command again goes on from the newest."""
    if record.get("went_back_to") == step:
        newest = _newest(path, remote, report)
        if newest is not None and newest.step > step:
            report(
                f"resume_from=step:{step} was done before; going on from step {newest.step}. "
                "(To go back once more, first run without resume_from.)"
            )
            return newest
    kept = [int(p.name.removeprefix("step-")) for p in step_folders(path)]
    there = remote.steps() if remote is not None else []
    if step not in kept and step not in there:
        raise InputError(
            f"resume_from (step:{step}): no such checkpoint in {remote.store.url if remote is not None else path}; "
            f"there are {_listed(sorted({*kept, *there}))}"
        )
    if remote is not None and step not in kept:
        remote.fetch(step)
    checkpoint = read_checkpoint(path / folder_name(step))
    for later in [s for s in kept if s > step]:
        aside = path / f"left-behind-{folder_name(later)}-{int(time.time())}"
        (path / folder_name(later)).rename(aside)
        report(f"going back to step {step}: step {later} stays as {aside.name}, and is not part of the run any more")
    if any(s > step for s in kept):
        report("(load_path takes such a left-behind-* folder into a new run; delete it when it is not needed.)")
    if remote is not None:
        remote.leave_behind(step)
    record["went_back_to"] = step
    record.pop("wandb_id", None)  # W&B takes no step twice: what is trained again goes to a run of its own
    return checkpoint


def _listed(steps: list[int]) -> str:
    return ", ".join(f"step:{s}" for s in steps) or "none"


def _lock(path: Path, report: Callable[[str], None]) -> Any:
    lock = open(path / ".lock", "a+")  # noqa: SIM115 - held open for the life of the process
    for attempt in range(int(LOCK_PATIENCE * 10)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:  # perhaps the loader workers of a killed run, which leave within seconds
            if not attempt:
                report(f"{path} is in use by {_holder(lock)}; waiting up to {LOCK_PATIENCE:g} s for its end ...")
            time.sleep(0.1)
    else:
        raise InputError(
            f"save_folder ({path}) is in use by another training process ({_holder(lock)}); "
            "wait for it, stop it, or give another run_name"
        )
    lock.truncate(0)
    lock.write(f"pid {os.getpid()} on {os.uname().nodename}")
    lock.flush()
    return lock


def _holder(lock: Any) -> str:
    lock.seek(0)
    return lock.read().strip() or "an unknown process"


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = parse_json((path / RUN_FILE).read_bytes(), Record)
        if re.fullmatch(r"[0-9a-f]{8}", record["id"]) is None:  # it names the folder that a start empties
            raise ValueError(f"id is {record['id']!r:.60}; 8 hexadecimal digits are needed")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path / RUN_FILE}: is damaged ({error}); restore or remove it") from None
    return record

"""The run folder: whose it is, where to resume from, and that only one process trains in it.

    save_folder/run.json     id, run_name, W&B run id, state (running, stopped, done, failed), where it was resumed from
    save_folder/config.yaml  the configuration in force
    save_folder/events.jsonl what happened to the run (moe.train.checkpointing.history)
    save_folder/.lock        held while a process trains here; the kernel frees it when the process dies

Decisions: a start looks first (moe.train.checkpointing.find_run) and is recorded by `begin`, when nothing can refuse it
any more. Until then nothing here or on the remote has changed, but for the lock file and a checkpoint that was fetched:
`let_go` takes them away again.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe.common.errors import InputError, Unreachable
from moe.common.locks import sign
from moe.common.s3 import RemoteAway, RemoteError
from moe.train.checkpointing.checkpoints import Checkpoint, folder_name, read_checkpoint, step_folders
from moe.train.checkpointing.find_run import Found, find_run
from moe.train.checkpointing.folder_lock import lock_folder, state_of, take_away
from moe.train.checkpointing.history import History, now
from moe.train.checkpointing.left_behind import leave_behind, leave_behind_remote, set_broken_aside
from moe.train.checkpointing.record import LOGS_MISSING, RUN_FILE, write_record
from moe.train.checkpointing.remote import RemoteRun, Replaced
from moe.train.checkpointing.retention import clear_unfinished

MADE_BEFORE = (".lock", "wandb")  # what a start makes in the folder before it is recorded


@dataclass
class RunFolder:
    """A run folder as a start has found it.

    Attributes:
        checkpoint: where to resume from; None for a fresh start.
        record: the content of run.json, once the start is recorded.
        remote: its copy on s3, on the rank that records the start.
        found: what the start will change; None on ranks that change nothing.
        recorded: the start stands in run.json, and this rank is the one that writes.
        history: what happened to it.
    """

    path: Path
    record: dict[str, Any]
    checkpoint: Checkpoint | None
    lock: Any = None
    remote: RemoteRun | None = None
    found: Found | None = None
    recorded: bool = False
    seen: tuple[bytes, ...] = ()  # what stood there, where no lock kept it so
    _made: list[Path] = field(default_factory=list)  # by this start, before it is recorded
    _folders: list[Path] = field(default_factory=list)  # those among the folders around it, inner ones first

    def __post_init__(self) -> None:
        self.history = History(self.path, mine=False)

    def metrics(self) -> bytes:
        """metrics.jsonl as the run resumes with it; on another machine that of the remote."""
        if self.found is not None and self.found.logs_are_remote and self.remote is not None and not self.recorded:
            return self.remote.store.read("metrics.jsonl") or b""
        file = self.path / "metrics.jsonl"
        return file.read_bytes() if file.exists() else b""

    def take(self, report: Callable[[str], None]) -> None:
        """Makes the folder where it is not there, and locks it, where that was not done as it was found.

        Raises:
            InputError: another process trains in it, or has since it was looked at.
        """
        if self.lock is not None:
            return
        self._folders = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self._made = [self.path / name for name in MADE_BEFORE if not (self.path / name).exists()]
        self.lock = lock_folder(self.path, report)
        if state_of(self.path) != self.seen:
            raise InputError(
                f"save_folder ({self.path}): another process has trained in it since this one looked; "
                "run the same command again to resume from there"
            )

    def fetch(self, report: Callable[[str], None], only: Collection[str] | None = None) -> None:
        """Brings the remote's checkpoint, or `only` these files. Raises CheckpointError where they do not verify."""
        if self.found is None or not self.found.only_remote:
            return
        assert self.remote is not None and self.checkpoint is not None
        self.take(report)
        step = self.checkpoint.step
        if only is None:
            self.checkpoint = self.remote.fetch(step)
        else:
            self.remote.fetch_copy(self.checkpoint, only)
        self._made.append(self.path / folder_name(step))

    def upload(self, report: Callable[[str], None]) -> None:
        """Brings to the remote a checkpoint that is only here: it is the run's, whatever becomes of this start."""
        if self.found is None or not self.found.only_local or self.checkpoint is None or self.remote is None:
            return
        report(f"uploading step {self.checkpoint.step:,}, which is only in {self.path} ...")
        self.remote.upload(self.checkpoint.path)
        self.found.only_local = False

    def begin(self, report: Callable[[str], None]) -> None:
        """Records the start: from here on this process trains the run, here and on the remote.

        Raises:
            InputError: another process trains in it; the remote takes nothing.
        """
        assert self.found is not None
        with folder_errors(self.path, self.remote):
            self.take(report)
            clear_unfinished(self.path, report)  # first: what was caught in its replacement has its name back
            # before run.json says so: a kill may come
            if self.remote is not None:
                leave_behind_remote(self.found, self.remote)
                self.upload(report)
            leave_behind(self.path, self.found, self.remote, self._made, report)
            self.record.update(
                state="running", pid=os.getpid(), host=os.uname().nodename, session=uuid.uuid4().hex, updated_at=now()
            )
            if self.remote is not None:
                self.remote.claim(self.record)
            self.recorded = self.history.mine = True
            fetches = self.remote is not None and self.found.logs_are_remote
            self.record.pop(LOGS_MISSING, None)
            self.note(**{LOGS_MISSING: True} if fetches else {})  # until they are here
            sign(self.lock)
            set_broken_aside(self.path, self.found, self._made, report)
            if self.remote is not None:
                if fetches:
                    self.remote.fetch_logs()
                    del self.record[LOGS_MISSING]
                    self.note()
                self.remote.push_logs()

    def finish_again(self, report: Callable[[str], None]) -> None:
        """Nothing is left to train: what a kill or a failed upload after the last save has left undone is done. Another
        process's run is left alone.
        """
        if self.found is None or self.found.logs_are_remote:
            return
        if self.record.get("state") in (None, "done") and not self.found.only_local:
            return
        with folder_errors(self.path, self.remote), contextlib.suppress(Replaced):
            self.take(report)
            if self.remote is not None:
                self.remote.session = self.record.get("session")
                if self.found.only_local and self.checkpoint is not None:
                    report(f"uploading step {self.checkpoint.step:,}, which is only in {self.path} ...")
                    self.remote.push(self.checkpoint.path)
            self.recorded = True
            self.end("done", report)

    def let_go(self) -> None:
        """Frees the folder; where the start was not recorded, what it has made is taken away."""
        with contextlib.suppress(OSError):
            if self.lock is not None and not self.recorded:
                for path in self._made:
                    take_away(path)
            for folder in [] if self.recorded else self._folders:
                folder.rmdir()  # one that holds something by now stays
        if self.lock is not None:
            self.lock.close()

    def note(self, **changes: Any) -> None:
        """Updates run.json, atomically; before the start is recorded only what `begin` will write there."""
        self.record.update(changes, updated_at=now())
        if self.recorded:
            write_record(self.path, self.record)

    def close(self, state: str, reason: str | None = None) -> None:
        """The last note of this start, on this machine; none of one that was not recorded."""
        self.history.end(state, reason)
        if self.recorded:
            self.note(state=state)

    def newest(self) -> str:
        """Where the run would resume, for people."""
        folders = step_folders(self.path)
        if not folders and self.remote is not None:  # of machines without a common folder nothing stays on them
            with contextlib.suppress(RemoteError):
                if steps := self.remote.steps():
                    return f"step {steps[-1]:,} is saved in {self.remote.store.url}"
        if not folders:
            return f"nothing is saved in {self.path} yet"
        return f"step {int(folders[-1].name.removeprefix('step-')):,} is saved in {self.path}"

    def end(self, state: str, report: Callable[[str], None], reason: str | None = None) -> None:
        """The last note of this start; goes to the remote too, with the last rows of the logs."""
        try:
            self.close(state, reason)
        except OSError as error:
            report(f"warning: {self.path / RUN_FILE} cannot be written: {error.strerror}")
        # what is here while the logs have not come is not the run's
        if self.remote is not None and self.recorded and LOGS_MISSING not in self.record:
            try:
                with contextlib.suppress(Replaced):  # what is there belongs to another process now
                    self.remote.push_logs()
            except RemoteError as error:
                report(f"warning: the last logs are only in {self.path}: {error}")


def local_folder(save_folder: str, run_name: str) -> Path:
    """Where the run works: `save_folder` itself, or a folder of this machine where that is on s3."""
    return Path("runs", run_name) if "://" in save_folder else Path(save_folder).expanduser()


def open_run_folder(
    save_folder: str,
    *,
    run_name: str,
    autoresume: bool,
    resume_from: str | None,
    report: Callable[[str], None],
    read: Callable[[Path], Checkpoint] = read_checkpoint,
    skip: Collection[int] = (),
) -> RunFolder:
    """Finds what a start would resume from. Locks the folder where it holds a lock file; changes nothing.

    Args:
        read, skip: as of `find_run`.

    Raises:
        InputError: the folder is in use, holds another run, may not be resumed, or no checkpoint of it verifies.
    """
    path = local_folder(save_folder, run_name)
    remote = RemoteRun(save_folder, path, report=report) if "://" in save_folder else None
    with folder_errors(path, remote):
        seen = state_of(path)
        lock = lock_folder(path, report, create=False) if (path / ".lock").exists() else None
        try:
            found = find_run(
                path,
                remote,
                run_name=run_name,
                autoresume=autoresume,
                resume_from=resume_from,
                report=report,
                read=read,
                skip=skip,
            )
        except BaseException:
            if lock is not None:
                lock.close()
            raise
        return RunFolder(path, found.record, found.checkpoint, lock, remote, found, seen=seen)


@contextlib.contextmanager
def folder_errors(path: Path, remote: RemoteRun | None):
    """Raises: InputError where the folder or its remote cannot be used, Unreachable where that may pass."""
    try:
        yield
    except RemoteError as error:
        kind = Unreachable if isinstance(error, RemoteAway) else InputError
        raise kind(f"save_folder ({remote.store.url if remote else path}) cannot be used: {error}") from None
    except OSError as error:
        raise InputError(
            f"save_folder ({path}) cannot be used: {error.strerror or error} ({error.filename or path}); "
            "fix it or give another one"
        ) from None

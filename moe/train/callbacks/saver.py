"""Saves checkpoints in the background, and stops the run when it was asked to.

| metric | meaning |
|---|---|
| `checkpoint/blocked_seconds` | how long the training thread waited for the last save |

Composer's own saver writes in place, forgets older files after a resume, and its saved position is an epoch too early
at an epoch's end. Here the state is copied to host memory (the only part that blocks), and a thread writes, verifies
and renames it; at most one is in flight, and it is joined before the run ends.
"""

from __future__ import annotations

import copy
import errno
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist
from torch.utils._pytree import tree_leaves, tree_map

from moe.common.errors import RunFailed
from moe.common.s3 import RemoteError
from moe.config.times import Every, Time
from moe.train.checkpointing.checkpoints import write_checkpoint
from moe.train.checkpointing.history import now
from moe.train.checkpointing.remote import RemoteRun, Replaced
from moe.train.checkpointing.retention import retain
from moe.train.stop import Stopped, StopSignal

SAVED = ("model", "optimizers", "algorithms", "callbacks", "scaler", "timestamp", "rank_zero_seed", "dataset_state")


class CheckpointSaver(Callback):
    """Args:
    manifest: what each manifest holds beside step, tokens, epoch position and files (config, data, versions).
    more: files that stand in each checkpoint, by their path in its folder.
    report: prints one line to the user, on one rank only.
    event: notes what happened to the run, as History.event does.
    """

    def __init__(
        self,
        save_folder: Path,
        *,
        every: Every,
        keep: int,
        keep_every: Time | None,
        max_failed: int,
        stop: StopSignal,
        manifest: dict[str, Any],
        report: Callable[[str], None],
        event: Callable[..., None],
        remote: RemoteRun | None = None,
        more: Mapping[str, bytes] | None = None,
    ):
        self.save_folder = save_folder
        self.every = every
        self.keep = keep
        self.keep_every = keep_every
        self.max_failed = max_failed
        self.failed = 0  # saves in a row
        self.stop = stop
        self.manifest = manifest
        self.more = more
        self.report = report
        self.event = event
        self.remote = remote
        self.saved_step = -1
        self._thread: threading.Thread | None = None
        self._error: RunFailed | None = None
        self._warnings: list[str] = []  # reported in the training thread
        self._reported: set[str] = set()

    def fit_start(self, state: State, logger: Logger) -> None:
        self.saved_step = int(state.timestamp.batch)  # what was just loaded stands on disk already
        self.stop.install()  # once more: Composer's engine has put its own handlers in their place
        self.stop.training = True

    def before_forward(self, state: State, logger: Logger) -> None:
        # weights are still those before the step: they can be saved as they are; sharded ones only by all ranks at
        # once, and a collective for every microbatch would be dear
        if self.stop.overdue and not state.fsdp_enabled:
            self.stop_here(state, logger)

    def batch_end(self, state: State, logger: Logger) -> None:
        self._report_failure()
        if self.every.due(int(state.timestamp.batch)):  # before an evaluation, which may be interrupted
            self.save(state, logger)

    def eval_batch_start(self, state: State, logger: Logger) -> None:
        if self.stop.training and self.stop.agreed(state.device._device):
            self.stop_here(state, logger)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if self.stop.agreed(state.device._device) and int(state.timestamp.batch) < self.every.total_steps:
            self.stop_here(state, logger)

    def stop_here(self, state: State, logger: Logger) -> None:
        """Saves and raises Stopped; between two steps only."""
        self.stop.step_ended()
        self._report_failure(wait=True)
        self.save(state, logger)
        try:
            self.join()
        finally:  # a launcher kills all ranks some time after the first has ended: none goes before it is saved
            dist.barrier()
        raise Stopped

    def fit_end(self, state: State, logger: Logger) -> None:
        self.stop.step_ended()
        self._report_failure(wait=True)
        self.save(state, logger)  # again, where the last save failed
        self.join()

    def close(self, state: State, logger: Logger) -> None:
        if self._thread is not None:
            self._thread.join()

    def join(self) -> None:
        """Waits for the write in flight.

        Raises:
            SaveError: it failed.
            Replaced: another process trains this run now.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        while self._warnings:
            self.report(self._warnings.pop(0))
        if self._error is not None:
            error, self._error = self._error, None
            self.saved_step = -1
            raise error

    def _report_failure(self, wait: bool = False) -> None:
        """Tells of a write that failed in the background; training continues, and the next save tries again.

        Raises:
            SaveError: `max_failed` saves in a row have failed.
        """
        if self._thread is not None and (wait or not self._thread.is_alive()):
            try:
                self.join()
                self.failed = 0
            except SaveError as error:
                self.failed += 1
                if self.failed >= self.max_failed:
                    raise SaveError(f"{error}. {self.failed} saves in a row failed (max_failed_saves)") from None
                self.report(f"warning: {error}, the next save tries again")

    def save(self, state: State, logger: Logger) -> None:
        """Copies the state and hands it to the writer; nothing to do where this step stands on disk already."""
        step = int(state.timestamp.batch)
        if not self._to_be_saved(step, state):
            return
        start = time.monotonic()
        self.stop.saving = True
        if self.stop.received is not None:
            self.stop.step_ended()
        try:
            self._report_failure(wait=True)
        finally:
            self.stop.saving = False
        self.saved_step = step
        content = _true_position({k: v for k, v in state.state_dict().items() if k in SAVED}, state)
        if dist.get_global_rank() == 0:
            content = tree_map(_to_host, content)
            manifest = {
                **self.manifest,
                "tokens": int(state.timestamp.token),
                "epoch": int(state.timestamp.epoch),
                "sample_in_epoch": int(state.timestamp.sample_in_epoch),
                "saved_at": now(),
            }
            self._thread = threading.Thread(target=self._write, args=(step, content, manifest), name="checkpoint")
            self._thread.start()
        logger.log_metrics({"checkpoint/blocked_seconds": time.monotonic() - start})

    def _to_be_saved(self, step: int, state: State) -> bool:
        """Whether this step is not yet on disk. Only rank 0 knows of a failed write, and sharded state takes all."""
        if not state.fsdp_enabled:
            return step != self.saved_step
        answer = torch.tensor(int(step != self.saved_step), device=state.device._device)
        dist.all_reduce(answer, reduce_operation="MAX")
        return bool(answer)

    def _write(self, step: int, content: dict[str, Any], manifest: dict[str, Any]) -> None:
        gone = not self.save_folder.is_dir()
        start = time.monotonic()
        try:
            folder = write_checkpoint(self.save_folder, step, {"state": content}, manifest, self.more)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            self.event("checkpoint", step, bytes=size, seconds=round(time.monotonic() - start, 3))
            if self.remote is not None:
                self.remote.push(folder)
            self._retain()
            if gone:
                self._error = RunFailed(
                    f"{self.save_folder} was removed while the run trained: older checkpoints and logs are gone. "
                    f"Step {step} is saved there anew; the same command resumes from it"
                )
        except Replaced as error:
            self._error = error
        except RemoteError as error:
            self._error = SaveError(f"the checkpoint of step {step} is not on the remote, only in {folder}: {error}")
        except Exception as error:  # reported in the training thread
            size = sum(leaf.nbytes for leaf in tree_leaves(content) if isinstance(leaf, torch.Tensor))
            free = shutil.disk_usage(self.save_folder).free if self.save_folder.is_dir() else 0
            cause, fix = _cause_and_fix(error)
            self._error = SaveError(
                f"the checkpoint of step {step} was not written to {self.save_folder}: {cause} "
                f"(it needs {size:,} bytes, {free:,} are free). Earlier checkpoints are complete; {fix}"
            )

    def _retain(self) -> None:
        """The checkpoint is saved whatever becomes of older ones: those that cannot be removed are reported, once for
        each cause, and the next save tries again.
        """
        rule = {"keep": self.keep, "keep_every": self.keep_every, "tokens_per_step": self.every.tokens_per_step}
        removals: list[Callable[[], list[str]]] = [partial(retain, self.save_folder, **rule)]
        if self.remote is not None:
            removals.append(partial(self.remote.retain, **rule))
        for remove in removals:
            try:
                causes = remove()
            except OSError as error:  # RemoteError among them
                causes = [f"{error.filename}: {error.strerror}" if error.filename else str(error)]
            except Exception as error:  # whatever it is, the checkpoint is saved
                causes = [repr(error)]
            for cause in [cause for cause in causes if cause not in self._reported]:
                self._reported.add(cause)
                self._warnings.append(
                    f"warning: older checkpoints cannot be removed and take space: {cause}; training continues, and "
                    "each save tries again"
                )


class SaveError(RunFailed):
    """A checkpoint could not be written; those before it are untouched."""


def _cause_and_fix(error: BaseException) -> tuple[str, str]:
    """torch.save hides what the disk said behind an error of its own."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__context__
    number = found.errno if isinstance(found, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full", "free some space"
    if number == errno.EFBIG:
        return "a file may not be so large here", "raise the limit of file sizes (ulimit -f)"
    return str(found or error), "fix what hinders writing"


def _true_position(content: dict[str, Any], state: State) -> dict[str, Any]:
    """Composer saves the dataset's own idea of the epoch, which lags at an epoch's end; the clock's is the true one."""
    position = content["dataset_state"]["train"]
    position["epoch"] = int(state.timestamp.epoch)
    position["sample_in_epoch"] = int(state.timestamp.sample_in_epoch)
    return content


def _to_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    return copy.deepcopy(value)

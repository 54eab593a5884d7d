"""Saves checkpoints in the background, and stops the run when it was asked to.

| metric | meaning |
|---|---|
| `checkpoint/blocked_seconds` | what the last save cost the training thread: the wait for the one before, the copy |
| `checkpoint/copy_seconds` | the copy alone |

Composer's own saver writes in place, forgets older files after a resume, and its saved position is an epoch too early
at an epoch's end. Here the state is copied to host memory (the only part that blocks), and a thread writes, verifies
and renames it; at most one is in flight, and it is joined before the run ends. Ranks that share the model have such a
thread each, and write together (moe/train/checkpointing/together.py).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist
from torch.utils._pytree import tree_leaves

from moe.common.errors import RunFailed
from moe.config.times import Every, Time
from moe.train.checkpointing.checkpoints import write_checkpoint
from moe.train.checkpointing.composer_state import full_state, to_host, undivided_state
from moe.train.checkpointing.history import now
from moe.train.checkpointing.host_memory import HostMemory
from moe.train.checkpointing.rank_state import own_state
from moe.train.checkpointing.remote import RemoteRun
from moe.train.checkpointing.retention import retain
from moe.train.checkpointing.save_error import SaveError, explained
from moe.train.checkpointing.together import Save, SharedWriter
from moe.train.stop import Stopped, StopSignal


class CheckpointSaver(Callback):
    """Args:
    manifest: what each manifest holds beside step, tokens, epoch position and files (config, data, versions).
    more: files that stand in each checkpoint, by their path in its folder.
    report: prints one line to the user, on one rank only.
    event: notes what happened to the run, as History.event does.
    remote: the run on s3, on rank 0. url: its address, on every rank.
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
        url: str | None = None,
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
        self.url = url
        self.saved_step = -1
        self._memory = HostMemory()  # of the copies; a save begins when the one before it is written
        self._own_memory = HostMemory()  # of this rank's rows
        self._writer: SharedWriter | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._warnings: list[str] = []  # reported in the training thread
        self._reported: set[str] = set()

    def fit_start(self, state: State, logger: Logger) -> None:
        self.saved_step = int(state.timestamp.batch)  # what was just loaded stands on disk already
        self.stop.install()  # once more: Composer's engine has put its own handlers in their place
        self.stop.training = True

    def before_forward(self, state: State, logger: Logger) -> None:
        # weights are still those before the step: they can be saved as they are; sharded ones may be gathered just now
        if not state.fsdp_enabled and self.stop.abandons(state.device._device):
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
        if self._writer is not None and not wait:  # ranks that save together raise together: at the next save
            if isinstance(self._error, SaveError) and str(self._error) not in self._reported:
                self._reported.add(str(self._error))
                self.report(f"warning: {self._error}, the next save tries again")
            return
        if self._thread is not None and (wait or not self._thread.is_alive()):
            try:
                self.join()
                self.failed = 0
            except SaveError as error:
                self.failed += 1
                if self.failed >= self.max_failed:
                    raise SaveError(f"{error}. {self.failed} saves in a row failed (max_failed_saves)") from None
                if str(error) not in self._reported:
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
        copying = time.monotonic()
        manifest = {
            **self.manifest,
            "tokens": int(state.timestamp.token),
            "epoch": int(state.timestamp.epoch),
            "sample_in_epoch": int(state.timestamp.sample_in_epoch),
            "saved_at": now(),
        }
        write: Callable[[], None] | None = None
        if state.fsdp_enabled:
            write = self._shared_write(step, state, manifest)
        else:
            content = full_state(state)
            if dist.get_global_rank() == 0:
                write = partial(self._write, step, to_host(content, self._memory), manifest)
        end = time.monotonic()
        if write is not None:
            self._thread = threading.Thread(target=write, name="checkpoint")
            self._thread.start()
        logger.log_metrics({"checkpoint/blocked_seconds": end - start, "checkpoint/copy_seconds": end - copying})

    def _to_be_saved(self, step: int, state: State) -> bool:
        """Whether this step is not yet on disk. Ranks that save together learn of a failed write each in its time."""
        if not state.fsdp_enabled:
            return step != self.saved_step
        answer = torch.tensor(int(step != self.saved_step), device=state.device._device)
        dist.all_reduce(answer, reduce_operation="MAX")
        return bool(answer)

    def _write(self, step: int, content: dict[str, Any], manifest: dict[str, Any]) -> None:
        gone = not self.save_folder.is_dir()
        start, folder = time.monotonic(), None
        try:
            folder = write_checkpoint(self.save_folder, step, {"state": content}, manifest, self.more)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            self.event("checkpoint", step, bytes=size, seconds=round(time.monotonic() - start, 3))
            if self.remote is not None:
                self.remote.push(folder)
            self._retain()
            if gone:
                self._error = self._removed(step)
        except Exception as error:  # reported in the training thread
            size = sum(leaf.nbytes for leaf in tree_leaves(content) if isinstance(leaf, torch.Tensor))
            self._error = explained(step, error, save_folder=self.save_folder, size=size, kept=folder)

    def _removed(self, step: int) -> RunFailed:
        return RunFailed(
            f"{self.save_folder} was removed while the run trained: older checkpoints and logs are gone. "
            f"Step {step} is saved there anew; the same command resumes from it"
        )

    def _shared_write(self, step: int, state: State, manifest: dict[str, Any]) -> Callable[[], None]:
        """Copies what this rank has of a divided state; what writes it together with the other ranks."""
        if self._writer is None:
            leader = dist.get_local_rank() == 0
            self._writer = SharedWriter(self.save_folder, url=self.url, remote=self.remote, local_leader=leader)
        own = own_state(state.model, state.optimizers[0], self._own_memory)
        rest = undivided_state(state)  # on every rank, as with DDP
        content = None
        if dist.get_global_rank() == 0:
            optimizers = {type(state.optimizers[0]).__qualname__: own.optimizer}
            content = {"state": to_host({**rest, "model": own.model, "optimizers": optimizers}, self._memory)}
        save = Save(step, own.part, own.number, own.parts, own.shapes, content, manifest, self.more or {})
        return partial(self._write_together, save, self._writer, own.nbytes())

    def _write_together(self, save: Save, writer: SharedWriter, size: int) -> None:
        start = time.monotonic()

        def saved(size: int) -> None:
            self.event("checkpoint", save.step, bytes=size, seconds=round(time.monotonic() - start, 3))

        where = f"rank {writer.rank} on {os.uname().nodename}: "
        explain = partial(explained, save.step, save_folder=self.save_folder, size=size, where=where)
        try:
            written = writer.write(save, saved, explain)
            if written.keeps_house:
                self._retain()
            if written.anew:
                self._error = self._removed(save.step)
        except Exception as error:  # RunFailed on all ranks alike, or a rank is gone; reported in the training thread
            self._error = error

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

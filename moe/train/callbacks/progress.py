"""Ends a run that makes no progress. Logs no metrics.

- A thread watches from before the Trainer is built until the run's end. Progress is a microbatch, a step, a batch of
  an evaluation or of a scoring. Without any for `stall_timeout` seconds it writes the stacks of all threads, the main
  one first, to stderr and to `stacks/step-N-rank-R.txt`, asks the loader workers for theirs (on stderr), and ends the
  process: a call that hangs in C cannot be interrupted.
- So are a checkpoint's bytes that move, on this rank or on one that it may wait for: a save may take longer.
- A report may hang as the run does, on its disk or a terminal that nobody reads: each part has REPORT_S seconds.
- The exit code is 75 (run the same command again) where this start has trained a step, else 1: what stalls before its
  first step would stall again.
- Composer counts tokens by asking the batch and takes 0 for an answer; a `max_duration` in tokens would then never end.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from composer import Callback, Logger, State

from moe.common.errors import RunFailed
from moe.common.moved import MOVED
from moe.common.units import clock, complain
from moe.config import Config, parse_seconds
from moe.train.checkpointing.run_folder import RunFolder
from moe.train.distributed.ranks import MACHINES, RANK
from moe.train.distributed.writes import Writes
from moe.train.health.stacks import stacks
from moe.train.stop import EXIT_STOPPED, Stopped, StopSignal

WORKER_STACKS = 0.5  # seconds the workers have to write theirs
REPORT_S = 10.0
AUTO_S, AUTO_OVER_MACHINES_S = 1800.0, 300.0  # `stall_timeout: auto`: a network that is cut says nothing either


class Progress(Callback):
    """Args:
    note: called with the run's new state ("stopped" or "failed") before the process ends.
    end: ends the process with an exit code.
    writes: of all ranks; None where there is one.
    """

    def __init__(
        self,
        stall_timeout: float,
        *,
        stacks: Path,
        rank: int,
        note: Callable[[str], None],
        end: Callable[[int], None] = os._exit,
        writes: Writes | None = None,
    ):
        self.stall_timeout = stall_timeout
        self.stacks = stacks
        self.rank = rank
        self.note = note
        self.end = end
        self.writes = writes
        self.step = 0
        self.steps_done = 0
        self.tokens = -1
        self._looks = 0  # of the watchdog since the last progress
        self._over = threading.Event()

    def watch(self) -> None:
        self._looks = 0
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        """Counts its own looks, not time: who is suspended, and the run with it, has not looked."""
        pause = min(5.0, self.stall_timeout / 4)
        moved, last_count = MOVED.bytes, None
        while not self._over.wait(pause):
            self._looks += 1
            if MOVED.bytes != moved:
                moved, self._looks = MOVED.bytes, 0
                if self.writes is not None:
                    self.writes.tell()
            if self._looks * pause <= self.stall_timeout / 2:
                last_count = None
            elif self.writes is not None:  # what the others have reported in the second half of the time
                count = self.writes.count()
                if last_count not in (None, count):
                    self._looks = 0
                last_count = count
            if self._looks * pause > self.stall_timeout:
                return self._end()

    def _end(self) -> None:
        """Whatever cannot be written, as on the disk that stalls, the process ends."""
        try:
            text = stacks()  # before the threads that tell it
            for tell in (partial(self._print, text), partial(self._write, text), self._note):
                telling = threading.Thread(target=_quietly, args=(tell,), name="telling", daemon=True)
                telling.start()
                telling.join(REPORT_S)
            for worker in multiprocessing.active_children():
                worker.kill()
        finally:
            self.end(EXIT_STOPPED if self.steps_done else 1)

    def _note(self) -> None:
        self.note("stopped" if self.steps_done else "failed")

    def _print(self, text: str) -> None:
        fix = "run the same command again" if self.steps_done else "fix what the stacks show waiting"
        complain(
            f"no progress for {clock(self.stall_timeout)} (stall_timeout) after step {self.step:,} on rank "
            f"{self.rank}; checkpoints are complete; {fix}. Stacks of all threads:\n{text}"
        )
        for worker in multiprocessing.active_children():
            if worker.pid is not None:
                os.kill(worker.pid, signal.SIGUSR2)
        time.sleep(WORKER_STACKS)

    def _write(self, text: str) -> None:
        self.stacks.mkdir(parents=True, exist_ok=True)
        file = self.stacks / f"step-{self.step:08d}-rank-{self.rank}.txt"
        file.write_text(text, encoding="utf-8", errors="backslashreplace")

    def alive(self) -> None:
        """Something has come on that is no step and no evaluation."""
        self._looks = 0

    def _beat(self, state: State) -> None:
        self.alive()
        self.step = int(state.timestamp.batch)

    def fit_start(self, state: State, logger: Logger) -> None:
        self._beat(state)

    def batch_start(self, state: State, logger: Logger) -> None:
        self._beat(state)

    def after_backward(self, state: State, logger: Logger) -> None:
        self._beat(state)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        self._beat(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        self._beat(state)
        self.steps_done += 1
        tokens = int(state.timestamp.token)
        if tokens <= self.tokens:
            raise RunFailed(
                f"step {self.step:,}: the token count stays at {tokens:,}, so max_duration would never be reached; "
                "the loader's batches must be counted (get_num_tokens_in_batch of the DataSpec)"
            )
        self.tokens = tokens


def build_watchdog(config: Config, folder: RunFolder, stop: StopSignal) -> Progress:
    auto = AUTO_S if MACHINES == 1 else AUTO_OVER_MACHINES_S
    return Progress(
        auto if config.stall_timeout == "auto" else parse_seconds(config.stall_timeout),
        stacks=folder.path / "stacks",
        rank=RANK,
        note=lambda state: folder.close(state, reason="stall_timeout"),
        end=stop.leave,
        writes=stop.peers.writes if stop.peers is not None else None,
    )


@contextmanager
def watched(watchdog: Progress, finish: Callable[[int], None]) -> Iterator[None]:
    """Within it `watchdog` watches; at its end also `finish`, which gets how it went: 0 or 1."""
    code = 1
    watchdog.watch()
    try:
        yield
        code = 0
    except Stopped:
        code = 0  # for W&B: an interruption is no failure
        raise
    finally:
        try:
            finish(code)
        finally:
            watchdog.stop()


def _quietly(tell: Callable[[], None]) -> None:
    with suppress(OSError):
        tell()

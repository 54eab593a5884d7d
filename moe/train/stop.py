"""SIGTERM, SIGINT, SIGHUP, SIGUSR1 and a time limit: finish the step, save, exit 75.

Decisions:
- The handler only notes the signal; the training loop asks `agreed()` after each step, so all ranks stop at the same
  one.
- Only a second SIGINT is a second Ctrl+C (exit 130 at once): on one Ctrl+C the launcher sends SIGTERM as well.
- Before training there is nothing to save: the process ends at once, with 75.
- A step that has not ended PATIENCE seconds after the signal is abandoned at the next microbatch, by several ranks at
  the same one: one alone would leave the others in a collective. In long steps they ask each other. Where there is none
  before the launcher would kill (a hung collective, a slow step of one microbatch), a thread ends the process, which
  says so first. Either way a resume replays the step. Without a launcher nobody kills: the step may take its time.
- These seconds are counted in looks, not by a clock: a process that was suspended has not had them.
- A call in C that waits (a collective) keeps Python's handlers from running, however long: the kernel's note of the
  signal is then read by a thread, which does what the handler would have done.
- A launcher sends SIGTERM to the ranks that are left when one has died: at the first signal it is looked who is gone.
- Forked loader workers inherit the handler; there the signal keeps its default effect.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.common import ownership
from moe.common.environment import is_silent

if TYPE_CHECKING:
    from moe.train.distributed.peers import Peers

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
EXIT_STOPPED, EXIT_AT_ONCE = 75, 130
TEMPORARY = "temporary folder"  # in its mark
PATIENCE, LAST_RESORT = 15.0, 25.0  # of `stop_grace`'s default
LOOK = 0.5  # seconds
ASKS = 2.0  # seconds between two times that ranks ask each other within a step
ALL_SIGNALS = 128  # more than there are


class Stopped(Exception):
    """The run stopped early, with everything saved: the same command resumes. The message: a collective's error."""


def _launched() -> bool:
    """Whether a launcher started this process, which will kill it some time after a signal (Composer's: 30 s)."""
    return bool(os.environ.get("LOCAL_WORLD_SIZE"))


def remove_temporary(folder: Path) -> None:
    """Removes a run's temporary folder, where it carries our mark. What others take away meanwhile is no error."""
    if ownership.carries_mark(folder, TEMPORARY):
        shutil.rmtree(folder, ignore_errors=True)


class StopSignal:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.received: signal.Signals | None = None
        self.grace, self.patience = LAST_RESORT, PATIENCE
        self.waited = 0.0  # seconds since then in which the process was awake
        self.training = False
        self.started = time.monotonic()
        self.time_limit: float | None = None  # seconds from `started`; the same on every rank
        self.saving = False  # the training thread waits for a write, which nothing may cut short
        self.temporary: str | None = None  # this process's folder, to be removed at whatever end
        self.last_words: Callable[[], None] | None = None  # called before the timer ends the process
        self.peers: Peers | None = None  # once they have met
        self.dead = ""  # which of them were, as the first signal came
        self._interrupts = 0
        self._may_save = threading.Event()
        self._asked: tuple[int, int] | None = None  # the rank that wanted to stop, and its signal's number
        self._microbatch = 0  # of the step that runs
        self._step_began = 0.0
        self._pace, self._agreed_pace = 0, 1  # microbatches between two times, each at first; 0: more than a step has
        self._noted = self._handled = 0  # signals: by the kernel, and those that were acted on
        self._lock = threading.RLock()  # a signal is acted on once; a second one may interrupt the handler of the first
        self._handled_by_thread: list[int] = []  # acted on by the thread; the handler is still to run

    def install(self) -> None:
        """Takes over the signals; under a launcher also asks the kernel for SIGTERM when the launcher dies."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup a hang-up stays ignored
                signal.signal(number, self._handle)
        if _launched():
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        NOTES.go_to(self)

    def set_grace(self, seconds: float) -> None:
        """`stop_grace`: what a launcher or scheduler grants after a signal."""
        self.grace, self.patience = seconds, seconds * PATIENCE / LAST_RESORT

    def _handle(self, number: int, frame: object) -> None:
        if os.getpid() != self.pid:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        with self._lock:
            if number in self._handled_by_thread:
                self._handled_by_thread.remove(number)
                return
            self._handled += 1
            self._act(number)

    def noted(self, number: int) -> None:
        """In a thread: the kernel has noted a signal. Acts on it, where the main thread does not come to that; not for
        the handler of somebody else.
        """
        if signal.getsignal(number) != self._handle:
            return
        self._noted += 1
        time.sleep(LOOK)
        with self._lock:
            if self._handled < self._noted:
                self._handled += 1
                self._handled_by_thread.append(number)
                self._act(number)

    def _act(self, number: int) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            self.leave(EXIT_AT_ONCE)
        if self.received is None and self.peers is not None:
            self.dead = self.peers.gone()
        if not self.training:
            if not is_silent():  # not print: it may be what was interrupted
                cause = f"the end of {self.dead}" if self.dead else signal.Signals(number).name
                with suppress(OSError):
                    os.write(1, f"stopped by {cause} before a step was taken\n".encode())
            self.leave(EXIT_STOPPED)
        if self.received is None:
            self.received = signal.Signals(number)
            is_killed = _launched() and not self.saving
            threading.Thread(target=self._wait, args=(is_killed,), name="patience", daemon=True).start()

    def _wait(self, is_killed: bool) -> None:
        """is_killed: by the launcher, some time after `grace`."""
        pause = min(LOOK, self.grace / 4)
        while not self._may_save.wait(pause):
            self.waited += pause
            if is_killed and self.waited > self.grace:
                return self._give_up()

    def _give_up(self) -> None:
        with suppress(Exception):
            if self.last_words is not None:
                self.last_words()
        self.leave(EXIT_STOPPED)

    def leave(self, code: int) -> None:
        """Ends the process at once, from wherever it is."""
        if self.temporary is not None:
            remove_temporary(Path(self.temporary))
        os._exit(code)

    def step_ended(self) -> None:
        """The training thread has come to where it saves: it is not stuck, so nothing may cut the save short."""
        self._may_save.set()

    @property
    def overdue(self) -> bool:
        """Whether the step still runs `patience` seconds after the signal."""
        return self.received is not None and self.waited > self.patience

    @property
    def wanted(self) -> bool:
        """Whether this rank has had a signal, or its time is over."""
        over = self.time_limit is not None and time.monotonic() - self.started > self.time_limit
        return over or self.received is not None

    @property
    def reason(self) -> str:
        """What this rank was stopped by, for people."""
        if self.dead:
            return f"the end of {self.dead}"
        if self.received is not None:
            return self.received.name
        if self.wanted:
            return "time_limit"
        if self._asked is None or self.peers is None:
            return "a lost process or another rank"
        rank, number = self._asked
        return f"{signal.Signals(number).name if number else 'time_limit'} on {self.peers.named(rank)}"

    def lost(self, error: str) -> None:
        """Notes whose end a collective's error tells of."""
        if error and self.peers is not None and not self.dead:
            self.dead = self.peers.lost(error)

    def agreed(self, device: Any) -> bool:
        """Whether any rank wants to stop; every rank gets the same answer. Between two steps alone. `device`: where
        collectives run.
        """
        self._microbatch = 0
        return self._any(self.wanted, device)

    def abandons(self, device: Any) -> bool:
        """Whether the step is given up, as it is overdue on a rank; every rank gets the same answer. Before each
        microbatch; all ranks have as many.
        """
        from composer.utils import dist  # not at the top: the handlers stand before anything heavy is imported

        if dist.get_world_size() == 1:
            return self.overdue
        now = time.monotonic()
        if self._microbatch == 0:
            self._step_began = now
        else:
            self._pace = math.ceil(ASKS * self._microbatch / max(now - self._step_began, 1e-9))
        self._microbatch += 1
        asks = self._agreed_pace and self._microbatch % self._agreed_pace == 0
        return bool(asks) and self._any(self.overdue, device)

    def _any(self, mine: bool, device: Any) -> bool:
        """Whether it is so on any rank, which is noted with its signal."""
        import torch
        from composer.utils import dist

        if dist.get_world_size() == 1:
            return mine
        asks = (dist.get_global_rank() + 1) * ALL_SIGNALS + (self.received or 0) if mine else 0
        flag = torch.tensor([asks, self._pace], device=device)
        dist.all_reduce(flag, reduce_operation="MAX")
        asked, self._agreed_pace = flag.tolist()
        if asked:
            self._asked = (asked // ALL_SIGNALS - 1, asked % ALL_SIGNALS)
        return asked > 0


class _Notes:
    """What the kernel notes of signals, in a pipe that a thread reads for the newest StopSignal of this process."""

    def __init__(self) -> None:
        self.pid = self.writer = -1
        self.stop: StopSignal | None = None

    def go_to(self, stop: StopSignal) -> None:
        self.stop = stop
        if self.pid != os.getpid():
            reader, self.writer = os.pipe()
            os.set_blocking(self.writer, False)
            threading.Thread(target=self._read, args=(reader,), name="signals", daemon=True).start()
            if self.pid == -1:
                os.register_at_fork(after_in_child=_forget)
            self.pid = os.getpid()
        signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)

    def _read(self, reader: int) -> None:
        while number := os.read(reader, 1):
            if number[0] in SIGNALS and self.stop is not None:
                self.stop.noted(number[0])


def _forget() -> None:
    """In a forked process: what it is sent is not its parent's."""
    with suppress(ValueError):  # not from the main thread
        signal.set_wakeup_fd(-1)


NOTES = _Notes()

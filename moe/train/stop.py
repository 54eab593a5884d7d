"""SIGTERM, SIGINT, SIGHUP, SIGUSR1 and a time limit: finish the step, save, exit 75.

Decisions:
- The handler only notes the signal; the training loop asks `agreed()` after each step, so all ranks stop at the same
  one.
- Only a second SIGINT is a second Ctrl+C (exit 130 at once): on one Ctrl+C the launcher sends SIGTERM as well.
- Before training there is nothing to save: the process ends at once, with 75.
- A step that has not ended PATIENCE seconds after the signal is abandoned at the next microbatch; where there is none
  before the launcher would kill (a hung collective, a slow step of one microbatch), a thread ends the process, which
  says so first. Either way a resume replays the step. Without a launcher nobody kills: the step may take its time.
- These seconds are counted in looks, not by a clock: a process that was suspended has not had them.
- Forked loader workers inherit the handler; there the signal keeps its default effect.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moe.common import ownership
from moe.common.environment import is_silent

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
EXIT_STOPPED, EXIT_AT_ONCE = 75, 130
TEMPORARY = "temporary folder"  # in its mark
PATIENCE, LAST_RESORT = 15.0, 25.0
LOOK = 0.5  # seconds


class Stopped(Exception):
    """The run stopped early, with everything saved: the same command resumes."""


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
        self.waited = 0.0  # seconds since then in which the process was awake
        self.training = False
        self.started = time.monotonic()
        self.time_limit: float | None = None  # seconds from `started`; the same on every rank
        self.saving = False  # the training thread waits for a write, which nothing may cut short
        self.temporary: str | None = None  # this process's folder, to be removed at whatever end
        self.last_words: Callable[[], None] | None = None  # called before the timer ends the process
        self._interrupts = 0
        self._may_save = threading.Event()

    def install(self) -> None:
        """Takes over the signals; under a launcher also asks the kernel for SIGTERM when the launcher dies."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup a hang-up stays ignored
                signal.signal(number, self._handle)
        if _launched():
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    def _handle(self, number: int, frame: object) -> None:
        if os.getpid() != self.pid:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            self.leave(EXIT_AT_ONCE)
        if not self.training:
            if not is_silent():  # not print: it may be what was interrupted
                with suppress(OSError):
                    os.write(1, f"stopped by {signal.Signals(number).name} before a step was taken\n".encode())
            self.leave(EXIT_STOPPED)
        if self.received is None:
            self.received = signal.Signals(number)
            is_killed = _launched() and not self.saving
            threading.Thread(target=self._wait, args=(is_killed,), name="patience", daemon=True).start()

    @contextmanager
    def ends_waits(self) -> Iterator[None]:
        """Within it a signal ends the process though a call in C blocks, in which no handler of Python runs: the
        kernel writes the signal's number into a pipe, and a thread reads it.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def watch() -> None:
            while number := os.read(reader, 1):
                if number[0] in SIGNALS:
                    self._handle(number[0], None)
            os.close(reader)

        threading.Thread(target=watch, name="signals", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(writer)

    def _wait(self, is_killed: bool) -> None:
        """is_killed: by the launcher, some time after LAST_RESORT."""
        pause = min(LOOK, LAST_RESORT / 4)
        while not self._may_save.wait(pause):
            self.waited += pause
            if is_killed and self.waited > LAST_RESORT:
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
        """Whether the step still runs PATIENCE seconds after the signal."""
        return self.received is not None and self.waited > PATIENCE

    @property
    def wanted(self) -> bool:
        """Whether this rank has had a signal, or its time is over."""
        over = self.time_limit is not None and time.monotonic() - self.started > self.time_limit
        return over or self.received is not None

    @property
    def reason(self) -> str:
        """What this rank was stopped by, for people."""
        if self.received is not None:
            return self.received.name
        return "time_limit" if self.wanted else "a lost process or another rank"

    def agreed(self, device: Any) -> bool:
        """Whether any rank wants to stop; every rank gets the same answer. `device`: where collectives run."""
        import torch  # not at the top: the handlers stand before anything heavy is imported
        from composer.utils import dist

        if dist.get_world_size() == 1:
            return self.wanted
        flag = torch.tensor([int(self.wanted)], device=device)
        dist.all_reduce(flag, reduce_operation="MAX")
        return bool(flag.item())

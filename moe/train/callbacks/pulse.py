"""Tells how far a run is wherever the console has been silent for SILENCE seconds. Logs no metrics, touches no state.

Decisions:
- A clock decides, in a thread: a single microbatch may take longer than that.
- A line of its own, not a redrawn one: other lines come between, and a log file keeps it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from moe.common.units import say

SILENCE = 30.0  # seconds


class Pulse:
    """Args:
    text: what there is to tell; empty for nothing.
    """

    def __init__(self, text: Callable[[], str]):
        self.text = text
        self._heard = time.monotonic()
        self._over = threading.Event()
        self._begun = False

    def start(self) -> None:
        """Once; again is no matter."""
        if not self._begun:
            self._begun = True
            self.heard()
            threading.Thread(target=self._watch, name="pulse", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def heard(self) -> None:
        """The console has printed something."""
        self._heard = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(max(0.0, self._heard + SILENCE - time.monotonic())):
            if time.monotonic() - self._heard >= SILENCE:
                if text := self.text():
                    say(text)
                self.heard()

"""Files that only grow: what happened to a run, one JSON object a line. Never cut, unlike metrics.jsonl.

    save_folder/events.jsonl    {"time", "event", "step", ...}
    save_folder/alarms.jsonl    {"time", "step", "name", "message", "fix"}

| event | beside the step |
|---|---|
| `start`, `resume` | `reached` (the last step that had been logged or saved before), `ranks`, `host`, `pid` |
| `change` | `changes` (each `key`, `was`, `now`), `command`, `rate` (where it moves): what a resume changed |
| `checkpoint` | `bytes`, `seconds` (of the write, in the background) |
| `evaluation` | `label`, `loss`, `seconds` |
| `stop`, `failed` | `reason`: a signal, time_limit, stall_timeout, an error |
| `done` | |

A kill leaves no `stop`; how far the run had come stands in the `resume` after it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe.common.units import say

EVENTS, ALARMS = "events.jsonl", "alarms.jsonl"
ENDED = {"stopped": "stop", "done": "done", "failed": "failed"}  # a run's state -> event
_REPORTED: set[Path] = set()  # files that could not be written, each reported once


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def append(path: Path, record: dict[str, Any]) -> None:
    """Adds a line, after one that a kill has left half written too.

    A disk that takes none is reported once and does not end a run.
    """
    try:
        with open(path, "ab+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            whole = file.read(1) in (b"", b"\n")
            file.write((b"" if whole else b"\n") + json.dumps({"time": now(), **record}).encode() + b"\n")
    except OSError as error:
        if path not in _REPORTED:
            _REPORTED.add(path)
            say(f"warning: {path} cannot be written: {error.strerror}; training continues without its lines")


class History:
    """Writes events.jsonl of a run folder. `step`: the last one trained.

    Args:
        mine: whether this rank is the one that writes.
    """

    def __init__(self, folder: Path, *, mine: bool):
        self.path = folder / EVENTS
        self.mine = mine
        self.step = 0
        self.begun = False
        self.changes: list[dict[str, Any]] = []  # all on the way to here, which manifests list
        self._new: dict[str, Any] = {}

    def expect(self, earlier: Sequence[Any], new: Sequence[Any], *, command: str, rate: str | None) -> None:
        """What this start changes, and how that moves the rate; it is noted when training begins."""
        self.changes = [*earlier, *new]
        changes = [{key: change[key] for key in ("key", "was", "now")} for change in new]
        self._new = {"changes": changes, "command": command, **({"rate": rate} if rate else {})} if new else {}

    def event(self, event: str, step: int, **more: Any) -> None:
        if self.mine:
            append(self.path, {"event": event, "step": step, **more})

    def begin(self, step: int, *, resumed: bool, reached: int, ranks: int) -> None:
        """Training starts after `step`; before it was interrupted the run had logged step `reached`, perhaps one less
        than it had saved.
        """
        self.step, self.begun = step, True
        about = {"reached": max(step, reached), "ranks": ranks, "host": os.uname().nodename, "pid": os.getpid()}
        self.event("resume" if resumed else "start", step, **about)
        if self._new:
            self.event("change", step, **self._new)

    def end(self, state: str, reason: str | None = None) -> None:
        """`state`: stopped, done or failed. Nothing where no training had begun."""
        if self.begun:
            self.event(ENDED[state], self.step, **({} if reason is None else {"reason": reason}))

"""What a run's settings were changed to in mid-run, as events.jsonl tells it. Runs of older versions tell nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from moe.runs.columns import is_step
from moe.runs.reading import Run

STARTS = ("start", "resume")
MOST_KEYS = 6  # of one restart, in words


@dataclass(frozen=True)
class Change:
    """A setting that is another one after `step`.

    Attributes:
        was, now: as JSON writes them, text without quotes.
        command: what was typed.
        at: when, as it stands in the file.
    rate: how the changes of this step move the learning rate; empty where they do not.
    """

    step: int
    key: str
    was: str
    now: str
    command: str
    at: str
    rate: str = ""

    @property
    def text(self) -> str:
        return f"{self.key} {self.was} -> {self.now}"


def changes(run: Run) -> list[Change]:
    """Those that the run's steps were trained under, oldest first: going back to a step undoes what came after."""
    found: list[Change] = []
    for event in run.events:
        step: Any = event.get("step")
        if not is_step(step):
            continue
        if event["event"] in STARTS:
            found = [change for change in found if change.step < step]
        elif event["event"] == "change" and isinstance(event.get("changes"), list):
            about = {"command": _shown(event.get("command")), "at": _shown(event.get("time"))}
            about["rate"] = str(event.get("rate") or "")
            for change in event["changes"]:
                if isinstance(change, dict):
                    key, was, now = (_shown(change.get(name)) for name in ("key", "was", "now"))
                    found.append(Change(step=step, key=key, was=was, now=now, **about))
    return found


def by_restart(found: list[Change]) -> dict[int, str]:
    """The step after which -> what a restart changed there, in words; all keys of one restart together."""
    texts: dict[int, list[str]] = {}
    for change in found:
        texts.setdefault(change.step, []).append(change.text)
    rates = {change.step: change.rate for change in found if change.rate}
    words = {}
    for step, of in texts.items():
        more = [f"and {len(of) - MOST_KEYS} more"] if len(of) > MOST_KEYS else []
        words[step] = ", ".join([*of[:MOST_KEYS], *more]) + (f" ({rates[step]})" if step in rates else "")
    return words


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

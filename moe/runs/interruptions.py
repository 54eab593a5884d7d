"""Where a run was interrupted and what that cost: the downtime, and the steps it trained a second time."""

from __future__ import annotations

import contextlib
import datetime
from dataclasses import dataclass
from typing import Any

from moe.runs.columns import is_step
from moe.runs.reading import Run

STARTS = ("start", "resume")
ENDS = {"stop": "stopped", "failed": "failed", "done": "done"}
RATE = "throughput/tokens_per_sec"
LEAST_RATE = 1e-6  # tokens/s; less is no pace to reckon with


@dataclass(frozen=True)
class Interruption:
    """Attributes:
    how: stopped (by a signal or a limit, saved first), failed, or killed (the process left no word).
    reason: what the process said, where it said something.
    step: the last step that was logged before it.
    resumed_step: where the run resumed; the steps between are trained again.
    at: when that was, up to the seconds of a few steps.
    away: seconds until it resumed.
    replay: seconds that the steps between took, at the rate of then; None where no rate is known.
    """

    how: str
    reason: str
    step: int
    resumed_step: int
    at: datetime.datetime
    away: float
    replay: float | None

    @property
    def replayed(self) -> int:
        return self.step - self.resumed_step

    @property
    def cost(self) -> float:
        return self.away + (self.replay or 0.0)


def interruptions(run: Run) -> list[Interruption]:
    """From events.jsonl; empty where that is missing."""
    found = []
    rates = {step: rate for step, rate in run.series(RATE) if rate > LEAST_RATE}
    before: list[dict[str, Any]] = []  # of the start that ended
    for event in run.events:
        if event["event"] in STARTS and before and before[-1]["event"] != "done":
            if (one := _between(run, rates, before, event)) is not None:
                found.append(one)
            before = []
        before.append(event)
    return found


def _between(
    run: Run, rates: dict[int, float], before: list[dict[str, Any]], resume: dict[str, Any]
) -> Interruption | None:
    """rates: step -> tokens/s."""
    went_on = parse_stamp(resume.get("time"))
    heard = [(stamp, _step(event)) for event in before if (stamp := parse_stamp(event.get("time"))) is not None]
    if went_on is None or not heard:
        return None
    resumed_step = _step(resume)
    step = max([known for _, known in heard] + [_step(resume, "reached"), resumed_step])
    pace = _seconds_per_step(run, rates, step)
    at, known = max(heard)
    if pace is not None:  # rows of metrics carry no time: the steps since the last event, at the pace of then
        with contextlib.suppress(OverflowError):  # a rate next to nothing: longer than the calendar
            at = min(went_on, at + datetime.timedelta(seconds=(step - known) * pace))
    return Interruption(
        how=ENDS.get(before[-1]["event"], "killed"),
        reason=str(before[-1].get("reason") or ""),
        step=step,
        resumed_step=resumed_step,
        at=at,
        away=max(0.0, (went_on - at).total_seconds()),
        replay=None if pace is None else (step - resumed_step) * pace,
    )


def _step(event: dict[str, Any], key: str = "step") -> int:
    value = event.get(key)
    return value if isinstance(value, int) and is_step(value) else 0


def _seconds_per_step(run: Run, rates: dict[int, float], step: int) -> float | None:
    """As logged nearest to `step`."""
    if not rates or not run.tokens_per_step:
        return None
    return run.tokens_per_step / rates[min(rates, key=lambda known: abs(known - step))]


def parse_stamp(text: Any) -> datetime.datetime | None:
    """An ISO time with its zone (UTC where none is given), or None."""
    try:
        stamp = datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return stamp if stamp.tzinfo else stamp.replace(tzinfo=datetime.timezone.utc)
